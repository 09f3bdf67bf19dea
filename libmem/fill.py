"""Memory being filled: from `create_cube` to `seal_cube` or `abort_cube`.

Owns the descriptor of an unsealed frame and, once asked for, one writable mapping of it.
Invariant: when `seal_cube` is sent this process has no writable mapping left, or the kernel's
seal would fail; so sealing first takes the memory away from the filler.

`Fill` and the asyncio client's `AsyncFill` differ in how they wait, in nothing else.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from libmem.abi.calls import CreateReply, SealCube, WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.lease import Grant
from libmem.mapping import array_view, map_error
from libmem.steps import Commit, Steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["Fill", "FillMemory"]

_WRITE_MAX_BYTES: Final = 1 << 30
"""One pwrite; Linux would stop short of 2 GiB."""


class FillMemory:
    """What both clients' fills have in common. Dropped unsealed, it is aborted."""

    result: WriteReply | None
    """Set once sealed."""

    def __init__(self, name: str, grant: Grant) -> None:
        reply: CreateReply = grant.reply
        self.name = name
        self.size_bytes = reply.size_bytes
        self.result = None
        self._lease = grant.lease
        self._fd = grant.fds[0]
        self._memory: mmap.mmap | None = None
        self._view: memoryview | None = None

    def __del__(self) -> None:
        self._close_descriptor()

    @property
    def handle(self) -> int:
        """The handle in the session that created it."""
        return self._lease.handle

    @property
    def is_open(self) -> bool:
        """True until sealed or aborted."""
        return self._fd >= 0

    @property
    def buffer(self) -> memoryview:
        """The memory, writable; zero at first, and not allocated where it is never touched.

        Errors: EBADF (sealed or aborted), ENOMEM, EMFILE.
        """
        if self._view is None:
            self._view = memoryview(self._mapped())
        return self._view

    def numpy(
        self,
        dtype: "DTypeLike" = "uint8",
        shape: Sequence[int] | None = None,
        offset_bytes: int = 0,
    ) -> "np.ndarray[Any, Any]":
        """A writable array over the memory; drop it before sealing.

        Shape:  one-dimensional over all that is left where none is given.
        Errors: EINVAL (does not fit), EOPNOTSUPP (numpy is not installed), EBADF.
        """
        return array_view(self.buffer, dtype, shape, offset_bytes)

    def copy_in(self, piece: bytes | memoryview, offset_bytes: int = 0) -> None:
        """Write bytes, without mapping anything: twice as fast as filling fresh memory in place,
        for the system neither zeroes the pages first nor meets a fault for each.

        Errors: EBADF, ENOMEM.
        """
        self._require_open()
        rest = memoryview(piece).cast("B")
        at = 0
        try:
            while at < len(rest):
                part = rest[at : at + _WRITE_MAX_BYTES]
                at += os.pwrite(self._fd, part, offset_bytes + at)
        except OSError as error:
            raise MemError(Errno.ENOMEM, f"{self.name}: {error.strerror}") from None

    def sealing(self, size_bytes: int | None = None) -> Steps[WriteReply]:
        """Take the memory away and commit it. Errors: EBUSY (views alive), EBADF, the kernel's.

        After EBUSY and EINVAL the fill is as it was, to be sealed again or aborted. After any
        other error of the kernel the memory is given back, and sealing again is EBADF.
        """
        self._require_open()
        self._unmap()
        request = SealCube(handle=self.handle, size_bytes=size_bytes)
        self.result = yield Commit(self._lease, request)
        self._lease.disown()
        self._close_descriptor()
        return self.result

    def abort(self) -> None:
        """Give the memory back; nothing is committed. Idempotent, never waits.

        Views that are still alive stay readable and writable, for nobody.
        """
        if self.result is None:
            try:
                self._unmap()
            except MemError:
                self._memory = self._view = None  # unmapped when the last view goes
            self._close_descriptor()
            self._lease.give_back()

    def _mapped(self) -> mmap.mmap | bytearray:
        self._require_open()
        if self.size_bytes == 0:
            return bytearray()
        if self._memory is None:
            try:
                self._memory = mmap.mmap(self._fd, self.size_bytes)
            except OSError as error:
                raise map_error(self.name, error) from None
        return self._memory

    def _unmap(self) -> None:
        try:
            if self._view is not None:
                self._view.release()
                self._view = None
            if self._memory is not None:
                self._memory.close()
                self._memory = None
        except BufferError:
            raise MemError(
                Errno.EBUSY,
                f"{self.name}: arrays or memoryviews of this memory are still in use; "
                "drop them before sealing it",
            ) from None

    def _require_open(self) -> None:
        if not self.is_open:
            raise MemError(Errno.EBADF, f"{self.name}: this memory was sealed or aborted")

    def _close_descriptor(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Fill(FillMemory):
    """Memory to fill in place. As a context manager it seals, or aborts on an exception."""

    def __init__(
        self, name: str, grant: Grant, run: Callable[[Steps[WriteReply]], WriteReply]
    ) -> None:
        super().__init__(name, grant)
        self._run = run

    def __enter__(self) -> "Fill":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and self.is_open:
                self.seal()
        finally:
            self.abort()  # does nothing to what is sealed

    def seal(self, size_bytes: int | None = None) -> WriteReply:
        """Commit the memory as the cube's next version, cut to `size_bytes` where given.

        Errors: EBUSY (views of the memory are alive), EBADF (sealed or aborted before), ESTALE
        (the daemon was restarted), ECONNRESET (outcome unknown), and what `seal_cube` lists.
        """
        return self._run(self.sealing(size_bytes))
