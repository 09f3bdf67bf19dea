"""A disk that is full, fails or hangs: bypassed, tried again, told of, and back by itself."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.digest import Manifest
from libmem.abi.errors import Errno
from libmem.abi.structs import Durability
from memosd.kernel.residents import Resident
from memosd.kernel.tierhealth import TierHealth, WatchedTier
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS, Job
from tests.kernel.stored import PAYLOAD, write
from tests.kernel.world import KIB, PAGED, Client, World, cache, in_ram


def fill_disk(world: World, errno: Errno = Errno.ENOSPC) -> None:
    """From now on no page file can be written."""
    world.plan.refuse("store", errno)


def notices(user: Client) -> str:
    """What `info` has to tell."""
    return "; ".join(user.call(c.Info()).notices)


def stores(world: World) -> int:
    """Page files that were begun so far."""
    return world.plan.calls["store"]


@pytest.mark.parametrize("errno", [Errno.ENOSPC, Errno.EIO])
def test_a_full_disk_is_told_of_left_alone_and_used_again_when_there_is_room(
    world: World, user: Client, errno: Errno
) -> None:
    for name in "abcdef":
        cache(user, f"/n/{name}", name.encode() * PAGED)
    fill_disk(world, errno)
    world.pass_time(world.parameters.writeback_delay_ns)
    told = notices(user)
    assert "takes no page files" in told
    assert errno.name in told
    assert "6 cache payloads stay in RAM" in told
    assert in_ram(user, "abcdef") == "abcdef"
    begun = stores(world)
    assert begun < 6, "it is left alone"
    world.pass_time(SECOND_NS)
    assert stores(world) == begun + 1, "but for one try"
    world.pass_time(SECOND_NS)
    assert stores(world) == begun + 1, "ever more rarely"
    assert user.read("/n/a") == b"a" * PAGED
    user.blob("/n/small", b"the table has room")
    world.plan.mend()
    world.pass_time(4 * SECOND_NS)
    assert world.kernel.parts.table.volatile == {}, "one success, and all the others follow"
    assert notices(user) == ""


def test_writes_of_cache_payloads_go_on_in_ram_while_the_disk_fails(
    make_world: MakeWorld,
) -> None:
    world = make_world(ram_budget_bytes=16 * PAGED, ram_high=0.9, ram_low=0.5)
    user = world.client()
    user.make("/n")
    for name in "abcd":
        user.blob(f"/n/{name}", bytes(PAGED))
    fill_disk(world, Errno.EIO)
    for number in range(12):
        cache(user, f"/n/{number}")
        world.pass_time(SECOND_NS)
    assert [user.stat(f"/n/{number}").tiers for number in range(12)] == [("ram",)] * 12
    assert in_ram(user, "abcd") == "", "what lies on disk went for them"


def test_where_clean_ones_can_go_nothing_is_lost_to_a_failing_disk(
    small: World, owner: Client
) -> None:
    cache(owner, "/n/a", b"x" * PAGED)
    for name in "bcd":
        owner.blob(f"/n/{name}", bytes(PAGED))
    fill_disk(small)
    for number in range(3):
        owner.call(c.CreateCube(name=f"/n/{number}", size_bytes=PAGED))
    assert owner.read("/n/a") == b"x" * PAGED


def hung(world: World) -> ExitStack:
    """A store has been under way for far too long, and goes on."""
    stack = ExitStack()
    health = world.kernel.parts.disk_health
    stack.enter_context(health.observe("store", "store", lambda: PAGED))
    world.clock.advance(6 * SECOND_NS)
    return stack


def test_where_clean_ones_can_go_nothing_is_lost_to_a_disk_that_hangs(
    make_world: MakeWorld,
) -> None:
    world = make_world(
        ram_budget_bytes=31 * PAGED, ram_high=1.0, ram_low=1.0, writeback_delay_ns=3600 * SECOND_NS
    )
    user = world.client()
    user.make("/n")
    for number in range(17):
        cache(user, f"/n/d{number}", bytes([number]) * PAGED)
    for number in range(14):
        user.blob(f"/n/c{number}", bytes(PAGED))
    with hung(world):
        for number in range(14):
            user.call(c.CreateCube(name=f"/n/new{number}", size_bytes=PAGED))
        assert all(user.stat(f"/n/d{number}").tiers == ("ram",) for number in range(17))
        assert all(user.stat(f"/n/c{number}").tiers == ("disk",) for number in range(14))


def test_background_reclaim_looks_for_clean_ones_once_in_a_while_where_the_disk_hangs(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(
        ram_budget_bytes=400 * PAGED, ram_high=0.2, ram_low=0.1, writeback_delay_ns=3600 * SECOND_NS
    )
    user = world.client()
    user.make("/n")
    residents = world.kernel.parts.residents
    victims_by_level = residents.victims_by_level
    seen: list[Resident] = []

    def counted(*whom: Any) -> Iterator[Resident]:
        for victim in victims_by_level(*whom):
            seen.append(victim)
            yield victim

    with hung(world):
        monkeypatch.setattr(residents, "victims_by_level", counted)
        for number in range(200):
            cache(user, f"/n/d{number}")
        user.blob("/n/clean", bytes(PAGED))
        assert len(seen) <= 100, "all of them once, when there were few more than the watermark"
        assert user.stat("/n/clean").tiers == ("ram", "disk")
        world.pass_time(SECOND_NS)
        cache(user, "/n/last")
        assert user.stat("/n/clean").tiers == ("disk",)
        assert len(seen) <= 310
    cache(user, "/n/back")
    assert residents.account.used_bytes <= 80 * PAGED, "the disk is back"


def hang(world: World) -> list[Job]:
    """The stores that are due begin, and do not end."""
    world.clock.advance(world.parameters.writeback_delay_ns)
    world.kernel.turn()
    stuck = [job for job in world.io.jobs if job.name == "store"]
    world.io.jobs[:] = [job for job in world.io.jobs if job.name != "store"]
    return stuck


def test_who_needs_room_does_not_wait_for_a_disk_that_hangs(small: World, owner: Client) -> None:
    cache(owner, "/n/a")
    small.fill_ram(owner, 3 * PAGED)
    stuck = hang(small)
    assert len(stuck) == 1
    with small.kernel.parts.disk_health.observe("store", "store", lambda: PAGED):
        pending = owner.start(c.CreateCube(name="/n/b", size_bytes=PAGED))
        for _ in range(8):
            small.clock.advance(SECOND_NS)
            small.kernel.turn()
        error = pending.failure(Errno.ENOMEM)
        assert error.detail["pinned_bytes"] >= 3 * PAGED
        assert "hangs: a store is under way for" in notices(owner)
    small.io.jobs += stuck
    small.settle()
    assert notices(owner) == ""
    cache(owner, "/n/b")
    assert owner.stat("/n/b").tiers[0] == "ram"


def test_a_large_store_that_is_encoded_on_its_way_is_not_taken_for_a_hang(world: World) -> None:
    health = TierHealth("disk", world.clock)
    told = []

    def blocks() -> Iterator[bytes]:
        for passed_s in (7, 20):  # at 150 MB/s it takes the first of them
            world.clock.advance(passed_s * SECOND_NS)
            told.append(health.hanging())
        yield bytes(PAGED)

    WatchedTier(world.disk, health).store_blocks(b"k" * 16, blocks(), 10**9)
    world.disk.free(b"k" * 16)
    assert told == [None, ("store", 27.0)]
    assert health.store_bytes_per_s == pytest.approx(PAGED / 27), "what was kept counts"


def test_a_store_in_another_form_is_told_what_it_is_made_of(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = world.kernel.parts.disk
    store_blocks, sizes = disk.store_blocks, []

    def spy(key: bytes, blocks: Iterable[bytes], made_of_bytes: int) -> Manifest:
        sizes.append(made_of_bytes)
        return store_blocks(key, blocks)

    monkeypatch.setattr(disk, "store_blocks", spy)
    write(user, "/n/a", durability=Durability.DURABLE)
    assert sizes == [len(PAYLOAD)]


def test_a_disk_that_cannot_be_read_is_told_of(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    for _ in range(3):
        world.plan.fail("load", Errno.EIO)
        user.fails(c.PinCube(name="/n/a"), Errno.EIO)
    assert "cannot be read" in notices(user)
    assert user.read("/n/a") == bytes(PAGED)
    assert notices(user) == ""


# -- write-back keeps out of the way -------------------------------------------------------------


def test_write_back_leaves_a_thread_to_faults(make_world: MakeWorld) -> None:
    world = make_world(io_threads=3)
    user = world.client()
    user.make("/n")
    for number in range(6):
        cache(user, f"/n/{number}")
    world.clock.advance(world.parameters.writeback_delay_ns)
    world.kernel.turn()
    assert world.io.names() == ["store"] * 2
    world.settle()
    assert world.kernel.parts.table.volatile == {}


def test_write_back_takes_its_share_of_the_disk_and_no_more(make_world: MakeWorld) -> None:
    world = make_world(writeback_share=0.5, ram_budget_bytes=1024 * KIB)
    user = world.client()
    user.make("/n")
    health = world.kernel.parts.disk_health
    with health.observe("store", "store", lambda: 4 * PAGED):
        world.clock.advance(SECOND_NS)  # four payloads a second: two for write-back
    for number in range(12):
        cache(user, f"/n/{number}")
    world.pass_time(world.parameters.writeback_delay_ns)
    at_first = 12 - len(world.kernel.parts.table.volatile)
    assert 2 <= at_first <= 4, "what a second's rest had saved"
    health._paces["store"].bytes, health._paces["store"].ns = 4.0 * PAGED, 1.0 * SECOND_NS
    world.pass_time(2 * SECOND_NS)
    more = 12 - len(world.kernel.parts.table.volatile) - at_first
    assert 1 <= more <= 5


def test_the_share_yields_where_ram_is_short(make_world: MakeWorld) -> None:
    world = make_world(writeback_share=0.01, ram_budget_bytes=12 * PAGED, ram_high=0.8, ram_low=0.5)
    user = world.client()
    user.make("/n")
    health = world.kernel.parts.disk_health
    with health.observe("store", "store", lambda: PAGED):
        world.clock.advance(SECOND_NS)
    for number in range(11):
        cache(user, f"/n/{number}")
    assert world.kernel.parts.residents.account.used_bytes <= 10 * PAGED
    assert user.read("/n/0") == bytes(PAGED)


def test_dirty_victims_are_written_back_before_their_room_is_needed(
    make_world: MakeWorld,
) -> None:
    world = make_world(ram_budget_bytes=10 * PAGED, ram_high=0.9, ram_low=0.5)
    user = world.client()
    user.make("/n")
    for number in range(6):
        cache(user, f"/n/{number}")
    assert user.stat("/n/0").tiers == ("ram", "disk"), "before its delay has passed"
    assert len(world.kernel.parts.residents) == 6


def test_a_write_back_is_no_use(make_world: MakeWorld) -> None:
    """It changes nothing about who goes next."""
    world = make_world(ram_budget_bytes=4 * PAGED)
    user = world.client()
    user.make("/n")
    cache(user, "/n/a")
    for name in "bcd":
        user.blob(f"/n/{name}", bytes(PAGED))
    world.pass_time(world.parameters.writeback_delay_ns)
    assert user.stat("/n/a").tiers == ("ram", "disk")
    user.blob("/n/e", bytes(PAGED))
    assert in_ram(user, "abcde") == "bcde"


# -- memory that is given back, and clients that keep it -----------------------------------------


def test_memory_is_charged_until_it_is_given_back(make_world: MakeWorld) -> None:
    size = 128 * KIB
    world = make_world(ram_budget_bytes=2 * size)
    user = world.client()
    user.make("/n")
    for name in "ab":
        user.blob(f"/n/{name}", bytes(size))
    account = world.kernel.parts.residents.account
    pending = user.start(c.CreateCube(name="/n/c", size_bytes=size))
    assert world.io.names() == ["discard"]
    assert account.used_bytes == 2 * size
    assert not pending.is_answered
    world.settle()
    assert pending.result().size_bytes == size
    assert in_ram(user, "ab") == "b", "one was enough"


def test_a_client_that_pins_everything_is_the_others_loss_until_it_dies(
    small: World, owner: Client
) -> None:
    owner.blob("/n/late", bytes(PAGED))
    hog = small.client()
    for number in range(4):
        hog.blob(f"/n/{number}", bytes(PAGED))
        hog.call(c.PinCube(name=f"/n/{number}"))
    error = owner.fails(c.MmapCube(name="/n/late"), Errno.ENOMEM)
    assert error.detail["pinned_bytes"] == 4 * PAGED
    assert error.detail["free_bytes"] == 0
    assert owner.write("/n/small", b"the table needs no frame").version == 1
    hog.die()
    assert owner.mapped("/n/late") == bytes(PAGED)


def test_a_budget_smaller_than_one_cube_refuses_it_and_serves_the_others(
    make_world: MakeWorld,
) -> None:
    world = make_world(ram_budget_bytes=PAGED)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(PAGED))
    error = user.fails(c.CreateCube(name="/n/b", size_bytes=PAGED + 1), Errno.ENOMEM)
    assert error.detail["need_bytes"] > error.detail["free_bytes"]
    user.blob("/n/c", bytes(PAGED))
    assert user.read("/n/a") == bytes(PAGED)
