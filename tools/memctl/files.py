"""The user's own files and standard streams, as `put` reads and `cat` writes them.

Owns the translation of the operating system's errors about them. Invariant: what is read is
exactly as long as was said, and what is written is written whole, or a MemError tells.
"""

import os
import shutil
import stat as modes
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from libmem.abi.errors import Errno, MemError

__all__ = ["CHUNK_BYTES", "Source", "opened", "silence_stdout", "translate", "write_out"]

CHUNK_BYTES: Final = 4 << 20
"""What is moved between two looks at the progress bar."""


def translate(error: OSError, path: str | Path) -> MemError:
    """The MemError for a failed operation on the user's file `path`."""
    try:
        errno = Errno(error.errno or 0)
    except ValueError:
        errno = Errno.EIO
    return MemError(errno, f"{path}: {error.strerror}")


class Source:
    """Bytes to be put, and how many there are."""

    def __init__(self, stream: BinaryIO, name: str, size_bytes: int) -> None:
        self._stream = stream
        self.name = name
        self.size_bytes = size_bytes

    def read(self, length_bytes: int) -> bytes:
        """Exactly so many bytes. Errors: EIO when there are fewer; OSError."""
        chunk = bytearray(length_bytes)
        self.read_into(memoryview(chunk), lambda _done: None)
        return bytes(chunk)

    def read_into(self, room: memoryview, advance: Callable[[int], None]) -> None:
        """Fill `room`, telling as it goes. Errors: EIO when there is less; OSError."""
        at = 0
        while at < len(room):
            done: int = self._stream.readinto(room[at : at + CHUNK_BYTES])  # type: ignore[attr-defined]
            if not done:
                raise MemError(Errno.EIO, f"{self.name}: became shorter while it was read")
            at += done
            advance(done)


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """The file `name`, or standard input for `-`, from where it stands. Errors: the file's."""
    shown = "standard input" if name == "-" else name
    try:
        with ExitStack() as stack:
            if name == "-":
                stream: BinaryIO = sys.stdin.buffer
            else:
                stream = stack.enter_context(Path(name).open("rb"))
            status = os.fstat(stream.fileno())
            rest_bytes = status.st_size - stream.tell() if modes.S_ISREG(status.st_mode) else 0
            if not rest_bytes:
                # A frame is asked for by its size, which a pipe does not tell before its end,
                # nor a file in /proc.
                spool = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(stream, spool, CHUNK_BYTES)
                rest_bytes = spool.tell()
                spool.seek(0)
                stream = spool
            yield Source(stream, shown, rest_bytes)
    except OSError as error:
        raise translate(error, shown) from None


def write_out(payload: memoryview, advance: Callable[[int], None]) -> None:
    """Write all of it to standard output, byte for byte. Errors: OSError, as from `print`."""
    out = sys.stdout.buffer
    at = 0
    while at < len(payload):
        # Unbuffered (PYTHONUNBUFFERED), it may take only a part of what it is given.
        done = out.write(payload[at : at + CHUNK_BYTES]) or 0
        at += done
        advance(done)
    out.flush()


def silence_stdout() -> None:
    """After a failed write: what is still buffered must not fail again at the interpreter's end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
