"""The private daemon of a benchmark: ready when told so, gone with its files."""

import sys
from pathlib import Path

import psutil
import pytest

from libmem.abi.errors import Errno, MemError
from memosd.tools.bench.daemon import private_daemon


def test_it_serves_restarts_and_vanishes(tmp_path: Path) -> None:
    with private_daemon(tmp_path) as daemon:
        assert daemon.start() > 0
        with daemon.connect() as client:
            assert client.info().pid == daemon.pid
            client.make_namespace("/bench")
            client.write("/bench/note", "kept")
        daemon.kill()
        assert daemon.start() > 0
        with daemon.connect() as client:
            assert client.read("/bench/note") == b"kept"
        last = daemon.pid
        runtime_dir = daemon.runtime_dir
        daemon.stop()
        assert not psutil.pid_exists(last)
    assert list(tmp_path.iterdir()) == []
    assert not runtime_dir.parent.exists()


def test_it_is_killed_when_the_block_fails(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with private_daemon(tmp_path) as daemon:
            daemon.start()
            pids.append(daemon.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not psutil.pid_exists(pids[0])
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no room for a table >&2\nexit 28\n", encoding="ascii")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with private_daemon(tmp_path) as daemon:
        with pytest.raises(MemError, match="status 28: no room for a table") as caught:
            daemon.start()
        assert caught.value.errno is Errno.EIO
        with pytest.raises(MemError) as stopped:
            daemon.stop()
        assert stopped.value.errno is Errno.ESHUTDOWN
