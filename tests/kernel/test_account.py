"""The account of disk and RAM: never over budget, never off by a byte."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Descriptive, Durability, Quota, Usage
from tests.kernel.invariants import ROW_BYTES, check_always, check_at_rest
from tests.kernel.world import KIB, PAGED, Client, World, charge_of


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
