"""memctl: the command line to a memosd.

Owns the order of the commands in --help and the process's exit status; every command lives in the
file of its noun. Entry points: `memctl`, `python -m memosd.tools.memctl`.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Final

import typer

from libmem.abi.errors import MemError
from memosd.tools.memctl import (
    costs,
    cubes,
    daemon,
    explain,
    ingest,
    limits,
    lineage,
    manual,
    namespaces,
    payload,
    policy,
    recall,
    residence,
    top,
    transitions,
)
from memosd.tools.memctl.command import Json, RuntimeDir, Settings, Timeout
from memosd.tools.memctl.failure import INTERRUPTED_STATUS, report_error, report_usage

__all__ = ["main"]

app: Final = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (
    daemon,
    top,
    costs,
    cubes,
    lineage,
    transitions,
    payload,
    ingest,
    recall,
    residence,
    explain,
    policy,
    namespaces,
    limits,
    manual,
):
    app.add_typer(group.app)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"memctl {version('memosd')}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    runtime_dir: RuntimeDir = None,
    timeout: Timeout = None,
    json: Json = False,
    is_version_wanted: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """See and change the memories that a memosd keeps.

    A name is /namespace/path; its third version is /namespace/path@v3.

    Exit status: 0, the errno of what failed (2: no such cube, 13: not allowed, 111: no daemon),
    or 64 for a wrong command line.
    """
    settings: Settings = context.obj
    settings.override(runtime_dir, timeout, json)


def main(argv: Sequence[str] | None = None, settings: Settings | None = None) -> int:
    """Run one command line and return its exit status. Tests pass their own `settings.connect`."""
    settings = settings or Settings()
    if hasattr(sys.stdout, "reconfigure"):
        # A title in Thai must not end a listing on a terminal of another alphabet.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(args=argv, obj=settings, prog_name="memctl", standalone_mode=False)
    except MemError as error:
        return report_error(error, settings)
    except typer.TyperException as error:
        return report_usage(error, settings)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED_STATUS
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
