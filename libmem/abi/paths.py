"""Where client and daemon meet: the runtime directory with its two sockets.

control.sock   ZeroMQ ROUTER, msgpack syscalls
fd.sock        AF_UNIX SEQPACKET, descriptors and liveness
"""

import os
from pathlib import Path
from typing import Final

__all__ = [
    "CONTROL_SOCKET",
    "FD_SOCKET",
    "SYSTEM_RUNTIME_DIR",
    "find_runtime_dir",
    "user_runtime_dir",
]

CONTROL_SOCKET: Final = "control.sock"
FD_SOCKET: Final = "fd.sock"
SYSTEM_RUNTIME_DIR: Final = Path("/run/memosd")


def user_runtime_dir() -> Path:
    """The calling user's own: `$XDG_RUNTIME_DIR/memosd`, or `/tmp/memosd-UID` without one."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "memosd" if base else Path(f"/tmp/memosd-{os.getuid()}")


def find_runtime_dir() -> Path:
    """`$MEMOSD_RUNTIME_DIR`, else the user's where its socket exists, else the system's."""
    named = os.environ.get("MEMOSD_RUNTIME_DIR")
    if named:
        return Path(named)
    own = user_runtime_dir()
    return own if (own / CONTROL_SOCKET).exists() else SYSTEM_RUNTIME_DIR
