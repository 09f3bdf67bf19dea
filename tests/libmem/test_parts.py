"""Parts: every descriptor that came is closed once, on whatever path, and the lease given back."""

import gc
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType
from libmem.abi.wire import FdTag, encode
from libmem.lease import Grant, Lease
from libmem.link import Link, new_dealer
from libmem.parts import Parts

REPLY = c.MapReply(
    handle=3,
    id=b"leaf",
    version=4,
    size_bytes=30,
    type=CubeType.ACTIVATION,
    attributes={"kv": "leaf"},
    bases=(c.MapPart(b"middle", 2, 20, {"kv": "middle"}), c.MapPart(b"root", 1, 10)),
)


class Keeper:
    """A client that remembers what it was given back."""

    def __init__(self) -> None:
        self.given_back: list[c.Call[Any]] = []

    def give_back(self, link: Link, undo: c.Call[Any]) -> None:
        self.given_back.append(undo)


@pytest.fixture
def roads() -> Iterator[tuple[socket.socket, Link]]:
    """The daemon's end of an fd road, and the link at the other."""
    daemon, road = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(new_dealer("/tmp/nobody"), road)
    yield daemon, link
    link.close()
    daemon.close()


@pytest.fixture
def fds(roads: tuple[socket.socket, Link]) -> Iterator[list[int]]:
    """Three descriptors, all of which are closed at the end."""
    gc.collect()  # what earlier tests' errors held
    before = len(os.listdir("/proc/self/fd"))
    yield [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(3)]
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def open_ones(fds: list[int]) -> list[int]:
    return [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]


def parts_of(link: Link, keeper: Keeper, fds: list[int]) -> Parts:
    return Parts("/t/leaf", Grant(Lease(keeper, link, 3, c.MunmapCube(3)), REPLY, fds))


def test_they_are_in_the_order_of_the_tokens(
    fds: list[int], roads: tuple[socket.socket, Link]
) -> None:
    keeper = Keeper()
    with parts_of(roads[1], keeper, fds) as parts:
        assert [part.id for part in parts.parts] == [b"root", b"middle", b"leaf"]
        assert [part.fd for part in parts.parts] == list(reversed(fds))
        assert [part.size_bytes for part in parts.parts] == [10, 20, 30]
        assert (parts.name, parts.id, parts.version) == ("/t/leaf", b"leaf", 4)
        assert "3" in repr(parts)
        assert not parts.is_stale
    assert open_ones(fds) == []
    assert keeper.given_back == [c.MunmapCube(3)]


def test_closing_and_giving_back_happen_once(
    fds: list[int], roads: tuple[socket.socket, Link]
) -> None:
    keeper = Keeper()
    parts = parts_of(roads[1], keeper, fds)
    parts.close_descriptors()
    assert keeper.given_back == [], "what was mapped is used on"
    again = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]  # the same numbers
    parts.close_descriptors()
    parts.give_back()
    parts.give_back()
    del parts
    assert open_ones(again) == again, "they are somebody else's by now"
    for fd in again:
        os.close(fd)
    assert len(keeper.given_back) == 1


def test_what_is_dropped_is_given_back_with_the_next_call(
    fds: list[int], roads: tuple[socket.socket, Link]
) -> None:
    keeper = Keeper()
    parts = parts_of(roads[1], keeper, fds)
    del parts
    gc.collect()
    assert open_ones(fds) == []
    assert list(roads[1].ledger.released) == [c.MunmapCube(3)]


def test_an_error_on_the_way_gives_back(fds: list[int], roads: tuple[socket.socket, Link]) -> None:
    keeper = Keeper()
    with pytest.raises(ZeroDivisionError), parts_of(roads[1], keeper, fds):
        _ = 1 / 0
    assert open_ones(fds) == []
    assert len(keeper.given_back) == 1


# -- on their way ---------------------------------------------------------------------------------


def send(daemon: socket.socket, handle: int, fds: list[int]) -> None:
    socket.send_fds(daemon, [encode(FdTag(handle, 1))], fds)
    for fd in fds:
        os.close(fd)


def test_all_of_a_tag_are_claimed_together(
    fds: list[int], roads: tuple[socket.socket, Link]
) -> None:
    daemon, link = roads
    send(daemon, 3, fds)
    claimed = link.claim(3, 3)
    assert len(claimed) == 3
    assert not any(os.get_inheritable(fd) for fd in claimed)
    for fd in claimed:
        os.close(fd)


@pytest.mark.parametrize("count", [2, 4])
def test_fewer_or_more_than_were_promised_are_all_closed(
    fds: list[int], roads: tuple[socket.socket, Link], count: int
) -> None:
    daemon, link = roads
    send(daemon, 3, fds)
    with pytest.raises(MemError) as raised:
        link.claim(3, count)
    assert raised.value.errno is Errno.EMFILE


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_process_without_room_for_all_keeps_none(
    fds: list[int], roads: tuple[socket.socket, Link], room: int
) -> None:
    """Linux hands over as many as fit; half a cube is of no use."""
    daemon, link = roads
    send(daemon, 3, fds)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)  # the lowest free number, and all above it are free as well
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + room, hard))
    try:
        with pytest.raises(MemError) as raised:
            link.claim(3, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno is Errno.EMFILE


def test_what_nobody_claimed_goes_with_the_link(
    fds: list[int], roads: tuple[socket.socket, Link]
) -> None:
    daemon, link = roads
    send(daemon, 3, fds)
    assert link.drain()
    link.ledger.close()
