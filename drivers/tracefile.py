"""Files that accesses are recorded to: one folder, new files only, for the daemon's user alone.

Any thread; one call on a file at a time. The kernel says what lines are (`kernel/trace.py`).
"""

import os
from contextlib import suppress
from pathlib import Path

from libmem.abi.errors import Errno, MemError

__all__ = ["TraceFile", "TraceFolder"]


class TraceFile:
    """One file, open for appending. Invariant: it ends with a whole line."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = str(path)
        self._fd = fd
        self._size_bytes = 0

    def append(self, lines: bytes) -> None:
        """Errors: ENOSPC, EIO; then nothing of these lines is in the file."""
        at = self._size_bytes
        try:
            while at < self._size_bytes + len(lines):
                at += os.pwrite(self._fd, memoryview(lines)[at - self._size_bytes :], at)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size_bytes)
            raise
        self._size_bytes = at

    def close(self) -> None:
        """Its content is the file system's now; not synced, for it is no memory of anybody's."""
        os.close(self._fd)


class TraceFolder:
    """Where they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str) -> TraceFile:
        """A new empty file; `name` has no slash. Errors: EEXIST, ENOSPC, EIO."""
        path = self._folder / name
        self._folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return TraceFile(path, os.open(path, flags, 0o600))
        except FileExistsError:
            raise MemError(Errno.EEXIST, "a trace of that name is there already") from None
