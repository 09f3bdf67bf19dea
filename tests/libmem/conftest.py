"""What the client's tests share: a scripted daemon, clients of it, and counts that must not grow."""

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
def open_files() -> Callable[[], int]:
    """How many descriptors this process, the scripted daemon included, has open."""
    return lambda: len(os.listdir("/proc/self/fd"))
