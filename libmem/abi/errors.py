"""Error numbers, and the one exception that crosses the wire.

POSIX names and numbers where the meaning matches, own codes above 200. Raised in the kernel and
raised again, identical, in the client. Whether a code is worth a retry is a property of the code.
"""

from enum import IntEnum
from typing import Any

__all__ = ["Errno", "MemError", "is_retryable", "known_errno"]


class Errno(IntEnum):
    """Why a call failed. `memctl` exits with the number."""

    EPERM = 1
    ENOENT = 2
    EIO = 5
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    EMFILE = 24
    EFBIG = 27
    ENOSPC = 28
    ENAMETOOLONG = 36
    ENOSYS = 38
    ENOTEMPTY = 39
    EPROTO = 71
    EBADMSG = 74
    EILSEQ = 84
    EMSGSIZE = 90
    EPROTONOSUPPORT = 93
    EOPNOTSUPP = 95
    ECONNRESET = 104
    ESHUTDOWN = 108
    ETIMEDOUT = 110
    ECONNREFUSED = 111
    ESTALE = 116
    EDQUOT = 122
    ECANCELED = 125
    EMODEL = 201
    ECORRUPT = 202
    EVERSION = 203
    EOUTDATED = 204
    EGATE = 205

    @property
    def meaning(self) -> str:
        """One line of prose for people."""
        return _MEANING[self]


_MEANING: dict[Errno, str] = {
    Errno.EPERM: "only the owner or the administrator may do this",
    Errno.ENOENT: "no such cube, version or namespace",
    Errno.EIO: "reading or writing the store failed; the log id names the record",
    Errno.EBADF: "no such handle in this session",
    Errno.EAGAIN: "the daemon cannot take this now; try again",
    Errno.ENOMEM: "the tier's byte budget is exhausted and nothing more can be evicted",
    Errno.EACCES: "the mode bits do not allow this to the caller",
    Errno.EBUSY: "in use: pinned, mapped, or still writable somewhere",
    Errno.EEXIST: "the name is taken",
    Errno.EINVAL: "an argument does not make sense",
    Errno.EMFILE: "the session holds as many handles as it may",
    Errno.EFBIG: "too large for this road; map it, or read it in parts",
    Errno.ENOSPC: "the disk, or the disk tier's byte budget, is full",
    Errno.ENAMETOOLONG: "the name is longer than a name may be",
    Errno.ENOSYS: "no such syscall",
    Errno.ENOTEMPTY: "the namespace still holds cubes",
    Errno.EPROTO: "say hello and present the token on the fd socket first",
    Errno.EBADMSG: "the message could not be understood",
    Errno.EILSEQ: "the payload is not what its type promises",
    Errno.EMSGSIZE: "the message is larger than a message may be",
    Errno.EPROTONOSUPPORT: "the other side speaks another ABI version",
    Errno.EOPNOTSUPP: "this cube, type or tier cannot do that",
    Errno.ECONNRESET: "the daemon went away during the call; a mutation may have happened or not",
    Errno.ESHUTDOWN: "the daemon is shutting down",
    Errno.ETIMEDOUT: "no reply within the time-out; a mutation may still happen",
    Errno.ECONNREFUSED: "no daemon answers at this address",
    Errno.ESTALE: "the daemon was restarted; handles and mappings of before are gone",
    Errno.EDQUOT: "the namespace's quota, or the max of a control group, is exhausted",
    Errno.ECANCELED: "the call was given up because its session ended",
    Errno.EMODEL: "the memory belongs to another model",
    Errno.ECORRUPT: "the stored bytes do not match their digest; the cube is quarantined",
    Errno.EVERSION: "the cube is not at the version the caller expected",
    Errno.EOUTDATED: "what the cube was derived from is not so any more",
    Errno.EGATE: "what was trained did not reach what was asked of it",
}

_RETRYABLE = frozenset({Errno.EAGAIN, Errno.ENOMEM, Errno.EBUSY, Errno.ESTALE, Errno.ECONNREFUSED})


def is_retryable(errno: Errno) -> bool:
    """True when the same call may succeed later with no change by the caller."""
    return errno in _RETRYABLE


def known_errno(number: int) -> Errno:
    """The error of this number; EIO where it is none of ours."""
    try:
        return Errno(number)
    except ValueError:
        return Errno.EIO


class MemError(Exception):
    """A failed syscall.

    `detail` holds typed facts: `need_bytes`, `free_bytes`, `cube`, `version`, `expected_version`,
    `log_id`. They travel as they are, so keep them to str, int, float, bool and None.
    """

    def __init__(self, errno: Errno, message: str, **detail: Any) -> None:
        super().__init__(errno, message)
        self.errno = errno
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        facts = " ".join(f"{key}={value}" for key, value in self.detail.items())
        return f"{self.errno.name}: {self.message}" + (f" ({facts})" if facts else "")

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by process pools; the default would lose the detail.
        return (_restore, (int(self.errno), self.message, self.detail))


def _restore(errno: int, message: str, detail: dict[str, Any]) -> MemError:
    return MemError(Errno(errno), message, **detail)
