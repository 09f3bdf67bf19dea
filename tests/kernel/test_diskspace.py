"""Room on disk: cache payloads give way, durable ones never, each loss with its reason."""

import itertools

import pytest

from libmem.abi import calls as c
from libmem.abi.control import Limits, TierLimits
from libmem.abi.errors import Errno
from libmem.abi.structs import Durability, Governance
from memosd.kernel import diskspace
from memosd.kernel.wait import Completion
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import PAGED, Client, World, cache, charge_of


def full_world(make_world: MakeWorld, payloads: int = 4, **changes: float) -> tuple[World, Client]:
    """A disk for so many payloads."""
    world = make_world(**changes)
    spaces = world.kernel.parts.namespaces
    spaces.budget_bytes = payloads * charge_of(world, PAGED)
    user = world.client()
    user.make("/n")
    return world, user


def kept(world: World, user: Client, name: str) -> None:
    """A cache payload that lies on disk only."""
    cache(user, name)
    user.call(c.Evict(name=name))
    world.clock.advance(1000)


def exist(user: Client, names: str, folder: str = "/n") -> str:
    """Which of /n/a, /n/b, ... are still there."""
    return "".join(n for n in names if user.start(c.StatCube(name=f"{folder}/{n}")).errno() == 0)


@pytest.mark.parametrize("how", ["write", "create"])
def test_the_least_recently_used_cache_payload_gives_way(make_world: MakeWorld, how: str) -> None:
    world, user = full_world(make_world)
    user.blob("/n/a", bytes(PAGED))
    for name in "bcd":
        kept(world, user, f"/n/{name}")
    user.read("/n/b")
    user.call(c.Evict(name="/n/b"))
    start = user.call(c.Watch()).next_seq
    if how == "write":
        user.blob("/n/e", bytes(PAGED))
    else:
        made = user.call(c.CreateCube(name="/n/e", size_bytes=PAGED))
        user.call(c.SealCube(handle=made.handle))
    assert exist(user, "abcde") == "abde"
    events = [(e.kind.value, e.name) for e in user.call(c.Watch(since_seq=start)).events]
    assert ("lose", "/n/c") in events
    reasons = {made.reason for _, made in world.kernel.parts.heat.recent if made.action == "lost"}
    assert reasons == {"room was needed on disk"}
    assert len(list(world.disk.keys())) == 4


def test_durable_payloads_never_give_way(make_world: MakeWorld) -> None:
    _, user = full_world(make_world)
    for name in "abcd":
        user.blob(f"/n/{name}", bytes(PAGED))
        user.call(c.Evict(name=f"/n/{name}"))
    error = user.fails(c.CreateCube(name="/n/e", size_bytes=PAGED), Errno.ENOSPC)
    assert error.detail["free_bytes"] == 0
    assert exist(user, "abcd") == "abcd"


def test_a_durable_version_of_a_cube_that_is_a_cache_now_never_gives_way(
    make_world: MakeWorld,
) -> None:
    world, user = full_world(make_world, 3)
    user.blob("/n/a", b"durable" * 1000, durability=Durability.DURABLE)
    kept(world, user, "/n/a")
    user.blob("/n/b", bytes(2 * PAGED))
    assert user.read("/n/a") == b"durable" * 1000
    assert user.stat("/n/a").version == 1


def test_what_is_held_in_ram_does_not_give_way(make_world: MakeWorld) -> None:
    world, user = full_world(make_world, 2)
    for name in "ab":
        kept(world, user, f"/n/{name}")
        user.call(c.PinCube(name=f"/n/{name}"))
    user.fails(c.CreateCube(name="/n/c", size_bytes=PAGED), Errno.ENOSPC)
    assert exist(user, "ab") == "ab"


def test_those_on_disk_only_go_before_those_in_ram(make_world: MakeWorld) -> None:
    world, user = full_world(make_world, 2)
    for name in "ab":
        kept(world, user, f"/n/{name}")
    user.read("/n/a")
    user.blob("/n/c", bytes(PAGED))
    assert exist(user, "abc") == "ac"
    user.blob("/n/d", bytes(PAGED))
    assert exist(user, "acd") == "cd"


def test_a_quota_is_kept_among_the_namespaces_own(make_world: MakeWorld) -> None:
    world = make_world()
    user = world.client()
    user.make("/n")
    user.make("/q", disk_bytes=2 * charge_of(world, PAGED))
    kept(world, user, "/n/a")
    for name in "ab":
        kept(world, user, f"/q/{name}")
    user.blob("/q/c", bytes(PAGED))
    user.fails(c.StatCube(name="/q/a"), Errno.ENOENT)
    assert user.stat("/q/b").name == "/q/b"
    assert exist(user, "a") == "a"


def test_a_moved_payload_gives_way_where_it_is_now(make_world: MakeWorld) -> None:
    world = make_world()
    user = world.client()
    user.make("/n")
    user.make("/q", disk_bytes=2 * charge_of(world, PAGED))
    for name in "ab":
        kept(world, user, f"/q/{name}")
    user.blob("/q/c", bytes(PAGED))  # from now on there is an order
    user.call(c.RenameCube(name="/q/b", new_name="/n/b"))
    kept(world, user, "/q/d")
    user.blob("/q/e", bytes(PAGED))
    assert exist(user, "b") == "b"
    user.fails(c.StatCube(name="/q/d"), Errno.ENOENT)


def test_the_cube_that_is_written_does_not_give_way_to_itself(make_world: MakeWorld) -> None:
    world, user = full_world(make_world, 2)
    kept(world, user, "/n/a")
    kept(world, user, "/n/b")
    assert (
        user.call(c.CreateCube(name="/n/a", size_bytes=PAGED, expected_version=1)).size_bytes
        == PAGED
    )
    assert exist(user, "ab") == "a"


def test_priorities_count(make_world: MakeWorld) -> None:
    _, user = full_world(make_world, 2)
    for name, priority in (("a", 90), ("b", 10)):
        user.blob(
            f"/n/{name}", bytes(PAGED), durability=Durability.CACHE,
            governance=Governance(priority=priority),
        )  # fmt: skip
        user.call(c.Evict(name=f"/n/{name}"))
    user.blob("/n/c", bytes(PAGED))
    assert exist(user, "abc") == "ac"


def test_the_order_outlives_the_daemon(make_world: MakeWorld) -> None:
    world, user = full_world(make_world, 4)
    for name in "abc":
        kept(world, user, f"/n/{name}")
    user.read("/n/a")
    world.pass_time(world.parameters.heat_flush_ns)
    world.crash()
    world.kernel.parts.namespaces.budget_bytes = 3 * charge_of(world, PAGED)
    user = world.client()
    user.blob("/n/d", bytes(PAGED))
    assert exist(user, "abcd") == "acd"


def test_the_background_keeps_room(make_world: MakeWorld) -> None:
    world, user = full_world(make_world, 10, disk_high=0.8, disk_low=0.5)
    for number in range(9):
        kept(world, user, f"/n/{number}")
    world.settle()
    assert exist(user, "012345678") == "45678"
    assert world.kernel.parts.namespaces.used_bytes == 5 * charge_of(world, PAGED)


def test_the_background_rests_where_nothing_may_go(make_world: MakeWorld) -> None:
    world, user = full_world(make_world, 4, disk_high=0.5, disk_low=0.2)
    for name in "abc":
        user.blob(f"/n/{name}", bytes(PAGED))
    world.pass_time(60 * SECOND_NS)
    assert exist(user, "abc") == "abc"


def test_a_loss_that_cannot_be_recorded_loses_nothing(make_world: MakeWorld) -> None:
    world, user = full_world(make_world, 2)
    for name in "ab":
        kept(world, user, f"/n/{name}")
    world.store.fail_commit(Errno.EIO)
    user.fails(c.CreateCube(name="/n/c", size_bytes=PAGED), Errno.ENOSPC)
    assert exist(user, "ab") == "ab"
    user.blob("/n/c", bytes(PAGED))
    assert exist(user, "abc") == "bc"


@pytest.mark.parametrize("versions", [1, 2])
def test_the_order_forgets_what_is_gone(make_world: MakeWorld, versions: int) -> None:
    world = make_world()
    user = world.client()
    user.make("/n")
    user.make("/q", disk_bytes=charge_of(world, PAGED))
    kept(world, user, "/q/a")
    user.blob("/q/b", bytes(PAGED))  # from now on there is an order
    for number in range(10):
        for _ in range(versions):
            kept(world, user, f"/n/{number}")
        user.unlink(f"/n/{number}")
    world.settle()
    disk = world.kernel.disk_space
    assert disk._policy is not None
    assert list(world.kernel.parts.table.scan_kept(b"")) == []
    assert (disk._entries, disk._groups, disk._policy._entries) == ({}, {}, {})  # type: ignore[attr-defined]


OLDEST_FIRST = "012345"


@pytest.mark.parametrize("stretch", range(12))
def test_an_order_that_is_made_while_groups_change_is_made_again(
    make_world: MakeWorld, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskspace, "_STRETCH", 1)
    world = make_world()
    user = world.client()
    user.make("/n")
    for name in OLDEST_FIRST:
        kept(world, user, f"/n/f/{name}")
    limits = Limits(disk=TierLimits(max_bytes=6 * charge_of(world, PAGED)))
    world.root.call(c.SetLimits("/n", limits))
    disk, turns = world.kernel.disk_space, itertools.count()
    turn = disk._next_turn

    def next_turn() -> Completion[None]:
        if next(turns) == stretch:  # the folder becomes a group of its own, as full as the other
            world.root.start(c.SetLimits("/n/f", limits))
        return turn()

    monkeypatch.setattr(disk, "_next_turn", next_turn)
    user.blob("/n/f/x", bytes(PAGED))
    assert next(turns) > stretch, "they changed meanwhile"
    for number in range(1, 6):
        assert exist(user, OLDEST_FIRST, "/n/f") == OLDEST_FIRST[number:]
        user.blob(f"/n/f/x{number}", bytes(PAGED))
    assert exist(user, OLDEST_FIRST, "/n/f") == ""


def test_who_regroups_without_pause_waits_for_the_order(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskspace, "_STRETCH", 1)
    world, user = full_world(make_world, 9)
    for number in range(9):
        kept(world, user, f"/n/{number}")
    granted = Limits(disk=TierLimits(max_bytes=1 << 40))
    root = world.root
    root.call(c.SetLimits("/n/f", granted))  # there is no order any more
    turns: list[Completion[None]] = []

    def next_turn() -> Completion[None]:
        turns.append(Completion())
        return turns[-1]

    monkeypatch.setattr(world.kernel.disk_space, "_next_turn", next_turn)
    made = user.start(c.CreateCube(name="/n/x", size_bytes=PAGED))
    asked = []
    for number in range(20):  # each sooner than all rows are read
        asked.append(root.start(c.SetLimits(f"/n/f{number}", granted)))
        for _ in range(3):
            if turns:
                turns.pop(0).resolve(None)
            world.settle()
    assert made.errno() == 0
    while turns:
        turns.pop(0).resolve(None)
    world.settle()
    assert {each.errno() for each in asked} == {0}
    assert exist(user, "01") == "1"


def test_the_order_is_made_a_stretch_a_turn(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskspace, "_STRETCH", 2)
    world, user = full_world(make_world, 9)
    for number in range(9):
        kept(world, user, f"/n/{number}")
    disk, sizes = world.kernel.disk_space, [0]
    turn = disk._next_turn

    def next_turn() -> Completion[None]:
        sizes.append(len(disk._entries))
        return turn()

    monkeypatch.setattr(disk, "_next_turn", next_turn)
    made = user.start(c.CreateCube(name="/n/x", size_bytes=PAGED))
    world.settle()
    assert made.errno() == 0
    assert exist(user, "0123") == "123"
    assert [size for size in sizes if size] == [2, 4, 6, 8]
