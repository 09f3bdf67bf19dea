"""Control groups through the system calls: who may set what, what contradicts, what is held."""

import pytest

from libmem.abi import calls as c
from libmem.abi.control import GroupStat, GroupTierStat, Limits, TierLimits
from libmem.abi.errors import Errno
from libmem.abi.structs import Quota
from tests.kernel.world import KIB, PAGED, USER, Client, World, cache, charge_of


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


def test_folders_are_named_to_whom_their_namespace_lists_them(world: World) -> None:
    owner, stranger = world.client(), world.client(USER + 1)
    for name, mode in (("/closed", 0o700), ("/listed", 0o755), ("/through", 0o711)):
        owner.make(name, mode=mode)
        put(owner, name + "/a", ram(max=PAGED))
        put(owner, name + "/a/b", ram(max=PAGED))

    def below(path: str) -> list[str]:
        shown = stranger.call(c.StatLimits(path=path, is_recursive=True)).groups
        return [group.path for group in shown]

    assert below("/") == ["/", "/listed", "/listed/a", "/listed/a/b", "/through"]
    assert below("/through") == ["/through"]
    assert below("/through/a") == ["/through/a"], "who knows its name is told of it"
    assert show(stranger, "/through/a").limits == ram(max=PAGED)


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


def test_two_who_set_limits_at_once_do_not_undo_each_other(world: World, user: Client) -> None:
    for number in range(3):
        cache(user, f"/n/a/{number}")
    first = user.start(c.SetLimits(path="/n/a", limits=ram(max=PAGED)))
    second = user.start(c.SetLimits(path="/n/a", limits=ram(low=PAGED)))
    user.start(c.PinCube(name="/n/a/1"))
    user.start(c.PinCube(name="/n/a/2"))
    world.settle()
    first.failure(Errno.EDQUOT)
    assert second.result().limits == ram(low=PAGED)
    assert show(user, "/n/a").limits == ram(low=PAGED)


def test_limits_taken_away_while_room_is_made_stay_away(world: World, user: Client) -> None:
    for number in range(3):
        cache(user, f"/n/a/{number}")
    first = user.start(c.SetLimits(path="/n/a", limits=ram(max=PAGED)))
    user.start(c.SetLimits(path="/n/a", limits=Limits()))
    world.settle()
    first.failure(Errno.EBUSY)
    user.fails(c.StatLimits(path="/n/a"), Errno.ENOENT)
    assert held(user, "/n")[0] == held(user, "/n")[1]


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
