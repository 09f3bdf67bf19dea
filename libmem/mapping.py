"""A cube's payload in this process's memory.

Owns the mapping of one sealed frame. Invariant: what is mapped never changes and stays valid
until closed, whatever becomes of the cube, the session or the daemon; so a mapping may outlive
all three, and a forked child may read on.

Always MAP_PRIVATE: the frame is sealed, so a private and a shared mapping show the same pages,
and kernels before 6.7 refuse a shared one of a file sealed against writing. Python 3.11's mmap
keeps a descriptor of its own, so each open mapping counts against RLIMIT_NOFILE.

Made by the clients' `map`; used by their callers.
"""

import errno
import math
import mmap
from typing import TYPE_CHECKING, Any

from libmem.abi.calls import MapReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType
from libmem.lease import Grant, Lease
from libmem.ledger import close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["Mapping", "array_view", "map_error"]

_ERRNO = {errno.ENOMEM: Errno.ENOMEM, errno.EMFILE: Errno.EMFILE, errno.ENFILE: Errno.EMFILE}


class Mapping(mmap.mmap):
    """The payload of one version, as a buffer: `bytes(m)`, `m[:16]`, `memoryview(m)`, `m.find()`.

    Read-only, or private copy-on-write. A context manager; a mapping that is dropped without
    `close()` is given back with the client's next call.
    """

    name: str
    id: bytes
    version: int
    type: CubeType
    attributes: dict[str, Any]
    size_bytes: int
    _lease: Lease

    def __new__(cls, name: str, grant: Grant, is_private: bool = False) -> "Mapping":
        """Map what was granted, and close the descriptor.

        Errors: EINVAL (an empty payload, as mmap(2)), ENOMEM, EMFILE.
        """
        reply: MapReply = grant.reply
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if is_private else 0)
        try:
            if reply.size_bytes == 0:
                raise MemError(Errno.EINVAL, f"{name} is empty, there is nothing to map")
            self = super().__new__(cls, grant.fds[0], reply.size_bytes, mmap.MAP_PRIVATE, prot)
        except (OSError, MemError) as error:
            grant.lease.give_back()  # now: whoever keeps the error would keep the lease alive
            raise map_error(name, error) if isinstance(error, OSError) else error from None
        finally:
            close_all(grant.fds)
        self._lease = grant.lease
        self.name = name
        self.id, self.version, self.type = reply.id, reply.version, reply.type
        self.attributes, self.size_bytes = reply.attributes, reply.size_bytes
        return self

    def __init__(self, name: str, grant: Grant, is_private: bool = False) -> None:
        """All is done in `__new__`, where mmap does it."""

    def __enter__(self) -> "Mapping":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except MemError:
            # The views may well be held by the frames of the error that is on its way up; what
            # is left then goes with them.
            if error is None:
                raise

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size_bytes} bytes"
        return f"<Mapping {self.name}@v{self.version} {state}>"

    @property
    def handle(self) -> int:
        """The handle in the session that mapped it."""
        return self._lease.handle

    @property
    def is_stale(self) -> bool:
        """True when the daemon no longer knows of this mapping (restart, fork, closed client).

        The memory stays as valid as ever; `close()` is then a local matter.
        """
        return self._lease.is_stale

    def numpy(
        self,
        dtype: "DTypeLike" = "uint8",
        shape: "Sequence[int] | None" = None,
        offset_bytes: int = 0,
    ) -> "np.ndarray[Any, Any]":
        """An array over the payload from `offset_bytes` on, without copying.

        Shape:  one-dimensional over all that is left where none is given.
        Errors: EINVAL (does not fit), EOPNOTSUPP (numpy is not installed).
        """
        return array_view(self, dtype, shape, offset_bytes)

    def close(self) -> None:
        """Unmap here, and tell the daemon without waiting. Idempotent.

        Errors: EBUSY while arrays or memoryviews of it are alive.
        """
        try:
            super().close()
        except BufferError:
            raise MemError(
                Errno.EBUSY,
                f"{self.name}: arrays or memoryviews of this mapping are still in use; "
                "drop them before closing it",
            ) from None
        self._lease.give_back()


def array_view(
    buffer: Any, dtype: "DTypeLike", shape: "Sequence[int] | None", offset_bytes: int
) -> "np.ndarray[Any, Any]":
    """An array that shares `buffer`'s memory. Errors: EINVAL, EOPNOTSUPP."""
    try:
        import numpy as np  # here, because `import libmem` must not load it
    except ImportError:
        raise MemError(Errno.EOPNOTSUPP, "numpy is not installed") from None
    try:
        if not 0 <= offset_bytes <= len(buffer):
            raise ValueError(f"offset {offset_bytes}")
        element = np.dtype(dtype)
        count = (
            (len(buffer) - offset_bytes) // element.itemsize if shape is None else math.prod(shape)
        )
        if count == 0:
            return np.empty(0 if shape is None else tuple(shape), element)
        # frombuffer keeps the memory from being unmapped under the array; ndarray() would not.
        array = np.frombuffer(memoryview(buffer)[offset_bytes:], element, count)
        return array if shape is None else array.reshape(tuple(shape))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise MemError(Errno.EINVAL, f"no such view of {len(buffer)} bytes: {error}") from None


def map_error(name: str, error: OSError) -> MemError:
    """What the operating system's refusal to map means."""
    return MemError(_ERRNO.get(error.errno or 0, Errno.EIO), f"cannot map {name}: {error.strerror}")
