"""Namespaces: making, removing, their quotas, and the account of what each holds."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Descriptive, Quota, Usage
from tests.kernel.conftest import MakeWorld
from tests.kernel.invariants import ROW_BYTES, check_always
from tests.kernel.world import KIB, PAGED, USER, Client, World, charge_of

# -- making and removing -------------------------------------------------------------------------


def test_a_namespace_belongs_to_who_made_it(world: World) -> None:
    user = world.client(USER, 5)
    made = user.make("/n", mode=0o750)
    assert (made.owner_uid, made.owner_gid, made.mode) == (USER, 5, 0o750)
    assert user.make("/m").mode == world.parameters.namespace_mode
    assert user.usage("/n") == made


@pytest.mark.parametrize(
    ("name", "errno"),
    [
        ("n", Errno.EINVAL),
        ("/", Errno.EINVAL),
        ("/a/b", Errno.EINVAL),
        ("/a@v1", Errno.EINVAL),
        ("/..", Errno.EINVAL),
        ("/a\n", Errno.EINVAL),
        ("/" + "x" * 256, Errno.ENAMETOOLONG),
        ("/n", Errno.EEXIST),
    ],
)
def test_a_senseless_or_taken_name_is_refused(user: Client, name: str, errno: Errno) -> None:
    user.fails(c.MakeNamespace(name=name), errno)
    for mode in (-1, 0o1000):
        user.fails(c.MakeNamespace(name="/fine", mode=mode), Errno.EINVAL)


def test_who_makes_namespaces_and_how_many_is_the_administrators_choice(
    make_world: MakeWorld,
) -> None:
    world = make_world(anyone_makes_namespaces=False)
    world.client().fails(c.MakeNamespace(name="/n"), Errno.EPERM)
    world.root.make("/n")


def test_a_user_owns_a_limited_number_of_namespaces(make_world: MakeWorld) -> None:
    world = make_world(namespaces_per_uid=2)
    user = world.client()
    for name in ("/a", "/b"):
        user.make(name)
    user.fails(c.MakeNamespace(name="/c"), Errno.EDQUOT)
    world.client(USER + 1).make("/c")
    for name in ("/d", "/e", "/f"):
        world.root.make(name)
    user.call(c.RemoveNamespace(name="/a"))
    user.make("/a")


def test_a_new_namespace_gets_the_configured_quota(make_world: MakeWorld) -> None:
    world = make_world(quota_disk_bytes=1, quota_ram_bytes=2, quota_cubes=3)
    made = world.client().make("/n")
    assert made.quota == Quota(disk_bytes=1, ram_bytes=2, cubes=3)


def test_only_an_empty_namespace_goes(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    user.fails(c.RemoveNamespace(name="/n"), Errno.ENOTEMPTY)
    user.unlink("/n/a")
    world.client(2000).fails(c.RemoveNamespace(name="/n"), Errno.EPERM)
    user.call(c.RemoveNamespace(name="/n"))
    user.fails(c.RemoveNamespace(name="/n"), Errno.ENOENT)
    user.fails(c.WriteCube(name="/n/a", payload=b"x"), Errno.ENOENT)
    world.client(2000).make("/n")
    user.fails(c.ReadCube(name="/n/a"), Errno.EACCES)


def test_a_namespace_stays_while_a_write_into_it_is_under_way(world: World, user: Client) -> None:
    handle = user.call(c.CreateCube(name="/n/a", size_bytes=PAGED)).handle
    sealed = user.start(c.SealCube(handle=handle))
    world.io.finish("hash")
    world.io.finish("check_payload")
    user.start(c.RemoveNamespace(name="/n")).failure(Errno.EBUSY)
    world.settle()
    assert sealed.result().version == 1


def test_a_fill_for_a_namespace_that_went_fails_and_is_given_back(
    world: World, user: Client
) -> None:
    handle = user.call(c.CreateCube(name="/n/a", size_bytes=PAGED)).handle
    user.call(c.RemoveNamespace(name="/n"))
    user.fails(c.SealCube(handle=handle), Errno.ENOENT)
    assert world.kernel.parts.residents.account.used_bytes == 0


def test_a_fill_is_not_for_another_namespace_of_that_name(world: World, user: Client) -> None:
    """Its memory is charged to the old one; the new one's quota would not see it."""
    user.make("/keeps-the-number")
    handle = user.call(c.CreateCube(name="/n/a", size_bytes=PAGED)).handle
    user.call(c.RemoveNamespace(name="/n"))
    user.call(c.RemoveNamespace(name="/keeps-the-number"))
    user.make("/other")
    user.make("/n")
    user.fails(c.SealCube(handle=handle), Errno.ENOENT)
    assert user.usage("/n").usage == Usage()


def test_a_namespace_whose_removal_failed_is_as_before(world: World, user: Client) -> None:
    user.make("/m", ram_bytes=2 * PAGED + 4 * KIB)
    user.blob("/m/a", bytes(PAGED))
    user.call(c.CreateCube(name="/m/b", size_bytes=PAGED))
    user.blob("/m/a", b"small")
    world.store.fail_commit(Errno.EIO)
    calls = [user.start(c.UnlinkCube(name="/m/a")), user.start(c.RemoveNamespace(name="/m"))]
    world.settle()
    assert [call.errno() for call in calls] == [Errno.EIO, Errno.EIO]
    # Its residents are still found where its quota is short.
    user.call(c.PinCube(name="/m/a@v2"))
    user.call(c.CreateCube(name="/m/c", size_bytes=PAGED))


# -- quotas --------------------------------------------------------------------------------------


def test_only_sensible_quotas_are_set(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    usage = user.usage("/n").usage
    root = world.root
    for field in ("disk_bytes", "ram_bytes"):
        held = getattr(usage, field)
        small = Quota(**{field: held - 1})
        error = root.fails(c.SetQuota(namespace="/n", quota=small), Errno.EDQUOT)
        assert error.detail == {"need_bytes": held, "free_bytes": held - 1}
        root.call(c.SetQuota(namespace="/n", quota=Quota(**{field: held})))
        root.fails(c.SetQuota(namespace="/n", quota=Quota(**{field: -1})), Errno.EINVAL)
    root.call(c.SetQuota(namespace="/n", quota=Quota(cubes=1)))
    user.fails(c.WriteCube(name="/n/b", payload=b"x"), Errno.EDQUOT)
    root.fails(c.SetQuota(namespace="/m", quota=Quota()), Errno.ENOENT)
    assert user.usage("/n").quota == Quota(cubes=1)


@pytest.mark.parametrize("size_bytes", [100, PAGED])
@pytest.mark.parametrize("road", ["write", "create"])
def test_the_last_byte_of_a_quota_is_given_and_not_one_more(
    world: World, user: Client, size_bytes: int, road: str
) -> None:
    def make(name: str, size: int) -> c.Call[Any]:
        if road == "write":
            return c.WriteCube(name=name, payload=bytes(size), type=CubeType.BLOB)
        return c.CreateCube(name=name, size_bytes=size)

    def finish(reply: Any) -> None:
        if road == "create":
            user.call(c.SealCube(handle=reply.handle))

    charge = charge_of(world, size_bytes)
    user.make("/q", disk_bytes=2 * charge)
    finish(user.call(make("/q/a", size_bytes)))
    error = user.fails(make("/q/b", size_bytes + 1), Errno.EDQUOT)
    assert error.detail["free_bytes"] == charge
    assert error.detail["need_bytes"] == charge_of(world, size_bytes + 1)
    finish(user.call(make("/q/b", size_bytes)))
    assert user.usage("/q").usage.disk_bytes == 2 * charge
    user.fails(make("/q/a", 0), Errno.EDQUOT)
    user.unlink("/q/b")
    finish(user.call(make("/q/c", 0)))


def test_headers_are_charged_too(world: World, user: Client) -> None:
    user.make("/q", disk_bytes=3 * ROW_BYTES)
    user.write("/q/a", b"")
    large = Descriptive(title="t" * 2 * ROW_BYTES)
    user.fails(c.WriteCube(name="/q/b", payload=b"", descriptive=large), Errno.EDQUOT)
    user.fails(c.SetHeader(name="/q/a", descriptive=large), Errno.EDQUOT)
    user.call(c.SetHeader(name="/q/a", attributes={"k": 1}))
    user.fails(c.RenameCube(name="/n/x", new_name="/q/x"), Errno.ENOENT)


def test_the_disk_budget_holds_over_all_namespaces(make_world: MakeWorld) -> None:
    world = make_world(disk_budget_bytes=64 * KIB)
    user = world.client()
    user.make("/a")
    user.make("/b")
    charge = charge_of(world, PAGED)
    fit = 64 * KIB // charge
    for number in range(fit):
        user.blob(f"/{'ab'[number % 2]}/{number}", bytes(PAGED))
    error = user.fails(
        c.WriteCube(name="/a/z", payload=bytes(PAGED), type=CubeType.BLOB), Errno.ENOSPC
    )
    assert error.detail["free_bytes"] == 64 * KIB - fit * charge
    disk = {tier.name: tier for tier in user.call(c.Info()).tiers}["disk"]
    assert (disk.budget_bytes, disk.used_bytes) == (64 * KIB, fit * charge)
    user.unlink("/b/1")
    user.blob("/a/z", bytes(PAGED))


@pytest.mark.parametrize("place", [0, -1], ids=["oldest first", "newest first"])
def test_writes_under_way_together_do_not_pass_the_quota(
    world: World, user: Client, place: int
) -> None:
    charge = charge_of(world, PAGED)
    user.make("/q", disk_bytes=2 * charge)
    calls = [
        user.start(c.WriteCube(name=f"/q/{n}", payload=bytes(PAGED), type=CubeType.BLOB))
        for n in range(4)
    ]
    while world.io.jobs:
        world.io.finish_at(place)
        check_always(world.kernel)
    world.settle()
    assert sorted(call.errno() for call in calls) == [0, 0, Errno.EDQUOT, Errno.EDQUOT]
    assert user.usage("/q").usage.disk_bytes == 2 * charge


def test_cubes_under_way_together_do_not_pass_the_quota(world: World, user: Client) -> None:
    user.make("/q", cubes=1)
    calls = [
        user.start(c.WriteCube(name=f"/q/{n}", payload=bytes(PAGED), type=CubeType.BLOB))
        for n in range(3)
    ]
    world.settle()
    assert sorted(call.errno() for call in calls) == [0, Errno.EDQUOT, Errno.EDQUOT]


def test_a_promise_of_bytes_survives_a_failed_commit(world: World, user: Client) -> None:
    """Made to a write into a namespace whose own making then fails, and another failure after."""
    user.start(c.MakeNamespace(name="/m"))
    world.kernel.turn()
    handle = user.start(c.CreateCube(name="/m/a", size_bytes=PAGED))
    commit = world.io.find("commit")
    world.io.jobs.remove(commit)
    commit.execute()
    commit.deliver()
    world.settle()
    sealed = user.start(c.SealCube(handle=handle.result().handle))
    world.io.finish("hash")
    world.io.finish("check_payload")
    reserved = charge_of(world, PAGED)
    spaces = world.kernel.parts.namespaces
    assert spaces.used_bytes == reserved
    for _ in range(2):
        world.store.fail_stage(Errno.EIO)
        user.start(c.WriteCube(name="/n/x", payload=b"x"))
        world.kernel.turn()
        assert spaces.used_bytes == reserved
        check_always(world.kernel)
    world.settle()
    assert sealed.result().version == 1


def test_a_promise_to_a_namespace_that_was_undone_is_kept_apart(world: World, user: Client) -> None:
    user.start(c.MakeNamespace(name="/m"))
    world.store.fail_commit(Errno.EIO)
    world.kernel.turn()
    write = user.start(c.WriteCube(name="/m/a", payload=bytes(PAGED), type=CubeType.BLOB))
    for name in ("fill", "hash", "check_payload"):
        world.io.finish(name)
    spaces = world.kernel.parts.namespaces
    assert spaces.used_bytes == charge_of(world, PAGED)
    world.io.finish("commit")
    world.store.fail_stage(Errno.EIO)
    user.start(c.WriteCube(name="/n/x", payload=b"x"))
    world.kernel.turn()
    world.settle()
    write.failure(Errno.ENOENT)
    assert spaces.used_bytes == 0
