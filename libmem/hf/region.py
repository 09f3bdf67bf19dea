"""Address space for one layer's keys and values, with a stored prefix mapped into its start.

A room is [k|v][row][head][room][dim]. A region is a room that is a reservation without memory
behind it, of which each plane's first pages are, row by row, those of the sealed memory (MAP_FIXED,
private). Behind them the reservation itself takes new tokens. Invariants: nothing is ever mapped
outside the reservation (`place` checks before the first call), and a region goes, with all that is
mapped in it, when the last tensor over it does; nobody unmaps it earlier.

No model framework. Made by `libmem.hf.layers`.
"""

import ctypes
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_PAGE_BYTES
from libmem.hf.prefix import LayerShape, Prefix, Run

__all__ = ["Region", "Room"]

_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_PROT: Final = mmap.PROT_READ | mmap.PROT_WRITE
_VMAS_DEFAULT: Final = 65530
_VMA_SHARE: Final = 2
"""Regions take at most one in so many of the VMAs that the system allows a process: the rest is
for its libraries, its threads and its allocator."""

# PyDLL: hundreds of calls of 5 us each. Giving the GIL up for every one would let each other thread
# in between them for its 5 ms.
_libc = ctypes.PyDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_FAILED: Final = ctypes.c_void_p(-1).value

_ended: "deque[int]" = deque()
"""VMAs of regions that are gone. A region may be collected at any moment, in the middle of what
holds the lock too: so it only appends here, and who counts next takes them off."""
_counting = threading.Lock()
_vmas_held = 0


_Plane: TypeAlias = tuple[int, int, int, int]
"""One plane's rows of a run: the part's descriptor, where they lie in it, where they go, and how
many bytes. A plain tuple: there are hundreds, each time."""


class Room:
    """How `rows` rows of one layer lie in some memory, with place for `room_tokens` tokens."""

    def __init__(self, shape: LayerShape, rows: int, room_tokens: int) -> None:
        self.shape, self.rows, self.room_tokens = shape, rows, room_tokens

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return _size_bytes(self.shape, self.rows, self.room_tokens)

    @property
    def values_offset_bytes(self) -> int:
        """Where the values begin; the keys begin at 0."""
        shape = self.shape
        return self.rows * self.room_tokens * shape.heads * shape.key_dim * shape.item_bytes


class Region(Room, mmap.mmap):
    """A room in address space of its own."""

    vmas: int
    """Counted for what is mapped in it."""
    _prefix: Prefix | None

    def __new__(cls, shape: LayerShape, rows: int, room_tokens: int) -> "Region":
        """Reserve address space; memory comes as it is written.

        Units:  room_tokens, a multiple of the grain where a prefix is to be mapped.
        Errors: ENOMEM.
        """
        size_bytes = _size_bytes(shape, rows, room_tokens)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self = super().__new__(cls, -1, max(1, size_bytes), flags, _PROT)
        except (OSError, OverflowError) as error:
            raise MemError(
                Errno.ENOMEM,
                f"no address space for {room_tokens} tokens of {rows} rows: {error}",
                need_bytes=size_bytes,
            ) from None
        # A token of one plane must not cost a huge page in each of them.
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages
                self.madvise(mmap.MADV_NOHUGEPAGE)
        self.vmas, self._prefix = 0, None
        return self

    def __del__(self) -> None:
        if getattr(self, "vmas", 0):
            _ended.append(self.vmas)

    def place(self, prefix: Prefix, layer: int, tokens: int) -> None:
        """Put the first `tokens` tokens of a stored layer at the start of every row.

        Mapped where the system allows, else copied: the same values either way. Rows up to the
        next whole grain are overwritten. Only for a region that nothing was written to.
        Errors: EINVAL (they do not fit in here), EILSEQ, EIO.
        """
        if prefix.shapes[layer] != self.shape or tokens > prefix.tokens:
            raise MemError(Errno.EINVAL, f"{prefix.name}: layer {layer} does not fit this cache")
        runs = prefix.runs(layer, tokens)
        if any(run.first_token + run.tokens > self.room_tokens for run in runs):
            raise MemError(Errno.EINVAL, f"{prefix.name}: {tokens} tokens need more room")
        planes = [plane for run in runs for plane in self._planes(run)]
        self._prefix = prefix  # its descriptors, its lease
        vmas = 1 + len(planes) + 2 * self.rows * self.shape.heads
        if not (self._reserve_vmas(vmas) and self._map(planes)):
            self._copy(prefix, planes)

    def _planes(self, run: Run) -> Iterator[_Plane]:
        shape, target = self.shape, 0
        for dim, source in (
            (shape.key_dim, run.keys_offset_bytes),
            (shape.value_dim, run.values_offset_bytes),
        ):
            row_bytes = dim * shape.item_bytes
            size_bytes, pitch = run.tokens * row_bytes, run.capacity_tokens * row_bytes
            start = run.first_token * row_bytes
            for _ in range(self.rows):
                for head in range(shape.heads):
                    yield run.fd, source + head * pitch, target + start, size_bytes
                    target += self.room_tokens * row_bytes

    def _reserve_vmas(self, vmas: int) -> bool:
        global _vmas_held  # noqa: PLW0603
        with _counting:
            while _ended:
                _vmas_held -= _ended.popleft()
            if _vmas_held + vmas > _vmas_allowed():
                return False
            _vmas_held += vmas
            self.vmas = vmas
            return True

    def _map(self, planes: list[_Plane]) -> bool:
        """False where the system cannot; what was mapped until then is right, and may stay."""
        if mmap.PAGESIZE != KV_PAGE_BYTES:
            return False
        address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        for fd, source, target, size_bytes in planes:
            if _libc.mmap(address + target, size_bytes, _PROT, flags, fd, source) == _FAILED:
                return False
        return True

    def _copy(self, prefix: Prefix, planes: list[_Plane]) -> None:
        with memoryview(self) as memory:
            for fd, source, target, size_bytes in planes:
                at = 0
                while at < size_bytes:
                    with memory[target + at : target + size_bytes] as rest:
                        got = _read(prefix, fd, rest, source + at)
                    at += got


def _read(prefix: Prefix, fd: int, into: memoryview, offset_bytes: int) -> int:
    try:
        got = os.preadv(fd, [into], offset_bytes)
    except OSError as error:
        raise MemError(Errno.EIO, f"{prefix.name}: {error.strerror}") from None
    if got == 0:
        raise MemError(Errno.EILSEQ, f"{prefix.name}: its memory ends early")
    return got


def _size_bytes(shape: LayerShape, rows: int, room_tokens: int) -> int:
    dims = shape.key_dim + shape.value_dim
    return rows * room_tokens * shape.heads * dims * shape.item_bytes


@lru_cache
def _vmas_allowed() -> int:
    try:
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        allowed = _VMAS_DEFAULT
    return allowed // _VMA_SHARE
