"""Reclaim: who goes when RAM is short, what is written back first, what may be lost and when."""

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Governance
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import PAGED, Client, World, cache, in_ram

# -- who goes ------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first(owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED))
    owner.read("/n/a")
    owner.mapped("/n/b")
    owner.blob("/n/e", bytes(2 * PAGED))
    assert in_ram(owner, "abcde") == "abe"


def test_the_lowest_priority_goes_before_the_oldest(owner: Client) -> None:
    for name, priority in (("a", 60), ("b", 50), ("c", 40), ("d", 50)):
        owner.blob(f"/n/{name}", bytes(PAGED), governance=Governance(priority=priority))
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abcde") == "abde"
    owner.blob("/n/f", bytes(PAGED))
    assert in_ram(owner, "abcdef") == "adef"


def test_a_new_priority_counts_at_once(owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED))
    owner.call(c.SetHeader(name="/n/d", governance=Governance(priority=10)))
    owner.call(c.SetHeader(name="/n/a", governance=Governance(priority=90)))
    owner.blob("/n/e", bytes(2 * PAGED))
    assert in_ram(owner, "abcde") == "ace"


def test_no_more_goes_than_must(owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED))
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abcde") == "bcde"


def test_what_can_never_fit_costs_nobody_a_frame(owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED))
    request = c.CreateCube(name="/n/e", size_bytes=4 * PAGED + 1)
    error = owner.fails(request, Errno.ENOMEM)
    assert error.detail["need_bytes"] == 4 * PAGED + 4096
    assert in_ram(owner, "abcd") == "abcd"
    owner.make("/q", ram_bytes=PAGED)
    owner.blob("/q/a", bytes(PAGED))
    owner.fails(c.CreateCube(name="/q/b", size_bytes=PAGED + 1), Errno.EDQUOT)
    assert owner.stat("/q/a").tiers == ("ram", "disk")


# -- watermarks ----------------------------------------------------------------------------------


def test_background_reclaim_runs_from_the_high_to_the_low_watermark(
    make_world: MakeWorld,
) -> None:
    world = make_world(ram_budget_bytes=10 * PAGED, ram_high=0.8, ram_low=0.5)
    user = world.client()
    user.make("/n")
    account = world.kernel.parts.residents.account
    for number in range(8):
        user.blob(f"/n/{number}", bytes(PAGED))
    assert account.used_bytes == 8 * PAGED, "at the mark, not above it"
    user.blob("/n/8", bytes(PAGED))
    assert account.used_bytes == 5 * PAGED
    assert in_ram(user, "012345678") == "45678"
    assert user.call(c.Info()).evictions == 4


def test_background_reclaim_ends_where_nothing_can_go(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=10 * PAGED, ram_high=0.8, ram_low=0.5)
    user = world.client()
    user.make("/n")
    for number in range(9):
        user.blob(f"/n/{number}", bytes(PAGED))
        user.call(c.PinCube(name=f"/n/{number}"))
    assert world.kernel.parts.residents.account.used_bytes == 9 * PAGED


# -- write-back ----------------------------------------------------------------------------------


def test_a_dirty_payload_is_on_disk_before_it_goes(small: World, owner: Client) -> None:
    cache(owner, "/n/a", b"dirty" * 1000)
    small.fill_ram(owner, 3 * PAGED)
    pending = owner.start(c.WriteCube(name="/n/e", payload=bytes(PAGED), type=CubeType.BLOB))
    assert small.io.names() == ["store"]
    assert in_ram_now(small) == 2
    small.settle()
    assert pending.result().version == 1
    assert owner.stat("/n/a").tiers == ("disk",)
    owner.unlink("/n/e")
    assert owner.read("/n/a") == b"dirty" * 1000
    actions = [d.action for d in owner.call(c.Explain(name="/n/a")).decisions]
    assert actions == ["write-back", "evict", "fill"]


def test_nobody_waits_for_a_write_back_where_a_clean_one_can_go(
    small: World, owner: Client
) -> None:
    cache(owner, "/n/a")
    for name in "bcd":
        owner.blob(f"/n/{name}", bytes(PAGED))
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abcde") == "acde", "though it was used longest ago"
    assert owner.stat("/n/a").tiers == ("ram",)


def in_ram_now(world: World) -> int:
    """How many payloads are in RAM, asking nobody who would wait."""
    return len(world.kernel.parts.residents)


def test_who_needs_room_together_shares_one_write_back(small: World, owner: Client) -> None:
    cache(owner, "/n/a")
    small.fill_ram(owner, 3 * PAGED)
    calls = [owner.start(c.CreateCube(name=f"/n/{n}", size_bytes=4096)) for n in range(2)]
    assert small.io.names() == ["store"]
    small.settle()
    assert [call.errno() for call in calls] == [0, 0]


def test_who_finds_only_a_write_back_under_way_waits_for_it(small: World, owner: Client) -> None:
    cache(owner, "/n/a")
    small.fill_ram(owner, 3 * PAGED)
    evicted = owner.start(c.Evict(name="/n/a"))
    pending = owner.start(c.CreateCube(name="/n/b", size_bytes=PAGED))
    assert not pending.is_answered
    small.settle()
    assert pending.result().size_bytes == PAGED
    assert evicted.errno() in (0, Errno.EBUSY)


def test_a_payload_that_came_into_use_while_it_was_written_back_stays(
    small: World, owner: Client
) -> None:
    cache(owner, "/n/a", b"x" * PAGED)
    small.fill_ram(owner, 3 * PAGED)
    pending = owner.start(c.CreateCube(name="/n/b", size_bytes=PAGED))
    pinned = owner.start(c.PinCube(name="/n/a"))
    small.settle()
    assert pinned.result().handle
    pending.failure(Errno.ENOMEM)
    assert owner.stat("/n/a").tiers == ("ram", "disk")


def test_write_back_comes_by_itself_after_a_while(world: World, user: Client) -> None:
    cache(user, "/n/a")
    assert user.stat("/n/a").tiers == ("ram",)
    world.pass_time(world.parameters.writeback_delay_ns - 1)
    assert user.stat("/n/a").tiers == ("ram",)
    world.pass_time(1)
    assert user.stat("/n/a").tiers == ("ram", "disk")
    assert user.call(c.Info()).tiers[0].dirty_bytes == 0


def test_write_back_of_what_is_unlinked_leaves_no_page_file(world: World, user: Client) -> None:
    cache(user, "/n/a")
    world.clock.advance(world.parameters.writeback_delay_ns)
    world.kernel.turn()
    assert world.io.names() == ["store"]
    gone = user.start(c.UnlinkCube(name="/n/a"))
    world.kernel.turn()
    world.io.finish("commit")
    assert gone.result().versions == 1
    world.io.finish("free")  # on another thread, and faster: the file comes after it
    world.settle()
    assert list(world.disk.keys()) == []
    assert world.kernel.parts.residents.account.used_bytes == 0
