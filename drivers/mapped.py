"""How much of a mapped file is in this process's memory, and letting go of it.

LMDB reads through a shared mapping of its file. The kernel maps up to sixteen neighbours with
each page it is asked for, so a few thousand random look-ups make most of a large table count as
this process's memory, though every page is the page cache's and clean. Letting go costs a minor
fault per page that is used again, and no I/O. Linux only; elsewhere nothing happens.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

__all__ = ["MappedFile"]

_MADV_DONTNEED: Final = 4
_STATM: Final = "/proc/self/statm"
_PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")


class MappedFile:
    """The mapping of one file, made by a library that does not tell where it is."""

    def __init__(self, path: Path) -> None:
        self._spans = _spans(path.resolve())
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def trim(self, keep_bytes: int) -> bool:
        """Let go of the mapping where this process has more than `keep_bytes` of files in
        memory. True when it did."""
        if not self._spans or _file_bytes() <= keep_bytes:
            return False
        # The mapping is shared and read-only here: its pages stay in the page cache.
        return all(self._madvise(at, size, _MADV_DONTNEED) == 0 for at, size in self._spans)


def _spans(path: Path) -> list[tuple[int, int]]:
    """(address, bytes) of each mapping of the file."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    spans = []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            start, end = (int(half, 16) for half in fields[0].split("-"))
            spans.append((start, end - start))
    return spans


def _file_bytes() -> int:
    """File-backed memory of this process, as `statm` has it."""
    with open(_STATM, "rb") as statm:
        return int(statm.read().split()[2]) * _PAGE_BYTES
