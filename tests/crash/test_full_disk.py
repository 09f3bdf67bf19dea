"""A disk that is really full: a small file system under the data directory."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import libmem
from libmem import CubeType
from libmem.abi.errors import Errno, MemError
from tests.crash.audit import audit
from tests.e2e.daemon import Daemon, eventually

KIB, MIB = 1 << 10, 1 << 20
SIZE_BYTES = 12 * MIB


@pytest.fixture
def cramped(idle: Daemon) -> Iterator[Daemon]:
    """A daemon whose data lie in a file system of their own, which is soon full."""
    idle.data_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=0700", "memosd-test"]
    done = subprocess.run([*mount, str(idle.data_dir)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        idle.start()
        yield idle
        if idle.is_running:
            idle.await_rest()
            idle.stop()
    finally:
        # What still runs, because the test failed, keeps it until it is ended.
        subprocess.run(["umount", "--lazy", str(idle.data_dir)], check=True)


def _fill(client: libmem.Client, start: str, size: int) -> list[str]:
    """Write until the disk is full; the names of what is there."""
    names: list[str] = []
    while True:
        name = f"/t/{start}{len(names)}"
        try:
            client.write(name, _payload(name, size), type=CubeType.BLOB)
        except MemError as error:
            assert error.errno is Errno.ENOSPC, error  # noqa: PT017
            return names
        names.append(name)
        assert len(names) < 10_000


def _payload(name: str, size: int) -> bytes:
    return name.encode().ljust(size, b".")


def _check(client: libmem.Client, sizes: dict[str, int]) -> None:
    assert {stat.name for stat in client.list("/t")} == set(sizes)
    for name, size in sizes.items():
        assert client.read(name) == _payload(name, size)


def test_a_full_disk_refuses_and_recovers(cramped: Daemon) -> None:
    with cramped.connect() as client:
        client.make_namespace("/t")
        client.write("/t/text", _payload("/t/text", 20))
        sizes = {"/t/text": 20}
        large = _fill(client, "large", MIB)
        sizes |= dict.fromkeys(large, MIB)
        assert len(large) >= 8
        small = _fill(client, "small", 4 * KIB)
        sizes |= dict.fromkeys(small, 4 * KIB)
        _check(client, sizes)
        with pytest.raises(MemError) as full:
            client.write("/t/one-more", bytes(MIB), type=CubeType.BLOB)
        assert full.value.errno is Errno.ENOSPC
        for name in large[:4]:  # what is given back can be used again
            client.unlink(name)
            del sizes[name]
        eventually(lambda: _is_written(client), "there is room again")
        sizes["/t/again"] = MIB
        _check(client, sizes)
        cramped.restart()
        _check(client, sizes)
    cramped.await_rest()
    cramped.stop()
    audit(cramped.data_dir)


def _is_written(client: libmem.Client) -> bool:
    """The files of what was unlinked go a moment later."""
    try:
        client.write("/t/again", _payload("/t/again", MIB), type=CubeType.BLOB)
    except MemError as error:
        assert error.errno is Errno.ENOSPC  # noqa: PT017
        return False
    return True


def _use_up(path: Path) -> None:
    """Leave no room on the file system."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(file, bytes(KIB)):
            pass
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    finally:
        os.close(file)


def test_a_boot_on_a_full_disk(cramped: Daemon) -> None:
    """It serves, or says in one line why not; with room again, everything is there."""
    with cramped.connect() as client:
        client.make_namespace("/t")
        sizes = dict.fromkeys(_fill(client, "large", MIB), MIB)
        sizes |= dict.fromkeys(_fill(client, "small", KIB), KIB)
    cramped.stop()
    ballast = cramped.data_dir / "ballast"
    _use_up(ballast)
    status, words = cramped.try_to_start()
    assert status in (0, Errno.ENOSPC), words
    assert len(words.splitlines()) <= 1, words
    ballast.unlink()
    if status:
        cramped.start()
    with cramped.connect() as client:
        _check(client, sizes)
