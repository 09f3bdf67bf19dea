"""What the tests of the client share: a scripted daemon, a client of it, a count of open files."""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import libmem
from tests.libmem.fake_daemon import FakeDaemon, running


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    # Not tmp_path: a socket's path ends at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="libmem-") as directory:
        yield Path(directory)


@pytest.fixture
def daemon(runtime_dir: Path) -> Iterator[FakeDaemon]:
    with running(runtime_dir) as fake:
        yield fake


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[libmem.Client]:
    with libmem.connect(daemon.runtime_dir, name="test") as connected:
        yield connected


@pytest.fixture
def open_memory() -> Callable[[], int]:
    """How many descriptors of cubes' memory this process has open, the scripted daemon's too."""

    def count() -> int:
        gc.collect()  # what an earlier test's error still held
        return sum(_is_memory(fd) for fd in os.listdir("/proc/self/fd"))

    return count


def _is_memory(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    except FileNotFoundError:  # the listing's own, or another thread's
        return False
