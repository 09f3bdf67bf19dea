"""Control groups through the system calls: who may set what, what contradicts, what is held."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import (
    GroupStat,
    GroupTierStat,
    Limits,
    Quota,
    TierLimits,
)
from memosd.kernel.wait import Completion
from tests.kernel.invariants import check_always
from tests.kernel.world import KIB, PAGED, USER, Client, World, charge_of


def ram(**limits: int) -> Limits:
    """Limits of RAM alone."""
    return Limits(ram=TierLimits(**{f"{name}_bytes": size for name, size in limits.items()}))


def disk(**limits: int) -> Limits:
    """Limits of the disk alone."""
    return Limits(disk=TierLimits(**{f"{name}_bytes": size for name, size in limits.items()}))


def put(who: Client, path: str, limits: Limits) -> GroupStat:
    return who.call(c.SetLimits(path=path, limits=limits))


def show(who: Client, path: str) -> GroupStat:
    return who.call(c.StatLimits(path=path)).groups[0]


def tier(stat: GroupStat, name: str) -> GroupTierStat:
    return next(each for each in stat.tiers if each.tier == name)


def held(who: Client, path: str, name: str = "ram") -> tuple[int, int]:
    """(own, subtree) bytes."""
    stat = tier(show(who, path), name)
    return stat.own_bytes, stat.subtree_bytes


# -- who and what --------------------------------------------------------------------------------


def test_limits_come_back_as_they_were_set(world: World, user: Client) -> None:
    limits = Limits(
        ram=TierLimits(1, 2, 3, 4 * KIB), device=TierLimits(5, 6, 7, 8),
        disk=TierLimits(9, 10, 11, 64 * KIB), io_weight=250,
    )  # fmt: skip
    for path in ("/n", "/n/a", "/n/a/b"):
        made = put(world.root, path, limits)
        assert (made.path, made.limits) == (path, limits)
        assert show(user, path).limits == limits
    world.crash()
    for path in ("/n", "/n/a", "/n/a/b"):
        assert show(world.root, path).limits == limits
    assert world.root.usage("/n").quota == Quota(disk_bytes=64 * KIB, ram_bytes=4 * KIB)


def test_a_quota_and_a_max_are_one_truth(world: World, user: Client) -> None:
    user.make("/q", ram_bytes=4 * PAGED, disk_bytes=64 * KIB, cubes=7)
    assert show(user, "/q").limits == Limits(
        ram=TierLimits(max_bytes=4 * PAGED), disk=TierLimits(max_bytes=64 * KIB)
    )
    put(world.root, "/q", ram(min=PAGED, max=2 * PAGED))
    assert user.usage("/q").quota == Quota(ram_bytes=2 * PAGED, cubes=7)
    world.root.call(c.SetQuota(namespace="/q", quota=Quota(ram_bytes=3 * PAGED)))
    assert show(user, "/q").limits == ram(min=PAGED, max=3 * PAGED)
    low = c.SetQuota(namespace="/q", quota=Quota(ram_bytes=PAGED - 1))
    world.root.fails(low, Errno.EINVAL)


def test_a_namespace_is_limited_by_the_administrator_its_folders_by_its_owner(
    world: World, user: Client
) -> None:
    for path in ("/", "/n"):
        user.fails(c.SetLimits(path=path, limits=ram(max=PAGED)), Errno.EPERM)
    put(user, "/n/a", ram(max=PAGED))
    stranger = world.client(USER + 1)
    stranger.fails(c.SetLimits(path="/n/a", limits=Limits()), Errno.EPERM)
    stranger.fails(c.StatLimits(path="/n/a"), Errno.EACCES)
    shown = stranger.call(c.StatLimits(path="/", is_recursive=True)).groups
    assert [group.path for group in shown] == ["/"]


@pytest.mark.parametrize(
    ("path", "limits", "errno"),
    [
        ("/n/a", ram(min=2, low=1), Errno.EINVAL),
        ("/n/a", ram(low=2, max=1), Errno.EINVAL),
        ("/n/a", ram(min=-1), Errno.EINVAL),
        ("/n/a", ram(max=1 << 62), Errno.EINVAL),
        ("/n/a", Limits(io_weight=0), Errno.EINVAL),
        ("/n/a", Limits(io_weight=10_001), Errno.EINVAL),
        ("/n/a", ram(min=9 * KIB), Errno.EINVAL),
        ("/n/x/y", ram(min=2, max=1), Errno.EINVAL),
        ("/n/x", ram(max=KIB), Errno.EINVAL),
        ("/n", ram(max=KIB), Errno.EINVAL),
        ("/", ram(max=KIB), Errno.EINVAL),
        ("/", ram(min=1), Errno.EINVAL),
        ("/n", ram(min=257 * KIB), Errno.EDQUOT),
        ("/m", ram(min=256 * KIB), Errno.EDQUOT),
        ("/absent", ram(max=1), Errno.ENOENT),
        ("/absent/a", ram(max=1), Errno.ENOENT),
        ("n", ram(max=1), Errno.EINVAL),
    ],
)
def test_what_contradicts_is_refused_and_changes_nothing(
    world: World, user: Client, path: str, limits: Limits, errno: Errno
) -> None:
    user.make("/m")
    put(world.root, "/n", ram(min=4 * KIB, max=8 * KIB))
    put(user, "/n/x/y", ram(min=2 * KIB))
    before = world.root.call(c.StatLimits(path="/", is_recursive=True)).groups
    world.root.fails(c.SetLimits(path=path, limits=limits), errno)
    assert world.root.call(c.StatLimits(path="/", is_recursive=True)).groups == before


def test_what_is_promised_to_all_says_what_is_left(world: World, user: Client) -> None:
    user.make("/m")
    put(world.root, "/n", ram(min=200 * KIB))
    error = world.root.fails(c.SetLimits(path="/m", limits=ram(min=57 * KIB)), Errno.EDQUOT)
    assert error.detail == {"group": "/m", "need_bytes": 57 * KIB, "free_bytes": 56 * KIB}
    put(user, "/n/a", ram(min=150 * KIB))
    put(user, "/n/b", ram(min=150 * KIB))


def test_no_limits_take_the_group_away(world: World, user: Client) -> None:
    user.blob("/n/a/1", bytes(PAGED))
    put(user, "/n/a", ram(max=2 * PAGED))
    assert held(user, "/n") == (0, PAGED)
    assert put(user, "/n/a", Limits()).path == "/n"
    user.fails(c.StatLimits(path="/n/a"), Errno.ENOENT)
    assert held(user, "/n") == (PAGED, PAGED)
    world.crash()
    world.root.fails(c.StatLimits(path="/n/a"), Errno.ENOENT)


def test_the_groups_of_a_namespace_go_with_it(world: World, user: Client) -> None:
    user.make("/m")
    number = put(user, "/m/a", ram(max=PAGED)).number
    put(world.root, "/m", ram(low=PAGED))
    user.call(c.RemoveNamespace(name="/m"))
    user.make("/m")
    assert show(user, "/m").limits == Limits()
    user.fails(c.StatLimits(path="/m/a"), Errno.ENOENT)
    assert put(user, "/m/a", ram(max=PAGED)).number > number, "numbers are not given again"
    world.crash()
    assert world.root.call(c.StatLimits(path="/m", is_recursive=True)).groups[1].path == "/m/a"


# -- who is charged ------------------------------------------------------------------------------


def test_a_cube_is_charged_to_the_deepest_folder_and_all_above(world: World, user: Client) -> None:
    put(user, "/n/a", ram(max=8 * PAGED))
    put(user, "/n/a/b/c", ram(max=8 * PAGED))
    for name in ("/n/1", "/n/a/2", "/n/a/b/3", "/n/a/b/c/4", "/n/ab/5"):
        user.blob(name, bytes(PAGED))
    assert held(user, "/") == (0, 5 * PAGED)
    assert held(user, "/n") == (2 * PAGED, 5 * PAGED)
    assert held(user, "/n/a") == (2 * PAGED, 3 * PAGED)
    assert held(user, "/n/a/b/c") == (PAGED, PAGED)
    put(user, "/n/a/b", ram(max=8 * PAGED))
    assert held(user, "/n/a") == (PAGED, 3 * PAGED)
    assert held(user, "/n/a/b") == (PAGED, 2 * PAGED)
    charge = charge_of(world, PAGED)
    assert [held(user, path, "disk") for path in ("/n", "/n/a", "/n/a/b", "/n/a/b/c")] == [
        (2 * charge, 5 * charge), (charge, 3 * charge), (charge, 2 * charge), (charge, charge)
    ]  # fmt: skip


def test_a_rename_moves_the_charge(world: World, user: Client) -> None:
    put(user, "/n/a", ram(max=PAGED))
    put(user, "/n/b", Limits(ram=TierLimits(max_bytes=PAGED), disk=TierLimits(max_bytes=9 * KIB)))
    user.blob("/n/a/1", bytes(PAGED))
    user.call(c.RenameCube(name="/n/a/1", new_name="/n/b/1"))
    assert (held(user, "/n/a"), held(user, "/n/b")) == ((0, 0), (PAGED, PAGED))
    charge = charge_of(world, PAGED)
    assert held(user, "/n/b", "disk") == (charge, charge)
    user.blob("/n/2", bytes(PAGED))
    error = user.fails(c.RenameCube(name="/n/2", new_name="/n/b/2"), Errno.EDQUOT)
    assert error.detail["group"] == "/n/b"
    assert held(user, "/n") == (PAGED, 2 * PAGED)
    assert held(user, "/n", "disk") == (charge, 2 * charge)
    assert tier(show(user, "/n/b"), "disk").refusals == 1


def test_what_is_being_filled_follows_its_folder(world: World, user: Client) -> None:
    handle = user.call(c.CreateCube(name="/n/a/1", size_bytes=PAGED)).handle
    put(user, "/n/a", ram(max=2 * PAGED))
    assert held(user, "/n") == (PAGED, PAGED), "nobody knows its name before it is sealed"
    user.call(c.SealCube(handle=handle))
    assert held(user, "/n/a") == (PAGED, PAGED)
    handle = user.call(c.CreateCube(name="/n/a/2", size_bytes=PAGED)).handle
    put(user, "/n/a", Limits())
    assert held(user, "/n") == (PAGED, 2 * PAGED), "charged to a group that is gone"
    user.call(c.AbortCube(handle=handle))
    assert held(user, "/n") == (PAGED, PAGED)


def test_a_fault_under_way_follows_its_folder(world: World, user: Client) -> None:
    user.blob("/n/a/1", bytes(PAGED))
    user.call(c.Evict(name="/n/a/1"))
    read = user.start(c.ReadCube(name="/n/a/1"))
    user.start(c.SetLimits(path="/n/a", limits=ram(max=PAGED)))
    world.settle()
    assert read.result().payload == bytes(PAGED)
    assert held(user, "/n/a") == (PAGED, PAGED)


# -- max -----------------------------------------------------------------------------------------


def test_a_folder_at_its_max_makes_room_among_its_own(world: World, user: Client) -> None:
    put(user, "/n/a", ram(max=2 * PAGED))
    user.blob("/n/beside", bytes(PAGED))
    for number in range(3):
        user.blob(f"/n/a/{number}", bytes(PAGED))
    assert held(user, "/n/a") == (2 * PAGED, 2 * PAGED)
    assert "ram" in user.stat("/n/beside").tiers
    assert tier(show(user, "/n/a"), "ram").reclaims == 1
    for number in (1, 2):
        user.call(c.PinCube(name=f"/n/a/{number}"))
    error = user.fails(c.MmapCube(name="/n/a/0"), Errno.EDQUOT)
    assert error.detail == {"group": "/n/a", "need_bytes": PAGED, "free_bytes": 0}
    assert tier(show(user, "/n/a"), "ram").refusals == 1


def test_a_max_below_what_is_held_is_made_true_first(world: World, user: Client) -> None:
    for number in range(4):
        user.blob(f"/n/a/{number}", bytes(PAGED))
    put(user, "/n/a", ram(max=2 * PAGED))
    assert held(user, "/n/a") == (2 * PAGED, 2 * PAGED)
    user.call(c.PinCube(name="/n/a/2"))
    error = user.fails(c.SetLimits(path="/n/a", limits=ram(max=PAGED - 1)), Errno.EDQUOT)
    assert error.detail == {"group": "/n/a", "need_bytes": PAGED, "free_bytes": PAGED - 1}
    assert show(user, "/n/a").limits == ram(max=2 * PAGED)
    user.fails(c.SetLimits(path="/n/a", limits=disk(max=KIB)), Errno.EDQUOT)


def test_a_new_folder_that_cannot_be_made_to_fit_gets_no_limits(user: Client) -> None:
    user.blob("/n/a/1", bytes(PAGED))
    user.call(c.PinCube(name="/n/a/1"))
    user.fails(c.SetLimits(path="/n/a", limits=ram(max=KIB)), Errno.EDQUOT)
    user.fails(c.StatLimits(path="/n/a"), Errno.ENOENT)
    assert held(user, "/n") == (PAGED, PAGED)


def test_other_limits_may_be_below_what_is_held(world: World, user: Client) -> None:
    for number in range(4):
        user.blob(f"/n/a/{number}", bytes(PAGED))
    put(user, "/n/a", ram(min=1, low=2, high=3))


def test_a_folders_disk_max_holds_in_every_way_to_exceed_it(world: World, user: Client) -> None:
    put(user, "/n/a", disk(max=charge_of(world, PAGED) + 100))
    user.blob("/n/a/1", bytes(PAGED))
    user.fails(c.WriteCube(name="/n/a/2", payload=b"x"), Errno.EDQUOT)
    user.fails(c.CreateCube(name="/n/a/2", size_bytes=PAGED), Errno.EDQUOT)
    user.fails(c.SetHeader(name="/n/a/1"), Errno.EDQUOT)
    user.write("/n/b", b"x")
    user.unlink("/n/a/1")
    assert held(user, "/n/a", "disk") == (0, 0)
    user.write("/n/a/2", b"x")


# -- counting ------------------------------------------------------------------------------------


def turns(world: World) -> list[Completion[None]]:
    """Counting waits from now on, before each stretch but the first."""
    waits: list[Completion[None]] = []

    def wait() -> Completion[None]:
        waits.append(Completion())
        return waits[-1]

    world.kernel.grants.__dict__["_next_turn"] = wait
    return waits


def go_on(world: World, waits: list[Completion[None]]) -> None:
    """Let the counting come to its end."""
    while waits:
        waits.pop(0).resolve(None)
        world.settle()


def test_a_large_folder_is_added_up_while_it_changes(world: World, user: Client) -> None:
    for number in range(300):
        user.write(f"/n/a/{number:03}", b"x")
    waits = turns(world)
    assert not put(user, "/n/a", disk(max=1000 * KIB)).is_counted
    changes: list[c.Call[Any]] = [
        c.UnlinkCube(name="/n/a/000"),
        c.UnlinkCube(name="/n/a/299"),
        c.RenameCube(name="/n/a/001", new_name="/n/a/9"),
        c.RenameCube(name="/n/a/298", new_name="/n/a/0"),
        c.WriteCube(name="/n/a/002", payload=b"xy"),
        c.WriteCube(name="/n/a/250", payload=b"xy"),
    ]
    for request in changes:
        user.call(request)
    go_on(world, waits)
    expected = 298 * charge_of(world, 1) + 2 * charge_of(world, 2)
    assert held(user, "/n/a", "disk") == (expected, expected)
    assert show(user, "/n/a").is_counted
    world.crash()
    assert held(world.root, "/n/a", "disk") == (expected, expected)


def test_counting_goes_on_after_a_crash_and_after_a_failed_commit(
    world: World, user: Client
) -> None:
    for number in range(300):
        user.write(f"/n/a/{number:03}", b"x")
    expected = 300 * charge_of(world, 1)
    waits = turns(world)
    put(user, "/n/a", disk(max=1000 * KIB))
    world.store.fail_commit(Errno.EIO)
    user.start(c.WriteCube(name="/n/a/000", payload=b"xy"))
    world.settle()
    go_on(world, waits)
    assert held(user, "/n/a", "disk") == (expected, expected)
    put(user, "/n/a", Limits())
    put(user, "/n/a", disk(max=1000 * KIB))
    assert not show(user, "/n/a").is_counted
    world.crash()
    world.settle()
    assert held(world.root, "/n/a", "disk") == (expected, expected)


# -- rollback and damage ---------------------------------------------------------------------------


def test_limits_that_were_not_committed_are_not_in_force(world: World, user: Client) -> None:
    user.blob("/n/a/1", bytes(PAGED))
    put(user, "/n/b", ram(max=PAGED))
    for path, limits in (("/n/a", ram(max=PAGED)), ("/n/b", Limits()), ("/n/b", ram(max=1))):
        world.store.fail_commit(Errno.EIO)
        pending = user.start(c.SetLimits(path=path, limits=limits))
        world.settle()
        assert pending.errno() == Errno.EIO
        user.fails(c.StatLimits(path="/n/a"), Errno.ENOENT)
        assert held(user, "/n") == (PAGED, PAGED)
        assert show(user, "/n/b").limits == ram(max=PAGED)
        check_always(world.kernel)
    world.store.fail_commit(Errno.EIO)
    failed = world.root.start(c.SetLimits(path="/n", limits=ram(max=9 * PAGED)))
    world.settle()
    assert failed.errno() == Errno.EIO
    assert show(user, "/n").limits == Limits()
    assert user.usage("/n").quota == Quota()


def test_damaged_limits_are_told_and_mended_by_setting_them(world: World, user: Client) -> None:
    put(user, "/n/a", ram(max=PAGED))
    put(world.root, "/n", ram(min=PAGED))
    for path in (b"/n", b"/n/a"):
        world.damage("control", path)
    world.crash()
    assert any("/n, /n/a" in notice for notice in world.root.call(c.Info()).notices)
    assert show(world.root, "/n").limits == Limits()
    world.root.fails(c.StatLimits(path="/n/a"), Errno.ENOENT)
    world.root.blob("/n/a/1", bytes(PAGED))
    put(world.root, "/n/a", ram(max=PAGED))
    put(world.root, "/n", ram(min=PAGED))
    assert not any("/n" in notice for notice in world.root.call(c.Info()).notices)
    world.crash()
    assert show(world.root, "/n/a").limits == ram(max=PAGED)


def test_a_namespace_with_damaged_limits_goes_with_them(world: World, user: Client) -> None:
    put(user, "/n/a", ram(max=PAGED))
    world.damage("control", b"/n/a")
    world.crash()
    world.root.call(c.RemoveNamespace(name="/n"))
    assert not any("limits" in notice for notice in world.root.call(c.Info()).notices)
    world.crash()
    assert not any("limits" in notice for notice in world.root.call(c.Info()).notices)


def test_a_listing_of_groups_comes_in_pages(world: World, user: Client) -> None:
    for number in range(1001):
        user.start(c.SetLimits(path=f"/n/{number:04}", limits=ram(high=PAGED)))
    world.settle()
    first = user.call(c.StatLimits(path="/", is_recursive=True))
    assert (first.groups[0].path, first.groups[1].path) == ("/", "/n")
    second = user.call(c.StatLimits(path="/", is_recursive=True, cursor=first.next_cursor))
    assert second.groups[-1].path == "/n/1000"
    assert second.next_cursor == ""
    assert len(first.groups) + len(second.groups) == 1003
