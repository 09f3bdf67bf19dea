"""How memctl fails: one line on standard error, a hint where one helps, the errno as exit status.

Invariant: the exit status of a failed syscall is its errno, so a script can tell why; a command
line that makes no sense exits with 64 (sysexits.h, EX_USAGE), which is no errno of ours.
Called by `main` only.
"""

import sys
from typing import Final

import typer

from libmem.abi.errors import Errno, MemError
from libmem.abi.paths import find_runtime_dir
from memosd.tools.memctl.command import Settings
from memosd.tools.memctl.output import json_line
from memosd.tools.memctl.units import printable

__all__ = ["INTERRUPTED_STATUS", "USAGE_STATUS", "report_error", "report_usage"]

USAGE_STATUS: Final = 64
INTERRUPTED_STATUS: Final = 130

_HINTS: Final[dict[Errno, str]] = {
    Errno.EACCES: "`memctl stat NAME` and `memctl quota /NAMESPACE` show owner and mode",
    Errno.EILSEQ: "for bytes that are not UTF-8 text or JSON give --type blob",
    Errno.EVERSION: "somebody wrote in between; `memctl history NAME` shows the versions",
    Errno.ENOTEMPTY: "`memctl ls -R /NAMESPACE` shows what it still holds",
    Errno.EDQUOT: "`memctl quota /NAMESPACE` and `memctl limits PATH` show ceilings and use, "
    "`memctl pins` what is pinned",
    Errno.ENOMEM: "`memctl status` shows the tiers; pinned and mapped cubes cannot be evicted",
    Errno.ENOSPC: "`memctl status` shows the disk tier; remove cubes or old versions (NAME@vN)",
    Errno.ECORRUPT: "`memctl explain NAME` tells what was found; older versions may be readable "
    "(`memctl history NAME`)",
    Errno.EGATE: "`memctl transitions --json` tells what was measured",
    Errno.EOUTDATED: "`memctl lineage NAME` shows what it was made from",
    Errno.ETIMEDOUT: "the daemon may be busy; wait longer with --timeout SECONDS",
    Errno.EPERM: "the administrator is root, or the user the daemon runs as",
}


def report_error(error: MemError, settings: Settings) -> int:
    """Print `error` and return the exit status."""
    hint = _hint(error, settings)
    if settings.is_json:
        document = {
            "error": error.errno.name,
            "errno": int(error.errno),
            "message": error.message,
            "detail": error.detail,
            "hint": hint,
        }
        print(json_line(document), file=sys.stderr)
    else:
        print(f"memctl: {printable(str(error))}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
    return int(error.errno)


def report_usage(error: typer.TyperException, settings: Settings) -> int:
    """Print what is wrong with the command line and return the exit status."""
    # typer checks values with pydantic, whose prefix tells people nothing.
    message = error.format_message().replace("Value error, ", "")
    if settings.is_json:
        print(json_line({"error": "USAGE", "errno": 0, "message": message}), file=sys.stderr)
    elif message:
        print(f"memctl: {printable(message)}", file=sys.stderr)
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "memctl"
        print(f"hint: `{path} --help` shows how it is called", file=sys.stderr)
    return USAGE_STATUS


def _hint(error: MemError, settings: Settings) -> str:
    if error.errno is Errno.ENOENT and "namespace" in error.detail:
        return (
            f"`memctl ls` shows the namespaces, `memctl mkns {error.detail['namespace']}` makes it"
        )
    if error.errno is not Errno.ECONNREFUSED:
        return _HINTS.get(error.errno, "")
    tried = settings.runtime_dir or find_runtime_dir()
    return (
        f"tried {tried}; start a daemon with `memosd --user` or `systemctl start memosd`, "
        "or name its directory with --runtime-dir or MEMOSD_RUNTIME_DIR"
    )
