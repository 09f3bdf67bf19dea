"""Descriptors run short: whoever takes them, the daemon keeps what it needs to serve everybody."""

import os
import socket
from collections.abc import Iterator

import pytest

import libmem
from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.paths import CONTROL_SOCKET
from memosd.descriptors import divide
from tests.e2e.daemon import Daemon, eventually, tier
from tests.e2e.raw import RawPeer, is_hung_up

CEILING = 2048
MANY = 6000


@pytest.fixture
def poor(idle: Daemon, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """A daemon that may open few descriptors; its session limit is the division's."""
    command = idle.command

    def limited() -> list[str]:
        return ["sh", "-c", f'ulimit -n {CEILING}; exec "$@"', "sh", *command()]

    monkeypatch.setattr(idle, "command", limited)
    idle.start()
    return idle


@pytest.fixture
def crowd() -> Iterator[list[socket.socket]]:
    """Connections, closed in the end."""
    sockets: list[socket.socket] = []
    yield sockets
    for one in sockets:
        one.close()


def test_a_flood_of_connections_ends_nothing(poor: Daemon, crowd: list[socket.socket]) -> None:
    """libzmq aborts the process when it cannot accept: so it must never come to that."""
    with poor.connect() as client:
        epoch, session = client.info().epoch, client.info().sessions
        for _ in range(MANY):
            one = socket.socket(socket.AF_UNIX)
            crowd.append(one)
            one.connect(str(poor.runtime_dir / CONTROL_SOCKET))
            if len(crowd) % 1000 == 0:
                with poor.connect() as another:
                    assert another.info().epoch == epoch
        share = divide(CEILING, 1024)
        limit = 2 * share.sessions + 2 * share.strangers
        eventually(lambda: poor.descriptors()["socket"] < limit, "strangers are hung up on")
        # Nobody else was; the sessions in between end when their sockets are read.
        eventually(lambda: client.info().sessions == session, "the first session is left alone")
        assert (client.epoch, client.info().epoch) == (epoch, epoch)
    one = crowd[0]
    while not is_hung_up(one):
        pass  # ZeroMQ's greeting


def test_empty_cubes_cannot_take_every_descriptor(poor: Daemon) -> None:
    frames = divide(CEILING, 1024).frames
    with poor.connect() as client, RawPeer(poor.runtime_dir) as peer:
        client.make_namespace("/t")
        peer.bind()
        outcomes = []
        for number in range(frames + 10):
            outcomes.append(peer.errno_of(c.CreateCube(f"/t/{number}", 0)))
            if not outcomes[-1]:
                os.close(peer.take_descriptor()[1])
        assert outcomes == [0] * frames + [Errno.ENOMEM] * 10
        assert tier(client.info(), "ram").used_bytes == 4096 * frames
        with poor.connect() as another:
            assert another.info().epoch == client.epoch
    with poor.connect() as client:
        eventually(lambda: tier(client.info(), "ram").used_bytes == 0, "what the peer held is free")
        client.remove_namespace("/t")


def test_too_few_for_anybody_is_one_clear_line(idle: Daemon) -> None:
    command = idle.command()
    idle.command = lambda: ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *command]  # type: ignore[method-assign]
    status, words = idle.refuses_to_start()
    assert status == Errno.EMFILE
    assert words == "memosd: this process may open 300 descriptors (ulimit -Hn); 2048 are needed\n"


def test_a_session_that_ended_keeps_no_connection(shared: Daemon, client: libmem.Client) -> None:
    before = shared.descriptors()["socket"]
    with RawPeer(shared.runtime_dir) as peer:
        for _ in range(20):
            peer.bind()
            assert peer.road is not None
            road, peer.road = peer.road, None  # kept open, on this side
            peer.hello()
            assert is_hung_up(road)
            road.close()
        assert shared.descriptors()["socket"] <= before + 2
    client.info()
