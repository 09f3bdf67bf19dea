"""Which runtime directory is meant when none is named."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libmem.abi import paths


@contextmanager
def listening(directory: Path) -> Iterator[None]:
    """A daemon's two sockets; they stay behind, as after kill -9."""
    directory.mkdir(exist_ok=True)
    (directory / paths.CONTROL_SOCKET).touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / paths.FD_SOCKET))
        listener.listen()
        yield


@pytest.fixture
def user(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MEMOSD_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_dir))
    return runtime_dir / "memosd"


@pytest.fixture
def system(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "SYSTEM_RUNTIME_DIR", runtime_dir / "run")
    return runtime_dir / "run"


def test_the_named_one_comes_first(
    user: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMOSD_RUNTIME_DIR", "/somewhere")
    with listening(user), listening(system):
        assert paths.find_runtime_dir() == Path("/somewhere")


def test_without_a_daemon_of_the_users_it_is_the_systems(user: Path, system: Path) -> None:
    assert paths.find_runtime_dir() == system


def test_the_users_daemon_comes_before_the_systems(user: Path, system: Path) -> None:
    with listening(user), listening(system):
        assert paths.find_runtime_dir() == user


def test_sockets_that_a_killed_daemon_left_do_not_hide_the_systems(
    user: Path, system: Path
) -> None:
    with listening(user):
        pass
    with listening(system):
        assert paths.find_runtime_dir() == system


def test_a_killed_daemon_is_still_the_one_meant_where_there_is_no_other(
    user: Path, system: Path
) -> None:
    with listening(user):
        pass
    assert paths.find_runtime_dir() == user
