"""What stands on another payload, when commits fail, daemons die and rows are damaged."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Durability, Finding, Usage
from tests.kernel.conftest import MakeWorld
from tests.kernel.invariants import check_at_rest
from tests.kernel.kv import GRAIN, find, part, write
from tests.kernel.test_bases import LEAF, MIDDLE, ROOT, WHOLE, chain, start_write
from tests.kernel.world import Client, World

__all__ = ["chain"]


def fsck(world: World, *, repair: bool = False) -> list[Finding]:
    return list(world.root.call(c.Fsck(limit=1000, repair=repair)).findings)


def key_of(world: World, name: str) -> bytes:
    """The payload id of a cube's current version."""
    table = world.kernel.parts.table
    row = table.cube_row(table.find_id(name) or b"")
    assert row is not None
    return row.current.payload_id


# -- failed commits -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["stage", "commit"])
def test_a_base_and_its_part_fall_with_the_commit_that_fails(
    world: World, user: Client, step: str
) -> None:
    """The part is in the generation that is filled while the base's is being committed."""
    write(user, "/n/other", [8, 8])
    (world.store.fail_stage if step == "stage" else world.store.fail_commit)(Errno.EIO)
    base = start_write(user, "/n/root", ROOT)
    for name in ("fill", "hash", "check_payload"):
        world.io.finish(name)
    world.kernel.turn()
    if step == "commit":
        assert "commit" in world.io.names()
        extension = start_write(user, "/n/part", MIDDLE, "/n/root")
        for name in ("fill", "hash", "check_payload"):
            world.io.finish(name)
        assert len(world.kernel.parts.prefixes) == 3
        world.settle()
        extension.failure(Errno.EIO)
    world.settle()
    base.failure(Errno.EIO)
    assert find(user, MIDDLE) == ("", 0)
    assert find(user, [8, 8]) == ("/n/other", 2)
    check_at_rest(world.kernel, world.ram, world.disk)
    write(user, "/n/root", ROOT)
    part(user, "/n/part", MIDDLE, "/n/root")
    assert find(user, MIDDLE) == ("/n/part", 2 * GRAIN)


@pytest.mark.parametrize("step", ["stage", "commit"])
def test_a_removal_that_is_not_committed_did_not_happen(
    world: World, chain: Client, step: str
) -> None:
    (world.store.fail_stage if step == "stage" else world.store.fail_commit)(Errno.EIO)
    chain.fails(c.UnlinkCube("/n/root"), Errno.EIO)
    assert find(chain, LEAF) == ("/n/leaf", 3 * GRAIN)
    check_at_rest(world.kernel, world.ram, world.disk)
    reply = chain.call(WHOLE)
    assert len(reply.bases) == 2
    chain.call(c.MunmapCube(reply.handle))
    assert chain.unlink("/n/root").dependents == 2


# -- a daemon that dies ---------------------------------------------------------------------------


def test_a_volatile_base_is_lost_with_all_that_is_volatile_on_it(
    world: World, chain: Client
) -> None:
    """Boot loses them one by one: the first takes the others with it."""
    assert len(world.kernel.parts.table.volatile) == 3
    world.crash()
    again = world.client()
    assert find(again, LEAF) == ("", 0)
    assert again.usage("/n").usage == Usage()
    world.settle()
    assert list(world.disk.keys()) == []


def test_a_lost_base_takes_with_it_what_was_written_back(world: World, chain: Client) -> None:
    for name in ("leaf", "middle"):
        chain.call(c.Evict(f"/n/{name}"))
    world.crash()
    again = world.client()
    assert again.usage("/n").usage == Usage()
    world.settle()
    assert list(world.disk.keys()) == []


def test_what_stands_on_a_durable_base_is_lost_alone(world: World, user: Client) -> None:
    write(user, "/n/root", ROOT, durability=Durability.DURABLE)
    part(user, "/n/part", MIDDLE, "/n/root")
    world.crash()
    again = world.client()
    assert find(again, MIDDLE) == ("/n/root", GRAIN)
    assert again.usage("/n").usage.cubes == 1


def test_a_base_that_is_given_up_under_pressure_takes_its_parts(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=3 * 12 * 1024)
    user = world.client()
    user.make("/n")
    write(user, "/n/root", ROOT)
    part(user, "/n/part", MIDDLE, "/n/root")
    for nth in range(1, 9):
        world.plan.fail("store", Errno.EIO, nth)
    user.call(c.PinCube("/n/part"))  # with its base: neither can go
    for name in ("/n/x", "/n/y"):
        write(user, name, [1, 2])
    user.fails(c.StatCube("/n/x"), Errno.ENOENT)
    assert find(user, MIDDLE) == ("/n/part", 2 * GRAIN)
    user.die()
    world.settle()
    user = world.client()
    for name in ("/n/x", "/n/z"):
        write(user, name, [1, 2])
    world.forget_failures()
    check_at_rest(world.kernel, world.ram, world.disk)
    assert find(user, MIDDLE)[1] in (0, GRAIN)


# -- damage ---------------------------------------------------------------------------------------


def reboot_with(world: World, table: str, key: bytes) -> Client:
    """Flip a bit, and boot. Flipped again, it is whole again."""
    world.damage(table, key)
    world.crash()
    return world.client()


def test_a_part_whose_row_is_damaged_is_neither_found_nor_mapped(
    world: World, chain: Client
) -> None:
    chain.call(c.Sync())
    again = reboot_with(world, "prefixes", key_of(world, "/n/middle"))
    assert find(again, LEAF) == ("/n/root", GRAIN)
    again.fails(WHOLE, Errno.ECORRUPT)
    again.fails(c.PinCube("/n/middle"), Errno.ECORRUPT)
    assert [f.name for f in fsck(world)] == ["/n/middle", "/n/leaf"]
    again.unlink("/n/middle")
    again.fails(c.StatCube("/n/leaf"), Errno.ENOENT)
    assert fsck(world) == []


def test_a_base_whose_row_is_damaged_still_takes_its_parts(world: World, chain: Client) -> None:
    chain.call(c.Sync())
    again = reboot_with(world, "prefixes", key_of(world, "/n/root"))
    assert find(again, LEAF) == ("", 0)
    assert [f.name for f in fsck(world)] == ["/n/root", "/n/middle", "/n/leaf"]
    assert again.unlink("/n/root").dependents == 2
    assert again.usage("/n").usage == Usage()
    world.crash()
    assert world.client().usage("/n").usage == Usage()


def test_a_part_whose_cube_is_damaged_stands_on_nothing_then(world: World, chain: Client) -> None:
    key = chain.stat("/n/middle").id
    payload = key_of(world, "/n/leaf")
    chain.call(c.Sync())
    world.damage("cubes", key)
    chain.world.kernel.parts.table._hot.clear()
    chain.unlink("/n/root")
    chain.fails(c.StatCube("/n/leaf"), Errno.ENOENT)
    assert find(chain, LEAF) == ("", 0)
    assert world.kernel.parts.prefixes.cube_of(payload) is None
    world.damage("cubes", key)
    chain.fails(c.MmapCube("/n/middle", is_whole=True), Errno.ECORRUPT)
    assert [f.name for f in fsck(world)] == ["/n/middle"]
    world.crash()
    again = world.client()
    assert find(again, LEAF) == ("", 0)
    again.fails(c.MmapCube("/n/middle", is_whole=True), Errno.ECORRUPT)
    again.unlink("/n/middle")
    assert again.usage("/n").usage == Usage()


def test_a_row_that_goes_bad_while_the_daemon_runs_is_found_by_fsck(
    world: World, chain: Client
) -> None:
    assert fsck(world) == []
    key = key_of(world, "/n/middle")
    world.damage("prefixes", key)
    assert [f.name for f in fsck(world)] == ["/n/middle"]
    assert [f.action for f in fsck(world, repair=True)] == ["quarantined", "quarantined"]
    assert [f.name for f in fsck(world)] == ["/n/middle", "/n/leaf"], "it stands on that"
    chain.fails(WHOLE, Errno.ECORRUPT)
    assert find(chain, LEAF) == ("/n/root", GRAIN)
    world.damage("prefixes", key)


def test_a_quarantined_base_serves_nobody(world: World, chain: Client) -> None:
    chain.call(c.Evict("/n/root"))
    world.plan.fail("load", Errno.ECORRUPT)
    error = chain.fails(WHOLE, Errno.ECORRUPT)
    assert error.detail["cube"] == "/n/leaf"
    assert find(chain, LEAF) == ("", 0)
    start_write(chain, "/n/more", MIDDLE, "/n/root").failure(Errno.ECORRUPT)
    start_write(chain, "/n/more", MIDDLE, "/n/middle").failure(Errno.ECORRUPT)
    assert [f.name for f in fsck(world)] == ["/n/root", "/n/middle", "/n/leaf"]
    assert chain.unlink("/n/root").dependents == 2
    assert chain.usage("/n").usage == Usage()


def test_many_parts_fall_in_one_commit(world: World, user: Client) -> None:
    write(user, "/n/root", ROOT)
    for number in range(30):
        part(user, f"/n/{number}", [*ROOT, number], "/n/root")
        if number % 3 == 0:
            kept = {**user.stat(f"/n/{number}").attributes, "note": 1}
            user.call(c.SetHeader(f"/n/{number}", attributes=kept))
    user.call(c.Sync())
    commits = world.kernel.parts.table.ledger.commits
    assert user.unlink("/n/root").dependents == 30
    assert world.kernel.parts.table.ledger.commits == commits + 1
    assert user.usage("/n").usage == Usage()
