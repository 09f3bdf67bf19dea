"""Namespaces: making, removing, their quotas, and the account of what each holds."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Descriptive, Durability, Quota, Usage
from tests.kernel.conftest import MakeWorld
from tests.kernel.invariants import ROW_BYTES, check_always, check_at_rest
from tests.kernel.world import KIB, USER, Client, World

PAGED = 8 * KIB


def charge_of(world: World, size_bytes: int) -> int:
    """What a version with a payload of its own costs on disk, with a plain header."""
    if size_bytes > world.parameters.inline_limit_bytes:
        size_bytes = world.disk.charge_bytes(size_bytes)
    return ROW_BYTES + size_bytes


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


def test_writes_under_way_together_do_not_pass_the_quota(world: World, user: Client) -> None:
    charge = charge_of(world, PAGED)
    user.make("/q", disk_bytes=2 * charge)
    calls = [
        user.start(c.WriteCube(name=f"/q/{n}", payload=bytes(PAGED), type=CubeType.BLOB))
        for n in range(4)
    ]
    while world.io.jobs:
        world.io.finish_at(len(world.io.jobs) - 1)
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


# -- the account ---------------------------------------------------------------------------------


def test_usage_counts_every_version_once(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(100))
    user.blob("/n/a", bytes(PAGED))
    user.call(c.SetHeader(name="/n/a", descriptive=Descriptive()))
    expected = charge_of(world, 100) + charge_of(world, PAGED) + ROW_BYTES
    usage = user.usage("/n").usage
    assert (usage.disk_bytes, usage.cubes) == (expected, 1)
    assert user.unlink("/n/a@v1").freed_bytes == charge_of(world, 100)
    reply = user.unlink("/n/a")
    assert (reply.freed_bytes, reply.versions) == (charge_of(world, PAGED) + ROW_BYTES, 2)
    assert user.usage("/n").usage == Usage()


def test_cache_payloads_are_charged_as_if_written_back(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED), durability=Durability.CACHE)
    assert user.usage("/n").usage.disk_bytes == charge_of(world, PAGED)


OPERATIONS = st.one_of(
    st.tuples(
        st.just("write"),
        st.sampled_from(["/a/1", "/a/2", "/b/1", "/b/2"]),
        st.sampled_from([0, 10, 1 * KIB, 1 * KIB + 1, PAGED, 3 * PAGED]),
        st.sampled_from([None, Durability.CACHE]),
    ),
    st.tuples(st.just("seal"), st.integers(1, 9)),
    st.tuples(st.just("create"), st.sampled_from(["/a/1", "/b/2"]), st.sampled_from([0, PAGED])),
    st.tuples(
        st.just("rename"),
        st.sampled_from(["/a/1", "/a/2", "/b/1"]),
        st.sampled_from(["/a/3", "/b/1", "/b/2"]),
    ),
    st.tuples(st.just("unlink"), st.sampled_from(["/a/1", "/a/2", "/a/3", "/b/1", "/b/2@v1"])),
    st.tuples(st.just("header"), st.sampled_from(["/a/1", "/b/1"])),
    st.tuples(st.just("map"), st.sampled_from(["/a/1", "/a/2", "/b/1", "/a/1@v1"])),
    st.tuples(st.just("evict"), st.sampled_from(["/a/1", "/b/1"])),
    st.tuples(st.just("quota"), st.sampled_from(["/a", "/b"]), st.integers(1, 8)),
    st.tuples(st.just("turn")),
    st.tuples(st.just("job"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.sampled_from(["stage", "commit", "store"])),
)


REQUESTS: dict[str, Callable[..., c.Call[Any]]] = {
    "write": lambda name, size, durability: c.WriteCube(
        name=name, payload=bytes(size), type=CubeType.BLOB, durability=durability
    ),
    "create": lambda name, size: c.CreateCube(name=name, size_bytes=size),
    "seal": lambda handle: c.SealCube(handle=handle),
    "rename": lambda name, new_name: c.RenameCube(name=name, new_name=new_name),
    "unlink": lambda name: c.UnlinkCube(name=name),
    "header": lambda name: c.SetHeader(name=name, attributes={"k": "x" * 50}),
    "map": lambda name: c.MmapCube(name=name),
    "evict": lambda name: c.Evict(name=name),
}


def _step(world: World, user: Client, operation: tuple[Any, ...]) -> None:
    match operation:
        case (kind, *arguments) if kind in REQUESTS:
            user.start(REQUESTS[kind](*arguments))
        case ("turn",):
            world.kernel.turn()
        case ("job", place) if place < len(world.io.jobs):
            world.io.finish_at(place)
        case ("quota", name, share):
            # Never a higher one: undone with a failed commit, it would be lower than what is used.
            old = world.kernel.parts.namespaces.find(name).row.quota
            quota = Quota(
                disk_bytes=min(old.disk_bytes, share * PAGED),
                ram_bytes=min(old.ram_bytes, share * PAGED),
                cubes=min(old.cubes, share),
            )
            world.root.start(c.SetQuota(namespace=name, quota=quota))
        case ("fail", "stage"):
            world.store.fail_stage(Errno.ENOSPC)
        case ("fail", "commit"):
            world.store.fail_commit(Errno.ENOSPC)
        case ("fail", "store"):
            world.plan.fail("store", Errno.ENOSPC)


@settings(max_examples=150, deadline=None)
@given(operations=st.lists(OPERATIONS, min_size=5, max_size=60))
def test_no_interleaving_passes_a_quota_or_a_budget(
    operations: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Writes, fills, renames between namespaces and faults, their I/O in any order, with
    failures of disk and table in between: at no point is anything over its ceiling."""
    world = World(
        tmp_path_factory.getbasetemp(), ram_budget_bytes=6 * PAGED, disk_budget_bytes=12 * PAGED
    )
    user = world.client()
    for name in ("/a", "/b"):
        user.make(name, disk_bytes=8 * PAGED, ram_bytes=5 * PAGED, cubes=3)
    for operation in operations:
        _step(world, user, operation)
        check_always(world.kernel)
    world.settle()
    check_at_rest(world.kernel, world.ram, world.disk)
    world.forget_failures()
    user.die()
    _unlink_all(world)
    for name in ("/a", "/b"):
        usage = world.root.usage(name).usage
        assert (usage.disk_bytes, usage.cubes) == (0, 0)
        assert usage.ram_bytes == 0
    assert world.kernel.parts.namespaces.used_bytes == 0
    world.close()


def _unlink_all(world: World) -> None:
    for name in ("/a", "/b"):
        for entry in world.root.call(c.Readdir(path=name)).entries:
            world.root.call(c.UnlinkCube(name=entry.name))
    world.settle()
