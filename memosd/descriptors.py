"""How the process's descriptors are shared out, so that nothing ever takes the last one.

libzmq ends the process when it cannot accept a connection for want of a descriptor. Invariant:
frames, sessions and strangers together leave `_RESERVE` free, whatever clients do.
Called by `boot.py`, once.
"""

import resource
from typing import Final, NamedTuple

from libmem.abi.errors import Errno, MemError
from memosd.connections import UNREAD_EVENTS

__all__ = ["Descriptors", "share_out"]

_LEAST: Final = 2048
_STRANGERS_MAX: Final = 256
_FILES: Final = 256
"""The store, the index, ZeroMQ's own, page files being read, descriptors on their way."""
_RESERVE: Final = UNREAD_EVENTS + _FILES


class Descriptors(NamedTuple):
    """Who gets how many."""

    sessions: int
    """Each takes two: its connection on the control road and the one on the fd road."""
    strangers: int
    """Connections without a session, on each of the two roads."""
    frames: int
    end_of_frames: int
    """No frame may have a descriptor of this number or above: frames that are given back count
    no more before an I/O thread has closed them, and must not pile up into the reserve."""


def share_out(sessions: int) -> Descriptors:
    """Raise the limit to its ceiling and divide it. `sessions`: as many as are wanted at most.

    Errors: EMFILE when the ceiling (RLIMIT_NOFILE, hard) is too low to serve anybody.
    """
    _, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, ceiling))
    return divide(ceiling, sessions)


def divide(ceiling: int, sessions: int) -> Descriptors:
    """See `share_out`."""
    if ceiling < _LEAST:
        message = f"this process may open {ceiling} descriptors (ulimit -Hn); {_LEAST} are needed"
        raise MemError(Errno.EMFILE, message)
    left = ceiling - _RESERVE
    strangers = min(_STRANGERS_MAX, ceiling // 16)
    sessions = min(sessions, (left - 2 * strangers) // 4)
    frames = left - 2 * strangers - 2 * sessions
    return Descriptors(sessions, strangers, frames, left)
