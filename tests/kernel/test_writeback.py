"""Write-back that fails, and write-back at the end and at the beginning."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Durability, TierName
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.invariants import check_always
from tests.kernel.world import PAGED, Client, World, cache, in_ram

# -- write-back that fails -----------------------------------------------------------------------


def fail_stores(world: World, errno: Errno = Errno.ENOSPC, count: int = 20) -> None:
    """No page file can be written for now."""
    for nth in range(1, count + 1):
        world.plan.fail("store", errno, nth)


def test_a_failing_write_back_loses_nothing_while_there_is_room(
    world: World, user: Client, surprises: list[object]
) -> None:
    cache(user, "/n/a", b"x" * PAGED)
    fail_stores(world)
    world.pass_time(world.parameters.writeback_delay_ns)
    user.fails(c.Sync(), Errno.ENOSPC)
    user.fails(c.Evict(name="/n/a"), Errno.ENOSPC)
    user.fails(c.MigrateCube(name="/n/a", tier=TierName.DISK), Errno.ENOSPC)
    assert user.read("/n/a") == b"x" * PAGED
    assert user.stat("/n/a").tiers == ("ram",)
    last = user.call(c.Explain(name="/n/a")).decisions[-1]
    assert last.action == "write-back failed"
    assert "ENOSPC" in last.reason
    surprises.clear()  # the failure in the background is in the log


def test_a_failing_write_back_loses_the_payload_where_room_is_needed(
    small: World, owner: Client
) -> None:
    cache(owner, "/n/a")
    cache(owner, "/n/b")
    small.fill_ram(owner, 2 * PAGED)
    start = owner.call(c.Watch()).next_seq
    fail_stores(small)
    made = owner.call(c.CreateCube(name="/n/c", size_bytes=PAGED))
    assert made.size_bytes == PAGED
    owner.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert owner.stat("/n/b").tiers == ("ram",), "one was enough"
    events = owner.call(c.Watch(since_seq=start)).events
    assert [(event.kind.value, event.name) for event in events] == [("lose", "/n/a")]


def test_only_the_lost_versions_go(small: World, owner: Client) -> None:
    owner.blob("/n/a", b"durable", durability=Durability.CACHE)  # small: in the table
    cache(owner, "/n/a")
    owner.call(c.SetHeader(name="/n/a", attributes={"k": 1}))
    small.fill_ram(owner, 3 * PAGED)
    fail_stores(small)
    owner.call(c.CreateCube(name="/n/c", size_bytes=PAGED))
    stat = owner.stat("/n/a")
    assert (stat.version, stat.attributes) == (1, {})
    assert owner.read("/n/a") == b"durable"
    assert [s.version for s in owner.call(c.HistoryCube(name="/n/a")).versions] == [1]
    assert owner.blob("/n/a", b"next").version == 4, "numbers of lost versions are not used again"


def test_durable_payloads_are_never_lost(small: World, owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", name.encode() * PAGED)
    fail_stores(small)
    for number in range(3):
        owner.call(c.CreateCube(name=f"/n/{number}", size_bytes=PAGED))
    for name in "abcd":
        assert owner.read(f"/n/{name}") == name.encode() * PAGED


def test_a_held_payload_is_not_lost(small: World, owner: Client) -> None:
    cache(owner, "/n/a", b"x" * PAGED)
    small.fill_ram(owner, 3 * PAGED)
    fail_stores(small)
    pending = owner.start(c.CreateCube(name="/n/b", size_bytes=PAGED))
    pinned = owner.start(c.PinCube(name="/n/a"))
    small.settle()
    pending.failure(Errno.ENOMEM)
    assert pinned.result().handle
    assert owner.read("/n/a") == b"x" * PAGED


def test_a_payload_whose_unlink_is_under_way_is_waited_for(small: World, owner: Client) -> None:
    cache(owner, "/n/a")
    small.fill_ram(owner, 3 * PAGED)
    fail_stores(small)
    pending = owner.start(c.CreateCube(name="/n/b", size_bytes=PAGED))
    gone = owner.start(c.UnlinkCube(name="/n/a"))
    small.settle()
    assert gone.result().versions == 1
    assert pending.result().size_bytes == PAGED


@pytest.mark.parametrize("step", ["stage", "commit"])
def test_where_not_even_the_loss_can_be_recorded_who_needs_room_is_told(
    small: World, owner: Client, step: str
) -> None:
    """Disk and table full at once: everything stays, and nobody waits for ever."""
    cache(owner, "/n/a", b"x" * PAGED)
    small.fill_ram(owner, 3 * PAGED)
    fail_stores(small)
    (small.store.fail_stage if step == "stage" else small.store.fail_commit)(Errno.ENOSPC)
    owner.fails(c.CreateCube(name="/n/b", size_bytes=PAGED), Errno.ENOMEM)
    assert owner.read("/n/a") == b"x" * PAGED
    assert owner.stat("/n/a").tiers == ("ram",)


def test_background_reclaim_goes_on_past_what_cannot_be_written_back(
    make_world: MakeWorld,
) -> None:
    world = make_world(ram_budget_bytes=10 * PAGED, ram_high=0.8, ram_low=0.5)
    user = world.client()
    user.make("/n")
    for number in range(4):
        cache(user, f"/n/{number}")
    user.blob("/n/4", bytes(PAGED))
    fail_stores(world, count=2)
    user.call(c.CreateCube(name="/n/8", size_bytes=4 * PAGED))
    assert world.kernel.parts.residents.account.used_bytes == 6 * PAGED
    assert in_ram(user, "01234") == "01"
    check_always(world.kernel)


def stores(world: World) -> int:
    """Page files that were begun so far."""
    return world.plan.calls["store"]


def test_a_write_back_that_failed_is_tried_again_ever_more_rarely(
    world: World, user: Client
) -> None:
    cache(user, "/n/a", b"x" * PAGED)
    fail_stores(world, count=9)
    world.pass_time(world.parameters.writeback_delay_ns)
    assert stores(world) == 1
    for number, pause_s in enumerate((1, 2, 4, 8, 16, 32, 60, 60), start=1):
        world.pass_time(pause_s * SECOND_NS - 1)
        assert stores(world) == number
        world.pass_time(1)
        assert stores(world) == number + 1
    assert user.stat("/n/a").tiers == ("ram",)
    world.pass_time(60 * SECOND_NS)
    assert user.stat("/n/a").tiers == ("ram", "disk")
    world.pass_time(3600 * SECOND_NS)
    assert stores(world) == 10, "it is done"
    world.crash()
    assert world.client().read("/n/a") == b"x" * PAGED


def test_what_was_written_back_otherwise_or_removed_is_not_tried_again(
    world: World, user: Client
) -> None:
    cache(user, "/n/synced")
    cache(user, "/n/gone")
    fail_stores(world, count=2)
    world.pass_time(world.parameters.writeback_delay_ns)
    user.unlink("/n/gone")
    user.call(c.Sync())
    done = stores(world)
    world.pass_time(3600 * SECOND_NS)
    assert stores(world) == done


@pytest.mark.parametrize("is_evicted", [False, True])
def test_a_write_back_whose_commit_failed_is_recorded_again(
    world: World, user: Client, is_evicted: bool
) -> None:
    cache(user, "/n/a", b"x" * PAGED)
    world.clock.advance(world.parameters.writeback_delay_ns)
    world.kernel.turn()
    world.io.finish("store")
    if is_evicted:
        user.start(c.Evict(name="/n/a"))
        assert len(world.kernel.parts.residents) == 0
    world.store.fail_commit(Errno.EIO)
    world.settle()
    assert len(world.kernel.parts.table.volatile) == 1
    world.pass_time(SECOND_NS)
    assert world.kernel.parts.table.volatile == {}
    world.crash()
    assert world.client().read("/n/a") == b"x" * PAGED


# -- the end and the beginning -------------------------------------------------------------------


def test_sync_leaves_nothing_dirty(world: World, user: Client) -> None:
    for number in range(3):
        cache(user, f"/n/{number}", bytes([number]) * PAGED)
    user.call(c.Sync())
    world.crash()
    user = world.client()
    for number in range(3):
        assert user.read(f"/n/{number}") == bytes([number]) * PAGED


def test_sync_is_not_disturbed_by_what_goes_meanwhile(world: World, user: Client) -> None:
    for number in range(3):
        cache(user, f"/n/{number}")
    synced = user.start(c.Sync())
    gone = [user.start(c.UnlinkCube(name=f"/n/{number}")) for number in (1, 2)]
    world.kernel.turn()
    world.io.finish("commit")
    world.settle()
    synced.result()
    assert [call.errno() for call in gone] == [0, 0]


def test_sync_tells_when_what_it_did_was_undone(world: World, user: Client) -> None:
    """The first write-back's record fails with somebody's commit while the second is written."""
    for number in range(2):
        cache(user, f"/n/{number}", bytes([number]) * PAGED)
    synced = user.start(c.Sync())
    world.io.finish("store")
    world.store.fail_commit(Errno.EIO)
    world.kernel.turn()
    world.io.finish("commit")
    world.settle()
    if synced.errno() == 0:
        world.crash()
        user = world.client()
        for number in range(2):
            assert user.read(f"/n/{number}") == bytes([number]) * PAGED
    user.call(c.Sync())
    world.crash()
    user = world.client()
    for number in range(2):
        assert user.read(f"/n/{number}") == bytes([number]) * PAGED


def test_a_cache_payload_that_was_not_written_back_is_lost_with_the_crash(
    world: World, user: Client
) -> None:
    cache(user, "/n/a")
    user.blob("/n/b", b"durable")
    cache(user, "/n/b")
    world.crash()
    world.settle()
    user = world.client()
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert user.read("/n/b") == b"durable"
    assert user.usage("/n").usage.cubes == 1


@pytest.mark.parametrize("table", ["cubes", "history", "volatile"])
def test_a_damaged_row_of_a_lost_payload_does_not_keep_the_daemon_from_booting(
    world: World, user: Client, table: str
) -> None:
    cube_id = user.blob("/n/a", b"first", durability=Durability.CACHE).id
    cache(user, "/n/a")
    user.write("/n/b", b"fine")
    key = {
        "cubes": cube_id,
        "history": cube_id + (1).to_bytes(4, "big"),
        "volatile": next(iter(world.kernel.parts.table.volatile)),
    }[table]
    world.damage(table, key)
    world.crash()
    world.settle()
    assert world.client().read("/n/b") == b"fine"
    if table != "volatile":  # which is not needed: another row has the same fact
        world.damage(table, key)  # the bit flips back: the end of a test looks at all rows
        world.crash()
        world.settle()
    assert world.client().read("/n/a") == b"first"


def test_time_alone_evicts_nothing(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    world.pass_time(3600 * SECOND_NS)
    assert user.stat("/n/a").tiers == ("ram", "disk")
