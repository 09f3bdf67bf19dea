"""Named crash points: where tests make a process die or an operation fail.

Armed only by the environment variable MEMOSD_FAILPOINTS, read once at import, in the form
`name=action[,name=action...]`; the action is `exit` (os._exit(77), as kill -9 would),
`enospc`, `eio` (raise OSError), each with an optional `@N`: at the N-th passage only.
Unarmed, `hit()` is one look-up in an empty dict.
"""

import errno
import os
from typing import Final

__all__ = ["EXIT_STATUS", "arm", "disarm", "hit"]

EXIT_STATUS: Final = 77

_armed: dict[str, tuple[str, int]] = {}
_passages: dict[str, int] = {}


def arm(specification: str) -> None:
    """Arm the points of `name=action[@N],...`; replaces nothing that is armed already."""
    for item in filter(None, specification.split(",")):
        name, _, action = item.partition("=")
        action, _, nth = action.partition("@")
        if action not in {"exit", "enospc", "eio"}:
            raise ValueError(f"unknown failpoint action in {item!r}")
        _armed[name] = (action, int(nth or 0))


def disarm() -> None:
    """Forget every armed point and every count."""
    _armed.clear()
    _passages.clear()


def hit(name: str) -> None:
    """Pass the point `name`: nothing happens unless it is armed."""
    if name not in _armed:
        return
    action, nth = _armed[name]
    _passages[name] = _passages.get(name, 0) + 1
    if nth and _passages[name] != nth:
        return
    if action == "exit":
        os._exit(EXIT_STATUS)
    code = errno.ENOSPC if action == "enospc" else errno.EIO
    raise OSError(code, f"injected at {name}")


arm(os.environ.get("MEMOSD_FAILPOINTS", ""))
