"""The physical limits of the data road: fill a fresh memfd, read a file into one.

Peers of the `mmap` benchmark. Every function returns the seconds until the memory could be used;
giving it back is no part of them, as it is none of ours.
"""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["drop_from_page_cache", "fill", "fill_and_save", "read_into", "timed"]

_READ_BYTES: Final = 1 << 20


def fill(payload: bytes) -> float:
    """Copy `payload` into a fresh memfd, mapped shared and unmapped again: s."""
    return timed(len(payload), lambda memory: _copy(payload, memory))


def fill_and_save(payload: bytes, path: Path) -> float:
    """As `fill`, then write the payload to a new file and fsync it: s."""

    def copy_and_save(memory: memoryview) -> None:
        _copy(payload, memory)
        with path.open("xb", buffering=0) as file:
            left = memoryview(payload)
            while left:
                left = left[file.write(left) or 0 :]
            os.fsync(file.fileno())

    seconds = timed(len(payload), copy_and_save)
    path.unlink()
    return seconds


def read_into(path: Path, size_bytes: int) -> float:
    """Read the first `size_bytes` of a file into a fresh memfd, mapped shared: s."""

    def read(memory: memoryview) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < size_bytes:
                done += os.preadv(file, [memory[done : done + _READ_BYTES]], done)
        finally:
            os.close(file)

    return timed(size_bytes, read)


def drop_from_page_cache(path: Path) -> None:
    """Make the next read of a file that is on disk already come from there."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def _copy(payload: bytes, memory: memoryview) -> None:
    memory[:] = payload


def timed(size_bytes: int, use: Callable[[memoryview], None]) -> float:
    """Make a memfd of a size, let `use` fill it: s."""
    before = time.perf_counter()
    fd = os.memfd_create("memos-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        with mmap.mmap(fd, size_bytes) as mapped, memoryview(mapped) as memory:
            use(memory)
        return time.perf_counter() - before
    finally:
        os.close(fd)
