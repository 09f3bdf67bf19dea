"""Connections of a ROUTER: counted as they come and go, and bounded however fast they come."""

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from memosd.connections import UNREAD_EVENTS, Connections, credentials_of, greediest
from tests.e2e.daemon import eventually
from tests.e2e.raw import is_hung_up

LIMIT = 5


class Door:
    """A bound ROUTER and its connections."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.epoll = select.epoll()
        self.connections = Connections(self.router, path, LIMIT, self.epoll)
        self.router.bind(f"ipc://{path}")
        self.peers: list[socket.socket] = []
        self.is_crowded = False

    def connect(self) -> socket.socket:
        """One connection more; silent."""
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.path))
        self.peers.append(peer)
        return peer

    def counts(self, wanted: int) -> None:
        """Wait until so many are counted."""

        def is_counted() -> bool:
            if self.epoll.poll(0):
                self.is_crowded = self.connections.read_events()
            return len(self.connections) == wanted

        eventually(is_counted, f"{wanted} connections")

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.connections.close()
        self.router.close(linger=0)
        self.context.term()
        self.epoll.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """Open to everybody."""
    made = Door(tmp_path / "door.sock")
    yield made
    made.close()


def test_who_comes_and_who_goes_is_counted(door: Door) -> None:
    for _ in range(3):
        door.connect()
    door.counts(3)
    door.peers.pop().close()
    door.counts(2)
    door.connect()
    door.counts(3)
    assert not door.is_crowded


def test_beyond_the_limit_the_oldest_that_nobody_uses_go(door: Door) -> None:
    first = door.connect()
    door.counts(1)
    used = set(door.connections._uids)
    others = []
    for count in range(2, LIMIT + 3):
        others.append(door.connect())
        door.counts(count)
    assert door.is_crowded
    door.connections.shrink(used)
    assert len(door.connections) == LIMIT
    for peer in others[:2]:
        while not is_hung_up(peer):
            pass  # ZeroMQ's greeting came first
    for peer in (first, *others[2:]):
        peer.send(b"x")  # EPIPE otherwise
    door.counts(LIMIT)  # what was hung up on is not counted twice


def test_all_in_use_is_not_more_than_all(door: Door) -> None:
    for count in range(1, LIMIT + 2):
        door.connect()
        door.counts(count)
    door.connections.shrink(set(door.connections._uids))
    assert len(door.connections) == LIMIT + 1


def test_a_descriptor_that_is_another_s_by_now_is_left_alone(door: Door) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        door.connections._uids[ours.fileno()] = os.getuid()
        door.connections.hang_up(ours.fileno())
        ours.send(b"x")
        assert theirs.recv(1) == b"x"
    memory = os.memfd_create("other")
    door.connections._uids[memory] = os.getuid()
    door.connections.hang_up(memory)
    os.close(memory)


def test_libzmq_does_not_run_ahead(door: Door) -> None:
    """Whose events nobody reads accepts so many and no more: the daemon's reserve."""
    before = len(os.listdir("/proc/self/fd"))

    def accepted() -> int:
        return len(os.listdir("/proc/self/fd")) - before - len(door.peers)

    def is_stuck() -> bool:
        """The backlog is full, and as many were accepted as there may be."""
        peer = socket.socket(socket.AF_UNIX)
        door.peers.append(peer)
        peer.setblocking(False)
        try:
            peer.connect(str(door.path))
        except BlockingIOError:
            door.peers.pop().close()
            return accepted() >= UNREAD_EVENTS
        return len(door.peers) > 3 * UNREAD_EVENTS

    eventually(is_stuck, "libzmq stops")
    assert UNREAD_EVENTS <= accepted() <= UNREAD_EVENTS + 1
    waiting = len(door.peers)
    door.counts(waiting)  # and goes on once they are read


def test_the_greediest_go_first_and_of_theirs_the_oldest() -> None:
    uids = {10: 1, 11: 2, 12: 1, 13: 2, 14: 1, 15: 3}
    assert greediest(uids, 1) == [10]
    assert greediest(uids, 3) == [10, 12, 11] or greediest(uids, 3) == [10, 11, 12]
    assert sorted(greediest(uids, 99)) == sorted(uids)
    assert greediest(uids, 0) == greediest(uids, -4) == greediest({}, 3) == []


def test_credentials_are_the_connecting_process_s(door: Door) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials_of(ours) == (os.getpid(), os.getuid(), os.getgid())
