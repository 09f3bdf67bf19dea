"""A client that is killed takes all that it held with it, whatever it was doing."""

import os

import pytest

import libmem
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from tests.e2e.actor import Actor
from tests.e2e.daemon import Daemon, eventually, tier
from tests.e2e.raw import RawPeer

SIZE = 4 << 20
BIND_TIMEOUT_MS = 5_000

FILLING = f"""
fill = client.create("/t/new", {SIZE})
fill.buffer[:4] = b"half"
say("ready")
hear()
"""
MAPPED = """
mapping = client.map("/t/x")
say("ready")
hear()
"""
PINNED = """
pin = client.pin("/t/x")
say("ready")
hear()
"""
WATCHING = """
events = client.watch("/t")
say("ready")
next(events)
"""
HOLDING_MUCH = f"""
held = [client.map("/t/x") for _ in range(50)] + [client.pin("/t/x") for _ in range(50)]
held += [client.create(f"/t/new{{n}}", {SIZE}) for n in range(50)]
say("ready")
hear()
"""


def _is_free(client: libmem.Client) -> bool:
    info = client.info()
    ram = tier(info, "ram")
    return info.sessions == 1 and not ram.pinned_bytes and ram.used_bytes == SIZE


@pytest.fixture
def cube(client: libmem.Client) -> libmem.Client:
    """The client, with the cube /t/x in RAM."""
    client.write("/t/x", os.urandom(SIZE), type=libmem.CubeType.BLOB)
    return client


@pytest.mark.parametrize(
    "program", [FILLING, MAPPED, PINNED, WATCHING, HOLDING_MUCH],
    ids=["filling", "mapped", "pinned", "watching", "holding much"],
)  # fmt: skip
def test_what_a_killed_client_held_is_free_at_once(
    program: str, shared: Daemon, cube: libmem.Client
) -> None:
    with Actor(shared, program) as actor:
        actor.expect("ready")
        eventually(lambda: not _is_free(cube), "the daemon knows of the actor")
        actor.kill()
        eventually(lambda: _is_free(cube), "all is free")
    assert cube.evict("/t/x") == SIZE
    with pytest.raises(MemError) as absent:
        cube.stat("/t/new")
    assert absent.value.errno is Errno.ENOENT


def test_a_client_killed_in_a_batch_holds_nothing(shared: Daemon, cube: libmem.Client) -> None:
    """Its calls go on to the end; what they are granted goes back at once."""
    program = f"""
from libmem.abi import calls as c
from libmem.abi.structs import CubeType
payload = os.urandom(60_000)
batch = []
for n in range(40):
    batch.append(c.WriteCube(f"/t/written{{n}}", payload, CubeType.BLOB))
    batch += [c.PinCube("/t/x"), c.MmapCube("/t/x"), c.CreateCube(f"/t/new{{n}}", {SIZE})]
client.batch(batch + [c.WriteCube("/t/last", b"")])
"""
    with Actor(shared, program) as actor:
        eventually(lambda: _is_there("/t/written3", cube), "it is in the middle")
        actor.kill()
        eventually(lambda: cube.info().sessions == 1, "the session is over")
    eventually(lambda: _is_there("/t/last", cube), "the batch is over")
    stats = {stat.name: stat for stat in cube.list("/t")}
    assert len(stats) == 40 + 2
    assert tier(cube.info(), "ram").pinned_bytes == 0
    assert tier(cube.info(), "ram").used_bytes <= sum(map(_ram_bytes, stats.values()))


def _is_there(name: str, client: libmem.Client) -> bool:
    try:
        client.stat(name)
    except MemError as error:
        assert error.errno is Errno.ENOENT  # noqa: PT017
        return False
    return True


def _ram_bytes(stat: libmem.Stat) -> int:
    """What a cube takes in RAM: whole pages."""
    return -(-stat.size_bytes // 4096) * 4096


def test_a_client_killed_while_it_seals_leaves_all_or_nothing(
    shared: Daemon, client: libmem.Client
) -> None:
    program = f"""
fill = client.create("/t/new", {SIZE})
fill.buffer[:] = b"x" * {SIZE}
say("ready")
fill.seal()
"""
    with Actor(shared, program) as actor:
        actor.expect("ready")
        actor.kill()
        eventually(lambda: client.info().sessions == 1, "the session is over")
    client.sync()
    names = [stat.name for stat in client.list("/t")]
    assert names in ([], ["/t/new"])
    assert all(client.read(name) == b"x" * SIZE for name in names)


@pytest.mark.slow
def test_sessions_that_are_never_bound_end_by_themselves(
    shared: Daemon, client: libmem.Client
) -> None:
    """Also those of a process that died between hello and its token."""
    program = """
from pathlib import Path
from tests.e2e.raw import RawPeer
client.close()
peer = RawPeer(Path(sys.argv[1]))
peer.hello()
say("ready")
hear()
"""
    with Actor(shared, program) as actor, RawPeer(shared.runtime_dir) as peer:
        actor.expect("ready")
        peer.hello()
        assert client.info().sessions == 3
        actor.kill()
        client.call(c.Watch("/t", timeout_ms=BIND_TIMEOUT_MS))  # waits on the daemon's clock
        eventually(lambda: client.info().sessions == 1, "both sessions ended")
        assert peer.errno_of(c.Info()) is Errno.ESTALE


def test_others_are_served_while_clients_die(shared: Daemon, cube: libmem.Client) -> None:
    actors = [Actor(shared, HOLDING_MUCH.replace("/t/new", f"/t/of{n}-")) for n in range(3)]
    for actor in actors:
        with actor:
            actor.expect("ready")
            cube.write("/t/note", "still here")
    assert cube.read("/t/note") == b"still here"
    cube.unlink("/t/note")
    eventually(lambda: _is_free(cube), "all is free")
