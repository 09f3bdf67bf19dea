"""Limits through crashes, failed commits and damage; what folders hold, added up meanwhile."""

from typing import Any

from libmem.abi import calls as c
from libmem.abi.control import Limits
from libmem.abi.errors import Errno
from libmem.abi.structs import Quota
from memosd.kernel.wait import Completion
from tests.kernel.invariants import check_always
from tests.kernel.test_grants import disk, held, put, ram, show
from tests.kernel.world import KIB, PAGED, Client, World, charge_of

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


def test_one_flipped_bit_of_a_path_keeps_nobody_from_the_rest(world: World, user: Client) -> None:
    put(user, "/n/a", ram(max=PAGED))
    value = world.store.get("control", b"/n/a")
    world.store.stage({"control": {b"/n/a": None, b"/n/\xe1": value}})()
    world.store.settle()
    world.crash()
    assert any("/n/\ufffd" in notice for notice in world.root.call(c.Info()).notices)
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
