"""The pager: faults, shared fills, what happens to them when the world changes meanwhile."""

import os
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, TierName
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import PAGED, Client, World, batch_of

SMALL = 500
"""In the table itself."""


def fault_job(world: World) -> str:
    """What reads the payload: from a page file, or out of the table."""
    return "load" if "load" in world.io.names() else "fill"


# -- faults --------------------------------------------------------------------------------------


def test_an_absent_payload_is_brought_in_once_and_stays(
    world: World, user: Client, absent: bytes
) -> None:
    assert user.mapped("/n/a") == absent
    assert user.mapped("/n/a") == absent
    stat = user.stat("/n/a")
    assert stat.tiers == ("ram", "disk")
    assert (stat.behaviour.faults, stat.behaviour.maps) == (1, 2)
    assert user.call(c.Info()).faults == 1


def test_concurrent_faults_share_one_fill(world: World, user: Client, absent: bytes) -> None:
    other = world.client()
    calls = [
        user.start(c.MmapCube(name="/n/a")),
        other.start(c.MmapCube(name="/n/a")),
        user.start(c.PinCube(name="/n/a")),
        other.start(c.MigrateCube(name="/n/a", tier=TierName.RAM)),
    ]
    assert world.io.names() == [fault_job(world)]
    world.settle()
    results = [call.result() for call in calls]
    frames = [user.fd_of(results[0].handle), other.fd_of(results[1].handle)]
    assert len({os.fstat(fd).st_ino for fd in frames}) == 1
    assert [os.pread(fd, len(absent), 0) for fd in frames] == [absent] * 2
    assert user.stat("/n/a").behaviour.faults == 1
    assert len(world.kernel.parts.residents) == 1


def test_different_payloads_are_filled_side_by_side(world: World, user: Client) -> None:
    for name in "abc":
        user.blob(f"/n/{name}", name.encode() * PAGED)
        user.call(c.Evict(name=f"/n/{name}"))
    calls = [user.start(c.MmapCube(name=f"/n/{name}")) for name in "abc"]
    assert world.io.names() == ["load"] * 3
    for place in (2, 0, 0):
        world.io.finish_at(place)
    for call, name in zip(calls, "abc", strict=True):
        handle = call.result().handle
        assert os.pread(user.fd_of(handle), PAGED, 0) == name.encode() * PAGED


def test_old_versions_fault_like_any_other(world: World, user: Client) -> None:
    for number in range(3):
        user.blob("/n/a", bytes([number]) * PAGED)
        user.call(c.Evict(name="/n/a"))
    for number in (1, 0, 2):
        assert user.mapped(f"/n/a@v{number + 1}") == bytes([number]) * PAGED
    assert len(world.kernel.parts.residents) == 3


def test_a_failed_fill_fails_all_who_wait_and_the_next_one_starts_anew(
    world: World, user: Client
) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    world.plan.fail("load", Errno.EIO)
    calls = [user.start(c.MmapCube(name="/n/a")) for _ in range(3)]
    world.settle()
    for call in calls:
        call.failure(Errno.EIO)
    assert world.kernel.parts.residents.account.used_bytes == 0
    assert user.mapped("/n/a") == bytes(PAGED), "an error in reading is not damage"


# -- unlinked meanwhile --------------------------------------------------------------------------


@pytest.mark.parametrize("is_durable", [True, False], ids=["durable", "pending"])
@pytest.mark.parametrize("what", ["/n/a", "/n/a@v1"])
def test_an_unlink_during_a_fill_wins(
    world: World, user: Client, absent: bytes, is_durable: bool, what: str
) -> None:
    if what != "/n/a":
        user.blob("/n/a", b"newer")
    maps = [user.start(c.MmapCube(name=what)) for _ in range(2)]
    gone = user.start(c.UnlinkCube(name=what))
    if is_durable:
        world.kernel.turn()
        world.io.finish("commit")
    world.io.finish(fault_job(world))
    world.settle()
    for mapping in maps:
        mapping.failure(Errno.ENOENT)
    assert gone.result().versions == 1
    assert user.session.handles == {}
    assert world.kernel.parts.table.quarantined == set()
    assert world.kernel.parts.residents.account.used_bytes == 0


@pytest.mark.parametrize("is_durable", [True, False], ids=["durable", "pending"])
def test_an_unlink_while_a_fault_waits_for_room_wins(
    make_world: MakeWorld, is_durable: bool
) -> None:
    for size in (SMALL, PAGED):
        world = make_world(ram_budget_bytes=PAGED)
        user = world.client()
        user.make("/n")
        user.blob("/n/a", bytes(size))
        user.call(c.Evict(name="/n/a"))
        user.blob("/n/dirty", bytes(PAGED), durability="cache")
        mapping = user.start(c.MmapCube(name="/n/a"))
        assert world.io.names() == ["store"], "the dirty one is written back first"
        gone = user.start(c.UnlinkCube(name="/n/a"))
        if is_durable:
            world.kernel.turn()
            world.io.finish("commit")
        world.settle()
        mapping.failure(Errno.ENOENT)
        assert gone.result().versions == 1
        assert world.kernel.parts.table.quarantined == set()


def test_a_rename_during_a_fill_is_no_unlink(world: World, user: Client, absent: bytes) -> None:
    calls = [user.start(c.ReadCube(name="/n/a")), user.start(c.PinCube(name="/n/a"))]
    user.start(c.RenameCube(name="/n/a", new_name="/n/b"))
    world.settle()
    assert user.read("/n/b") == absent
    assert calls[0].result().payload == absent
    calls[1].failure(Errno.ENOENT)  # what is handed out is what the name means by now
    assert world.kernel.parts.table.quarantined == set()


def test_a_new_version_during_a_fill_is_what_is_handed_out(
    world: World, user: Client, absent: bytes
) -> None:
    mapping = user.start(c.MmapCube(name="/n/a"))
    user.start(c.WriteCube(name="/n/a", payload=b"newer" * 1000, type=CubeType.BLOB))
    while not mapping.is_answered:
        world.settle()
    reply = mapping.result()
    content = os.pread(user.fd_of(reply.handle), reply.size_bytes, 0)
    assert (reply.version, content) in ((1, absent), (2, b"newer" * 1000))


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
def test_a_damaged_page_file_is_never_served(world: World, user: Client, damage: str) -> None:
    written = user.blob("/n/a", os.urandom(PAGED))
    user.blob("/n/other", b"fine")
    user.call(c.Evict(name="/n/a"))
    if damage == "flip":
        world.plan.flip_bit(at=4097)
    elif damage == "truncate":
        world.plan.truncate()
    else:
        world.disk.free(next(iter(world.disk.keys())))
    calls = [user.start(c.MmapCube(name="/n/a")), user.start(c.ReadCube(name="/n/a"))]
    world.settle()
    for call in calls:
        assert call.failure(Errno.ECORRUPT).detail["cube"] == "/n/a"
    for request in (c.MmapCube, c.ReadCube, c.PinCube):
        user.fails(request(name="/n/a"), Errno.ECORRUPT)
    assert user.stat("/n/a").is_quarantined
    assert user.read("/n/other") == b"fine"
    assert world.kernel.parts.residents.account.used_bytes == 0
    actions = [d.action for d in user.call(c.Explain(name="/n/a")).decisions]
    assert actions[-1] == "quarantine"
    assert any("quarantined" in notice for notice in user.call(c.Info()).notices)
    world.crash()
    user = world.client()
    user.fails(c.MmapCube(name="/n/a"), Errno.ECORRUPT)
    user.blob("/n/a", b"a new version is a new payload")
    assert user.read("/n/a") == b"a new version is a new payload"
    user.fails(c.ReadCube(name="/n/a@v1"), Errno.ECORRUPT)
    assert user.unlink("/n/a").versions == 2
    assert world.kernel.parts.table.quarantined == set()
    assert written.version == 1


@pytest.mark.parametrize("how", ["read", "mmap", "pin", "read a part"])
def test_a_damaged_payload_in_the_table_is_never_served(
    world: World, user: Client, how: str
) -> None:
    key = user.blob("/n/a", b"x" * SMALL).id
    world.damage("payloads", key)
    requests: dict[str, c.Call[Any]] = {
        "read": c.ReadCube(name="/n/a"),
        "read a part": c.ReadCube(name="/n/a", offset_bytes=1, length_bytes=2),
        "mmap": c.MmapCube(name="/n/a"),
        "pin": c.PinCube(name="/n/a"),
    }
    user.fails(requests[how], Errno.ECORRUPT)
    user.fails(requests[how], Errno.ECORRUPT)
    assert user.stat("/n/a").is_quarantined
    user.unlink("/n/a")


@pytest.mark.parametrize("table", ["names", "cubes"])
def test_a_damaged_row_reads_as_corrupt_and_harms_no_other(
    world: World, user: Client, table: str
) -> None:
    cube_id = user.write("/n/a", b"x").id
    user.write("/n/b", b"y")
    key = b"/n/a" if table == "names" else cube_id
    whole = world.kernel.parts.table.ledger.get(table, key)
    assert whole is not None
    for at in range(len(whole)):
        world.damage(table, key, at)
        requests: list[c.Call[Any]] = [
            c.ReadCube(name="/n/a"),
            c.StatCube(name="/n/a"),
            c.WriteCube(name="/n/a", payload=b"z"),
            c.MmapCube(name="/n/a"),
            c.SetHeader(name="/n/a"),
            c.RenameCube(name="/n/a", new_name="/n/c"),
            c.HistoryCube(name="/n/a"),
        ]
        for request in requests if at % 16 == 0 else requests[:2]:
            user.fails(request, Errno.ECORRUPT)
        world.damage(table, key, at)
    assert user.read("/n/a") == b"x"
    assert user.read("/n/b") == b"y"


def test_a_damaged_old_version_harms_no_other(world: World, user: Client) -> None:
    cube_id = user.write("/n/a", b"1").id
    user.write("/n/a", b"2")
    world.damage("history", cube_id + (1).to_bytes(4, "big"))
    user.fails(c.ReadCube(name="/n/a@v1"), Errno.ECORRUPT)
    assert user.read("/n/a") == b"2"
    user.write("/n/a", b"3")
    assert user.read("/n/a@v2") == b"2"
    world.damage("history", cube_id + (1).to_bytes(4, "big"))


# -- evicted while somebody waits ----------------------------------------------------------------


def test_a_waiter_may_evict_what_another_waited_for(
    world: World, user: Client, absent: bytes
) -> None:
    """The one who started the fill goes on last; what it waited for may be gone again."""
    other = world.client()
    first = user.start(c.MmapCube(name="/n/a"))
    batch = other.start(
        batch_of(c.MigrateCube(name="/n/a", tier=TierName.RAM), c.Evict(name="/n/a"))
    )
    world.settle()
    assert [item.errno for item in batch.result().results] == [0, 0]
    assert os.pread(user.fd_of(first.result().handle), len(absent), 0) == absent
    assert user.stat("/n/a").behaviour.faults == 2, "the first one's had to be repeated"
    world.fill_ram(other, world.parameters.ram_budget_bytes - 2 * PAGED)
    other.blob("/n/more", bytes(PAGED))  # and reclaim still finds its way
    other.blob("/n/yet-more", bytes(PAGED))
