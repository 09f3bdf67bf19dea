"""The RAM tier: payloads in memory that processes map, one memfd each.

Owns the descriptors of its frames until `free` or `discard` closes them. A frame is born
writable, of a size that cannot grow, and handed to the one client that fills it; `seal` makes it
immutable for everybody, for ever, and no frame comes under a key before. Nothing is trusted that
the client could have done in between: shrink the memory, seal it itself, keep it mapped.
Giving memory back takes milliseconds for large frames, so the kernel calls `free` and `discard`
from I/O threads.
"""

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from libmem.abi.digest import Hasher, Manifest
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import PAGE_BYTES, PAYLOAD_MAX_BYTES
from memosd.drivers.tiers import payload
from memosd.drivers.tiers.payload import PayloadKey, os_errors, write

__all__ = ["Frame", "RamFrame", "RamTier"]

_MFD_NOEXEC_SEAL: Final = 0x8
"""linux/memfd.h, since 6.3: memory that nobody can execute. Not in Python 3.11's os."""
_KERNEL_PAGE_BYTES: Final = 4096
_FINAL_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Frame(Protocol):
    """Memory that processes can map; `fd` is -1 once it is given back."""

    fd: int
    size_bytes: int
    is_sealed: bool


class RamFrame:
    """A memfd."""

    __slots__ = ("fd", "is_sealed", "size_bytes")

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self.is_sealed = False


class RamTier:
    """Payloads as sealed memfds. They end with the process."""

    name: str = "ram"
    is_durable: bool = False

    def __init__(self, end_of_descriptors: int | None = None) -> None:
        """`end_of_descriptors`: frames take none of this number or above; the lowest free number
        is always given out first, so those above stay for whatever else the process needs."""
        self._end = end_of_descriptors
        self._frames: dict[PayloadKey, Frame] = {}
        self._numbers = itertools.count(1)
        self._flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL

    def charge_bytes(self, size_bytes: int) -> int:
        """Whole kernel pages, and never none: an empty frame still takes a descriptor and what
        the system keeps about it. Holes are charged too: any reader of a mapping fills them."""
        return max(1, -(-size_bytes // _KERNEL_PAGE_BYTES)) * _KERNEL_PAGE_BYTES

    def allocate(self, size_bytes: int) -> RamFrame:
        """Fresh zeroed writable memory that cannot grow. Errors: ENOMEM, EMFILE, EIO."""
        with os_errors("memory for a cube"):
            fd = self._make_memfd()
            try:
                if self._end is not None and fd >= self._end:
                    raise MemError(Errno.EMFILE, "no descriptor is left for another frame")
                os.ftruncate(fd, size_bytes)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
            except BaseException:
                os.close(fd)
                raise
        return RamFrame(fd, size_bytes)

    def fill(self, frame: Frame, payload: bytes) -> None:
        """Write the whole of a payload into an unsealed frame. Errors: ENOMEM, EIO."""
        with os_errors("memory for a cube"):
            write(frame.fd, payload, 0)

    def seal(self, frame: Frame, size_bytes: int) -> None:
        """Make the frame immutable, at `size_bytes` or shorter.

        Errors: EBUSY while a writable mapping is left anywhere, and then nothing has changed;
        EINVAL (larger than the frame, or its writer shrank or sealed the memory: discard it).
        """
        if frame.is_sealed or not 0 <= size_bytes <= frame.size_bytes:
            raise MemError(
                Errno.EINVAL, f"cannot seal {frame.size_bytes} bytes at {size_bytes} bytes"
            )
        with os_errors("sealing"):
            # Against writes first: as long as somebody may write, nothing else shall change.
            _add_seals(frame.fd, fcntl.F_SEAL_WRITE)
            _cut(frame.fd, size_bytes)
            _add_seals(frame.fd, _FINAL_SEALS)
            # Only now can the size not change any more.
            left_bytes = os.fstat(frame.fd).st_size
        if left_bytes != size_bytes:
            raise MemError(
                Errno.EINVAL, f"its writer cut the memory to {left_bytes} of {size_bytes} bytes"
            )
        frame.size_bytes = size_bytes
        frame.is_sealed = True

    def hash(self, frame: Frame) -> Manifest:
        """Page digests of a sealed frame; about 7.5 GB/s. Errors: EINVAL (not sealed), EIO."""
        _require_sealed(frame)
        with os_errors("memory of a cube"):
            return payload.manifest_behind(frame.fd, frame.size_bytes)

    def view(self, frame: Frame) -> memoryview:
        """A sealed frame, read-only, valid for as long as it is referenced, even when the frame
        is given back. Reading holes through it fills them. Errors: EINVAL, ENOMEM."""
        _require_sealed(frame)
        if not frame.size_bytes:
            return memoryview(b"")
        with os_errors("mapping of a cube"):
            # MAP_PRIVATE: before Linux 6.7 a memfd sealed against writes refuses MAP_SHARED.
            mapping = mmap.mmap(
                frame.fd, frame.size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ
            )
        return memoryview(mapping)

    def adopt(self, key: PayloadKey, frame: Frame) -> None:
        """Keep a sealed frame under a key, in place of one that was there. Errors: EINVAL."""
        _require_sealed(frame)
        old = self._frames.get(key)
        self._frames[key] = frame
        if old is not None and old is not frame:
            self.discard(old)

    def take(self, key: PayloadKey) -> Frame:
        """Remove a frame from under its key; the caller discards it. Errors: ENOENT."""
        frame = self._frames.pop(key, None)
        if frame is None:
            raise MemError(Errno.ENOENT, f"no frame of {key.hex()}")
        return frame

    def discard(self, frame: Frame) -> None:
        """Give back a frame that is under no key; again is no error."""
        fd, frame.fd = frame.fd, -1
        if fd >= 0:
            os.close(fd)

    def store(self, key: PayloadKey, fd: int, manifest: Manifest) -> None:
        """Copy into a frame of our own, sealed. Errors: ENOMEM, EMFILE, EIO; EINVAL where `fd`
        holds fewer bytes than the manifest."""
        size_bytes = manifest.size_bytes
        frame = self.allocate(size_bytes)
        try:
            with os_errors("memory for a cube"):
                if os.fstat(fd).st_size < size_bytes:
                    raise MemError(Errno.EINVAL, f"the source has fewer than {size_bytes} bytes")
                payload.copy(fd, frame.fd, 0, size_bytes)
            self.seal(frame, size_bytes)
        except BaseException:
            self.discard(frame)
            raise
        self.adopt(key, frame)

    def store_blocks(self, key: PayloadKey, blocks: Iterable[memoryview | bytes]) -> Manifest:
        """As `store`, of what comes block by block; whatever `blocks` raises leaves nothing."""
        hasher, at = Hasher(), 0
        frame = self.allocate(PAYLOAD_MAX_BYTES)  # holes: only what is written takes memory
        try:
            with os_errors("memory for a cube"):
                for block in blocks:
                    hasher.update(block)
                    at = write(frame.fd, block, at)
            self.seal(frame, at)
        except BaseException:
            self.discard(frame)
            raise
        self.adopt(key, frame)
        return hasher.manifest()

    def load(self, key: PayloadKey, fd: int, size_bytes: int, digest: bytes) -> None:
        """Copy into the zeroed memory `fd`, then check that memory.

        Errors: ENOENT, EIO, ECORRUPT.
        """
        frame = self._find(key, size_bytes)
        with os_errors("memory of a cube"):
            payload.copy(frame.fd, fd, 0, size_bytes)
            payload.check_digest(fd, size_bytes, digest)

    def read(self, key: PayloadKey, size_bytes: int, digest: bytes, limit_bytes: int) -> bytes:
        """The payload's first `limit_bytes`, copied; all of it is checked, for no page digests
        are kept here. Errors: ENOENT, EIO, ECORRUPT."""
        frame = self._find(key, size_bytes)
        with os_errors("memory of a cube"):
            payload.check_digest(frame.fd, size_bytes, digest)
            return payload.read(frame.fd, 0, min(limit_bytes, size_bytes))

    def blocks(self, key: PayloadKey, size_bytes: int, digest: bytes) -> Iterator[bytes]:
        """The payload in pieces; all of it is checked first, as in `read`."""
        self.verify(key, size_bytes, digest)
        frame = self._find(key, size_bytes)
        with os_errors("memory of a cube"):
            for at in range(0, size_bytes, PAGE_BYTES):
                yield payload.read(frame.fd, at, min(at + PAGE_BYTES, size_bytes))

    def verify(self, key: PayloadKey, size_bytes: int, digest: bytes) -> None:
        """Check the payload in place. Errors: ENOENT, EIO, ECORRUPT."""
        frame = self._find(key, size_bytes)
        with os_errors("memory of a cube"):
            payload.check_digest(frame.fd, size_bytes, digest)

    def free(self, key: PayloadKey) -> None:
        """Give the memory back; processes that have it mapped keep their mapping."""
        frame = self._frames.pop(key, None)
        if frame is not None:
            self.discard(frame)

    def keys(self) -> Iterator[PayloadKey]:
        """The keys at the time of the call."""
        return iter(list(self._frames))

    def _find(self, key: PayloadKey, size_bytes: int) -> Frame:
        frame = self._frames.get(key)
        if frame is None:
            raise MemError(Errno.ENOENT, f"no frame of {key.hex()}")
        if frame.size_bytes != size_bytes:
            raise MemError(
                Errno.ECORRUPT, f"the frame has {frame.size_bytes} bytes, not {size_bytes}"
            )
        return frame

    def _make_memfd(self) -> int:
        name = f"memosd:{next(self._numbers):x}"
        try:
            return os.memfd_create(name, self._flags)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._flags & _MFD_NOEXEC_SEAL:
                raise
        self._flags &= ~_MFD_NOEXEC_SEAL
        return os.memfd_create(name, self._flags)


def _add_seals(fd: int, seals: int) -> None:
    # Linux says EBUSY of pages that it holds itself just then, too (mm/memfd.c,
    # memfd_wait_for_pins): nobody's mapping, and soon over. Of a mapping it says so at once.
    for is_last in (False, False, True):
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except PermissionError:
            raise _sealed_by_writer() from None
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if is_last:
                raise MemError(Errno.EBUSY, "a writable mapping of the memory is left") from None
        else:
            return


def _cut(fd: int, size_bytes: int) -> None:
    if os.fstat(fd).st_size <= size_bytes:
        return
    try:
        os.ftruncate(fd, size_bytes)
    except PermissionError:
        raise _sealed_by_writer() from None


def _sealed_by_writer() -> MemError:
    return MemError(Errno.EINVAL, "its writer sealed the memory itself")


def _require_sealed(frame: Frame) -> None:
    if not frame.is_sealed:
        raise MemError(Errno.EINVAL, "the frame is not sealed")
