"""What the tests of stores and tiers share: memfds as sources and targets, children that crash."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libmem.abi.errors import Errno, MemError

__all__ = ["Memory", "in_tiny_file_system", "python", "raises", "stored_bytes"]

ROOT = Path(__file__).parents[2]


class Memory:
    """Memfds of a test."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def blank(self, size_bytes: int) -> int:
        """Zeroed memory, as a tier's `load` wants it."""
        fd = os.memfd_create("test")
        self._fds.append(fd)
        os.ftruncate(fd, size_bytes)
        return fd

    def holding(self, content: bytes) -> int:
        """Memory with `content`."""
        fd = self.blank(len(content))
        os.pwrite(fd, content, 0)
        return fd

    def close(self) -> None:
        """Give all of them back."""
        while self._fds:
            os.close(self._fds.pop())


def stored_bytes(fd: int) -> int:
    """What the memory or file really takes, holes apart."""
    return os.fstat(fd).st_blocks * 512


@contextmanager
def raises(errno: Errno) -> Iterator[pytest.ExceptionInfo[MemError]]:
    """The block raises a MemError of this number."""
    with pytest.raises(MemError) as caught:
        yield caught
    assert caught.value.errno is errno, caught.value


def python(program: str, *arguments: str, failpoints: str = "") -> subprocess.CompletedProcess[str]:
    """Run `program` in a process of its own, with these fail points armed."""
    return _run([sys.executable, "-c", program, *arguments], failpoints)


def in_tiny_file_system(program: str, size_bytes: int) -> subprocess.CompletedProcess[str]:
    """Run `program` with a file system of `size_bytes` at /mnt, gone when it ends.

    Skips the test where this machine does not let us mount in a namespace of our own.
    """
    unshare = shutil.which("unshare")
    mount = f"mount -t tmpfs -o size={size_bytes} tiny /mnt"
    if unshare is None or _run([unshare, "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("mounting in a namespace of one's own is not allowed here")
    script = f'{mount} && exec "$0" -c "$1"'
    return _run([unshare, "-rm", "sh", "-c", script, sys.executable, program])


def _run(command: list[str], failpoints: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MEMOSD_FAILPOINTS": failpoints},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
