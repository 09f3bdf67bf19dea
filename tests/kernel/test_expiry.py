"""Expiry: gone at its time, swept later, never in the way."""

from typing import Any

import msgspec

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import (
    CubeType,
    Governance,
)
from tests.kernel.fakes import SECOND_NS
from tests.kernel.invariants import check_at_rest
from tests.kernel.world import KIB, ROOT, Client, World

PAGED = 4 * KIB
"""Beyond the inline limit of these tests."""


def test_an_expired_cube_is_gone_at_once_and_swept_later(world: World, user: Client) -> None:
    soon = world.clock.wall_ns() + SECOND_NS
    user.blob("/n/a", bytes(PAGED), governance=Governance(expires_ns=soon))
    handle = user.call(c.MmapCube(name="/n/a")).handle
    world.clock.advance(SECOND_NS - 1)
    user.stat("/n/a")
    world.clock.advance(1)
    requests: list[c.Call[Any]] = [
        c.StatCube(name="/n/a"),
        c.ReadCube(name="/n/a"),
        c.MmapCube(name="/n/a"),
        c.UnlinkCube(name="/n/a"),
        c.RenameCube(name="/n/a", new_name="/n/b"),
        c.SetHeader(name="/n/a"),
    ]
    for request in requests:
        user.fails(request, Errno.ENOENT)
    assert user.call(c.Readdir(path="/n")).entries == ()
    assert user.usage("/n").usage.cubes == 1, "not swept yet"
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.usage("/n").usage.cubes == 0
    assert user.usage("/n").usage.disk_bytes == 0
    user.call(c.MunmapCube(handle=handle))
    world.settle()
    assert user.usage("/n").usage.ram_bytes == 0


def test_an_expired_name_is_free_to_write(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + 1)
    first = user.blob("/n/a", bytes(PAGED), governance=soon)
    world.clock.advance(SECOND_NS)
    second = user.call(
        c.WriteCube(name="/n/a", payload=b"new", type=CubeType.BLOB, expected_version=0)
    )
    assert second.id != first.id
    assert user.read("/n/a") == b"new"
    assert user.usage("/n").usage.cubes == 1
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.read("/n/a") == b"new"


def test_expiry_follows_the_header(world: World, user: Client) -> None:
    soon = world.clock.wall_ns() + SECOND_NS
    user.write("/n/a", b"x", governance=Governance(expires_ns=soon))
    user.write("/n/b", b"x")
    user.call(c.SetHeader(name="/n/a", governance=Governance(expires_ns=0)))
    user.call(c.SetHeader(name="/n/b", governance=Governance(expires_ns=soon)))
    user.call(c.RenameCube(name="/n/b", new_name="/n/c"))
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.read("/n/a") == b"x"
    user.fails(c.StatCube(name="/n/c"), Errno.ENOENT)
    assert user.usage("/n").usage.cubes == 1


def test_an_expiry_that_is_put_off_leaves_no_trace(world: World, user: Client) -> None:
    now = world.clock.wall_ns()
    user.write("/n/a", b"x", governance=Governance(expires_ns=now + SECOND_NS))
    user.call(c.SetHeader(name="/n/a", governance=Governance(expires_ns=now + 9 * SECOND_NS)))
    user.write("/n/a", b"y", governance=Governance(expires_ns=now + 5 * SECOND_NS))
    check_at_rest(world.kernel, world.ram, world.disk)
    world.clock.advance(4 * SECOND_NS)
    assert user.read("/n/a") == b"y"


def test_many_cubes_expire_together(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + 1)
    for number in range(600):
        user.start(c.WriteCube(name=f"/n/{number}", payload=b"x", governance=soon))
    world.settle()
    assert user.usage("/n").usage.cubes == 600
    world.pass_time(world.parameters.expiry_sweep_ns)
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.usage("/n").usage.cubes == 0


def test_a_reader_of_what_it_may_not_know_learns_no_more_than_a_stranger(world: World) -> None:
    root = world.client(ROOT)
    root.make("/r")
    root.write("/r/a", b"x")
    stranger = world.client()
    there = stranger.fails(c.ReadCube(name="/r/a"), Errno.EACCES)
    absent = stranger.fails(c.ReadCube(name="/r/b"), Errno.EACCES)
    assert there.detail == absent.detail
    assert there.message == absent.message


def test_ids_of_cubes_are_of_their_time(world: World, user: Client) -> None:
    first = user.write("/n/a", b"x").id
    world.clock.advance(SECOND_NS)
    second = user.write("/n/b", b"x").id
    assert len(first) == len(second) == 16
    assert first < second
    assert msgspec.structs.asdict(user.stat("/n/a"))["id"] == first
