"""Peers that behave badly on the fd road: tokens, silence, noise, and descriptors left unread."""

import os
import socket

import pytest

import libmem
from libmem.abi import calls as c
from libmem.abi.errors import Errno
from tests.e2e.actor import Actor
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.raw import RawPeer, is_hung_up, raw_road

MIB = 1 << 20


@pytest.mark.parametrize(
    "token", [b"\0", b"x" * 15, b"x" * 16, b"x" * 17, b"x" * 64, b"x" * 5000],
    ids=["one byte", "short", "wrong", "long", "longest", "longer"],
)  # fmt: skip
def test_a_wrong_token_is_hung_up_on(token: bytes, shared: Daemon) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        peer.hello()
        assert not peer.show(token)
        assert peer.errno_of(c.Info()) is Errno.EPROTO


def test_the_token_of_another_process_is_worth_nothing(shared: Daemon) -> None:
    program = """
from pathlib import Path
from libmem.abi import calls as c
from tests.e2e.raw import RawPeer
peer = RawPeer(Path(sys.argv[1]))
terms = peer.hello()
say(terms.token.hex())
hear()
say(peer.errno_of(c.Info()).name)
say(peer.show(terms.token))
"""
    with Actor(shared, program) as owner:
        token = bytes.fromhex(owner.hear())
        road = raw_road(shared.runtime_dir)
        road.send(token)
        assert is_hung_up(road)
        road.close()
        owner.tell()
        owner.expect("EPROTO")  # not bound by the thief
        owner.expect("True")  # and the owner still can


def test_a_token_is_good_once(shared: Daemon) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        terms = peer.bind()
        road = raw_road(shared.runtime_dir)
        road.send(terms.token)
        assert is_hung_up(road)
        road.close()
        assert peer.errno_of(c.Info()) == 0


def test_a_bound_client_that_writes_ends_its_session(shared: Daemon, client: libmem.Client) -> None:
    client.write("/t/x", bytes(MIB), type=libmem.CubeType.BLOB)
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        peer.call(c.PinCube("/t/x"))
        assert peer.road is not None
        peer.road.send(b"chatter")
        assert is_hung_up(peer.road)
        assert peer.errno_of(c.Info()) is Errno.ESTALE
        assert client.stat("/t/x").pins == 0


def test_descriptors_from_a_client_are_not_kept(shared: Daemon) -> None:
    """A peer may send descriptors with its token; the daemon must not collect them."""
    before = shared.descriptors()
    for _ in range(50):
        road = raw_road(shared.runtime_dir)
        socket.send_fds(road, [b"x" * 16], [0, 1, 2, road.fileno()])
        assert is_hung_up(road)
        road.close()
    eventually(lambda: shared.descriptors() <= before, "none was kept")


def test_silent_connections_shut_nobody_out(shared: Daemon, client: libmem.Client) -> None:
    before = shared.descriptors()
    silent: list[socket.socket] = []
    try:
        silent.extend(raw_road(shared.runtime_dir) for _ in range(600))
        for _ in range(5):
            with shared.connect() as another:
                another.info()
        assert shared.descriptors()["socket"] - before["socket"] < 300
        client.write("/t/x", "as ever")
    finally:
        for road in silent:
            road.close()
    eventually(lambda: shared.descriptors() <= before, "all are closed")


def test_a_client_that_takes_no_descriptors_is_told_to(
    shared: Daemon, client: libmem.Client
) -> None:
    client.write("/t/x", bytes(MIB), type=libmem.CubeType.BLOB)
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        outcomes = [peer.errno_of(c.MmapCube("/t/x")) for _ in range(2000)]
        granted = outcomes.index(Errno.EAGAIN)
        assert set(outcomes[:granted]) == {0}
        assert set(outcomes[granted:]) == {Errno.EAGAIN}
        assert client.stat("/t/x").maps == granted  # what was refused is not held
        assert peer.errno_of(c.CreateCube("/t/y", MIB)) is Errno.EAGAIN
        for _ in range(granted):
            _, fd = peer.take_descriptor()
            os.close(fd)
        assert peer.errno_of(c.MmapCube("/t/x")) == 0
    eventually(lambda: client.stat("/t/x").maps == 0, "all are unmapped")


def test_noise_on_the_fd_road(shared: Daemon) -> None:
    for size in (1, 2, 16, 63, 64, 65, 1000, 100_000):
        road = raw_road(shared.runtime_dir)
        road.send(os.urandom(size))
        assert is_hung_up(road)
        road.close()
