"""Where things lie that several programs must find: the sockets, and the models.

Client and daemon meet in the runtime directory:

control.sock   ZeroMQ ROUTER, msgpack syscalls
fd.sock        AF_UNIX SEQPACKET, descriptors and liveness
"""

import os
import socket
from pathlib import Path
from typing import Final

__all__ = [
    "CONTROL_SOCKET",
    "FD_SOCKET",
    "SYSTEM_RUNTIME_DIR",
    "find_runtime_dir",
    "models_dir",
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
    """`$MEMOSD_RUNTIME_DIR`, else the user's, else the system's.

    The user's is meant where its socket exists, unless nobody listens there any more (a killed
    daemon leaves its socket behind) and the system has one.
    """
    named = os.environ.get("MEMOSD_RUNTIME_DIR")
    if named:
        return Path(named)
    own = user_runtime_dir()
    if not (own / CONTROL_SOCKET).exists():
        return SYSTEM_RUNTIME_DIR
    if not (SYSTEM_RUNTIME_DIR / CONTROL_SOCKET).exists() or _has_listener(own / FD_SOCKET):
        return own
    return SYSTEM_RUNTIME_DIR


def models_dir() -> Path:
    """`$MEMOSD_MODELS_DIR`, else `$XDG_CACHE_HOME/memosd/models`, else below `~/.cache`."""
    own = os.environ.get("MEMOSD_MODELS_DIR")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "memosd/models"


def _has_listener(path: Path) -> bool:
    """False only when it is certain: a listener that is busy, or refuses this user, is one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
