"""Files as text with where it came from. Owns the translation of the file system's errors."""

import os
from pathlib import Path
from typing import Final, NamedTuple

from libmem.abi.errors import Errno, MemError
from libmem.ingest.decoding import decoded

__all__ = ["Source", "read", "translated"]

_FILE_MAX_BYTES: Final = 64 << 20
"""A text beyond this, a log or a dump, is held in memory several times while it is cut."""
_TIME_MAX_NS: Final = (1 << 63) - 1


class Source(NamedTuple):
    """A text, and what is known of it."""

    name: str
    text: str
    origin: str = ""
    time_ns: int = 0


def read(path: Path, name: str | None = None) -> Source:
    """A file's text; known by its own name unless told otherwise.

    Errors: EILSEQ (binary), EFBIG, EINVAL (no file), and those of the file system.
    """
    try:
        if not path.is_file():
            reason = "a folder" if path.is_dir() else "no file"
            raise MemError(Errno.EINVAL if path.exists() else Errno.ENOENT, f"{path}: {reason}")
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            payload = stream.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise translated(error, path) from None
    if len(payload) > _FILE_MAX_BYTES:
        raise MemError(
            Errno.EFBIG, f"{path}: too large to be cut", need_bytes=status.st_size,
            free_bytes=_FILE_MAX_BYTES,
        )  # fmt: skip
    text = decoded(payload, str(path))
    # Bytes of a name that are no characters must not spoil the header.
    origin = os.fsencode(path.absolute()).decode("utf-8", "replace")
    # Some file systems keep times that none of 64 bits in nanoseconds is.
    time_ns = status.st_mtime_ns if abs(status.st_mtime_ns) <= _TIME_MAX_NS else 0
    return Source(name or path.name, text, origin, time_ns)


def translated(error: OSError, path: Path) -> MemError:
    """The MemError for what the file system says of a path."""
    try:
        errno = Errno(error.errno or 0)
    except ValueError:
        errno = Errno.EIO
    return MemError(errno, f"{path}: {error.strerror}")
