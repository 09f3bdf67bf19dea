"""Cubes: versions, compare and swap, headers, governance, parents, names, expiry."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import (
    READ_MAX_BYTES,
)
from libmem.abi.structs import (
    CubeType,
    TierName,
)
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import KIB, Client, World

PAGED = 4 * KIB
"""Beyond the inline limit of these tests."""


def put(user: Client, name: str, payload: bytes, **fields: Any) -> c.WriteReply:
    """A write by the road of large payloads: create, fill in place, seal."""
    made = user.call(c.CreateCube(name=name, size_bytes=len(payload), type=CubeType.BLOB, **fields))
    user.fill(made.handle, payload)
    return user.call(c.SealCube(handle=made.handle))


# -- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, 1, 1 * KIB, 1 * KIB + 1, PAGED, PAGED + 1, 64 * KIB])
@pytest.mark.parametrize("road", ["write", "create"])
def test_what_is_written_is_read_whatever_its_size(
    user: Client, size_bytes: int, road: str
) -> None:
    payload = bytes(i * 7 % 251 for i in range(size_bytes))
    written = (user.blob if road == "write" else lambda n, p: put(user, n, p))("/n/a", payload)
    assert (written.version, written.digest) == (1, digest_of(payload))
    assert user.read("/n/a") == payload
    stat = user.stat("/n/a")
    assert (stat.id, stat.size_bytes, stat.digest) == (written.id, size_bytes, written.digest)
    assert "disk" in stat.tiers
    if size_bytes:
        assert user.mapped("/n/a") == payload


def test_every_version_is_kept_and_readable(user: Client) -> None:
    payloads = [b"one", bytes(PAGED), b"", b"four" * 1000]
    for payload in payloads:
        user.blob("/n/a", payload)
    for number, payload in enumerate(payloads, 1):
        reply = user.call(c.ReadCube(name=f"/n/a@v{number}"))
        assert (reply.payload, reply.version) == (payload, number)
        stat = user.stat(f"/n/a@v{number}")
        assert (stat.version, stat.latest_version) == (number, 4)
    assert user.read("/n/a") == payloads[-1]
    history = user.call(c.HistoryCube(name="/n/a")).versions
    assert [stat.version for stat in history] == [4, 3, 2, 1]
    assert [stat.digest for stat in history] == [digest_of(p) for p in reversed(payloads)]
    short = user.call(c.HistoryCube(name="/n/a", limit=2)).versions
    assert [stat.version for stat in short] == [4, 3]


@pytest.mark.parametrize("version", [3, 1 << 31, (1 << 32) - 1, 1 << 32, 9_999_999_999])
def test_a_version_that_never_was_is_absent(user: Client, version: int) -> None:
    user.write("/n/a", b"1")
    user.write("/n/a", b"2")
    for request in (c.ReadCube, c.StatCube, c.MmapCube, c.PinCube, c.UnlinkCube):
        user.fails(request(name=f"/n/a@v{version}"), Errno.ENOENT)


def test_a_version_number_is_never_used_twice(user: Client) -> None:
    for _ in range(3):
        user.write("/n/a", b"x")
    user.unlink("/n/a@v2")
    assert user.write("/n/a", b"y").version == 4
    user.fails(c.ReadCube(name="/n/a@v2"), Errno.ENOENT)
    assert [s.version for s in user.call(c.HistoryCube(name="/n/a")).versions] == [4, 3, 1]


def test_a_cube_of_an_old_name_is_another_cube(user: Client) -> None:
    first = user.write("/n/a", b"x")
    user.unlink("/n/a")
    second = user.write("/n/a", b"y")
    assert second.version == 1
    assert second.id != first.id


def test_a_cube_keeps_its_type_and_its_creation(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    made = user.stat("/n/a")
    world.clock.advance(SECOND_NS)
    user.fails(c.WriteCube(name="/n/a", payload=b"x", type=CubeType.BLOB), Errno.EINVAL)
    user.write("/n/a", b"y")
    stat = user.stat("/n/a")
    assert (stat.created_ns, stat.modified_ns) == (made.created_ns, made.modified_ns + SECOND_NS)
    del world.kernel.parts.drivers[CubeType.PARAMETRIC]
    user.fails(c.WriteCube(name="/n/b", payload=b"x", type=CubeType.PARAMETRIC), Errno.EOPNOTSUPP)


def test_parts_are_read_by_offset_and_length(user: Client) -> None:
    for name, payload in (("/n/in", b"0123456789"), ("/n/out", bytes(range(250)) * 20)):
        user.blob(name, payload)
        for offset, length in ((0, None), (3, 4), (3, None), (9, 100), (len(payload), 5), (0, 0)):
            reply = user.call(c.ReadCube(name=name, offset_bytes=offset, length_bytes=length))
            end = None if length is None else offset + length
            assert reply.payload == payload[offset:end]
            assert reply.size_bytes == len(payload)
        user.fails(c.ReadCube(name=name, offset_bytes=-1), Errno.EINVAL)
        user.fails(c.ReadCube(name=name, length_bytes=-1), Errno.EINVAL)
        beyond = c.ReadCube(name=name, offset_bytes=1 << 62, length_bytes=1 << 62)
        assert user.call(beyond).payload == b""


def test_too_much_for_one_message_is_refused(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 << 20, disk_budget_bytes=16 << 20)
    user = world.client()
    user.make("/n")
    put(user, "/n/a", bytes(READ_MAX_BYTES + 1))
    error = user.fails(c.ReadCube(name="/n/a"), Errno.EFBIG)
    assert error.detail["need_bytes"] == READ_MAX_BYTES + 1
    assert len(user.call(c.ReadCube(name="/n/a", offset_bytes=1)).payload) == READ_MAX_BYTES
    too_large = c.WriteCube(
        name="/n/b", payload=bytes(world.parameters.call_by_value_bytes + 1), type=CubeType.BLOB
    )
    user.fails(too_large, Errno.EFBIG)


def test_an_empty_payload_is_read_but_not_mapped(user: Client) -> None:
    user.blob("/n/a", b"")
    assert user.read("/n/a") == b""
    user.fails(c.MmapCube(name="/n/a"), Errno.EINVAL)
    user.fails(c.MigrateCube(name="/n/a", tier=TierName.RAM), Errno.EOPNOTSUPP)
    handle = user.call(c.PinCube(name="/n/a")).handle
    user.fails(c.Evict(name="/n/a"), Errno.EBUSY)
    user.call(c.UnpinCube(handle=handle))
    assert user.call(c.Evict(name="/n/a")).freed_bytes == 4 * KIB, "a frame is never for nothing"


# -- compare and swap ----------------------------------------------------------------------------


def mutations(user: Client, name: str, expected: int | None) -> list[c.Call[Any]]:
    """Every call that changes a cube, with what version it expects."""
    return [
        c.WriteCube(name=name, payload=b"new", type=CubeType.BLOB, expected_version=expected),
        c.CreateCube(name=name, size_bytes=3, type=CubeType.BLOB, expected_version=expected),
        c.SetHeader(name=name, attributes={"new": 1}, expected_version=expected),
        c.RenameCube(name=name, new_name=name + "-renamed", expected_version=expected),
        c.UnlinkCube(name=name, expected_version=expected),
    ]


@pytest.mark.parametrize("which", range(5))
def test_every_mutation_compares_and_swaps(user: Client, which: int) -> None:
    user.blob("/n/a", b"1")
    user.blob("/n/a", b"2")
    for wrong in (0, 1, 3, -1):
        error = user.fails(mutations(user, "/n/a", wrong)[which], Errno.EVERSION)
        assert error.detail == {"cube": "/n/a", "version": 2, "expected_version": wrong}
    assert user.read("/n/a") == b"2"
    assert user.stat("/n/a").version == 2
    user.call(mutations(user, "/n/a", 2)[which])
    user.blob("/n/b", b"1")
    user.call(mutations(user, "/n/b", None)[which])


def test_expecting_nothing_makes_a_new_cube_and_never_overwrites(user: Client) -> None:
    user.call(c.WriteCube(name="/n/a", payload=b"1", expected_version=0))
    user.fails(c.WriteCube(name="/n/a", payload=b"2", expected_version=0), Errno.EVERSION)
    user.fails(c.WriteCube(name="/n/b", payload=b"2", expected_version=1), Errno.EVERSION)
    user.fails(c.StatCube(name="/n/b"), Errno.ENOENT)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_writers_who_saw_the_same_version_one_loses(
    world: World, user: Client, order: tuple[int, int]
) -> None:
    user.blob("/n/a", b"seen by both")
    calls = [
        user.start(
            c.WriteCube(
                name="/n/a", payload=bytes([n]) * PAGED, type=CubeType.BLOB, expected_version=1
            )
        )
        for n in range(2)
    ]
    for _ in range(10):
        for place in order:
            if place < len(world.io.jobs):
                world.io.finish_at(place)
    world.settle()
    outcomes = [call.errno() for call in calls]
    assert sorted(outcomes) == [0, Errno.EVERSION]
    winner = outcomes.index(0)
    assert user.read("/n/a") == bytes([winner]) * PAGED
    assert user.stat("/n/a").version == 2


def test_a_fill_is_compared_again_when_it_is_sealed(user: Client) -> None:
    made = user.call(c.CreateCube(name="/n/a", size_bytes=4, expected_version=0))
    user.write("/n/a", b"first", type=CubeType.BLOB)
    user.fails(c.SealCube(handle=made.handle), Errno.EVERSION)
    assert user.read("/n/a") == b"first"
    assert user.session.handles == {}, "the fill is given back"
