"""Room at the end of the table's file, written before it is needed.

A commit that makes a file longer waits for the file system's journal as well: a quarter of its
time. Where blocks have been written before, there is nothing to tell the journal; blocks that are
only allocated (`fallocate`) would have to become written ones, which it must know. Zeros are
added a MiB at a time, and the commit that follows syncs them with its own pages.

What lies behind the table's last page means nothing to LMDB. Called by the thread that commits,
just before it does: nobody else writes to the file then.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["Reserve"]

_LEAST_BYTES: Final = 256 << 10
"""More than most commits add."""
_STEP: Final = bytes(1 << 20)


class Reserve:
    """Keeps the file longer than the table is."""

    def __init__(self, path: Path) -> None:
        """Errors: OSError."""
        self._file = path.open("r+b", buffering=0)

    def keep(self, used_bytes: int) -> None:
        """Add to a file whose table ends at `used_bytes`, where little is left."""
        size_bytes = os.fstat(self._file.fileno()).st_size
        if size_bytes - used_bytes < _LEAST_BYTES:
            # Where there is no room for it, there may be enough for the commit.
            with suppress(OSError):
                os.pwrite(self._file.fileno(), _STEP, size_bytes)

    def close(self) -> None:
        """Idempotent; the file keeps what was added."""
        self._file.close()
