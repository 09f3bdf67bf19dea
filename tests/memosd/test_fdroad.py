"""The fd road without a descriptor to accept with: connections wait, and the loop does too."""

import errno
import os
import resource
import select
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.wire import FdTag
from memosd.fdroad import FdRoad
from memosd.kernel.timers import Timers
from tests.e2e.raw import raw_road
from tests.kernel.fakes import FakeClock


def test_without_a_free_descriptor_it_stops_listening_for_a_while(tmp_path: Path) -> None:
    clock = FakeClock()
    timers = Timers(clock)
    kernel: Any = SimpleNamespace(parts=SimpleNamespace(timers=timers), gone=lambda session: None)
    epoll = select.epoll()
    road = FdRoad(tmp_path / "fd.sock", 0o600, epoll, 4)
    client = raw_road(tmp_path)
    lowest_free = os.memfd_create("probe")
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        ((listener, _),) = epoll.poll(60)
        assert road.serve(listener, kernel)
        assert epoll.poll(0) == []  # or the loop would spin
        delay_s = timers.next_delay_s()
        assert delay_s
        clock.advance(int(delay_s * 1e9) + 1)
        timers.run_due()
        assert epoll.poll(60) == [(listener, select.EPOLLIN)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    road.serve(listener, kernel)
    client.send(b"")
    client.close()
    ((connection, _),) = epoll.poll(60)
    assert connection != listener
    road.serve(connection, kernel)
    road.close(kernel)
    epoll.close()


def test_too_many_descriptors_on_their_way_are_worth_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux bounds those of one user; the client that waits is not the one that does not read."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "too many references")

    monkeypatch.setattr(socket, "send_fds", refuse)
    epoll = select.epoll()
    road = FdRoad(tmp_path / "fd.sock", 0o600, epoll, 4)
    session: Any = SimpleNamespace(number=1)
    road.__dict__["_sockets"][1] = None
    with pytest.raises(MemError) as gone:
        road.send_fds(session, FdTag(1, 1), [0])
    assert gone.value.errno is Errno.ECANCELED
    with socket.socket() as connection:
        road.__dict__["_sockets"][1] = connection
        with pytest.raises(MemError) as crowded:
            road.send_fds(session, FdTag(1, 1), [0])
    assert crowded.value.errno is Errno.EAGAIN
    kernel: Any = None
    road.close(kernel)
    epoll.close()
