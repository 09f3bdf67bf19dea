"""Run a command under the system calls that a unit file allows: `sandbox.py UNIT COMMAND ...`.

What systemd would do with `SystemCallFilter=`, without systemd as process 1: the same lists
(`systemd-analyze syscall-filter`), loaded through libseccomp. A call outside them fails with EPERM,
as `SystemCallErrorNumber=` says. Used by `test_units.py`.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

# seccomp.h, prctl.h
SCMP_ACT_ALLOW = 0x7FFF0000
SCMP_ACT_EPERM = 0x00050000 | 1
PR_SET_NO_NEW_PRIVS = 38


def allowed_syscalls(unit: Path) -> set[str]:
    """What the unit's `SystemCallFilter=` lines leave, in their order (systemd.exec(5))."""
    allowed: set[str] = set()
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("SystemCallFilter="):
            value = line.partition("=")[2]
            names = set().union(*(expand(name) for name in value.lstrip("~").split()))
            allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


def expand(name: str) -> set[str]:
    """The calls of a set such as `@file-system`, or the one that `name` is."""
    if not name.startswith("@"):
        return {name}
    listing = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [row.strip() for row in listing.splitlines()[1:]]
    return set().union(*(expand(row) for row in rows if row and not row.startswith("#")))


def confine(allowed: set[str]) -> None:
    """Bind this process, and what it executes, to `allowed`; there is no way back."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(SCMP_ACT_EPERM))
    for name in sorted(allowed):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # the sets name calls of other architectures too
            seccomp.seccomp_rule_add(context, SCMP_ACT_ALLOW, number, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or seccomp.seccomp_load(context):
        sys.exit("sandbox: this kernel loads no seccomp filter")


if __name__ == "__main__":
    confine(allowed_syscalls(Path(sys.argv[1])))
    os.execv(sys.argv[2], sys.argv[2:])
