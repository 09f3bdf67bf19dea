"""Batches: each call for itself, one reply."""

import msgspec

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.limits import BATCH_MAX_CALLS
from libmem.abi.structs import CubeType
from libmem.abi.syscalls import BY_NAME
from libmem.abi.wire import encode
from tests.kernel.world import Client, World, batch_of

STAT = BY_NAME["stat_cube"].number


def errnos(reply: c.BatchReply) -> list[int]:
    """The outcome of each call."""
    return [item.errno for item in reply.results]


def test_the_calls_of_a_batch_succeed_or_fail_alone_and_in_order(
    world: World, user: Client
) -> None:
    calls = (
        c.WriteCube(name="/n/a", payload=b"1"),
        c.WriteCube(name="/n/a", payload=b"2", expected_version=0),
        c.WriteCube(name="/n/a", payload=b"3", expected_version=1),
        c.ReadCube(name="/n/a"),
        c.StatCube(name="/n/missing"),
        c.WriteCube(name="/n/big", payload=bytes(8192), type=CubeType.BLOB),
        c.ReadCube(name="/n/big"),
    )
    before = world.store.commits
    reply = user.call(batch_of(*calls))
    assert errnos(reply) == [0, Errno.EVERSION, 0, 0, Errno.ENOENT, 0, 0]
    read = msgspec.msgpack.decode(reply.results[3].body, type=c.ReadReply)
    assert (read.payload, read.version) == (b"3", 2)
    assert world.store.commits <= before + 2


def test_a_batch_that_does_not_wait_is_one_commit(world: World, user: Client) -> None:
    before = world.store.commits
    calls = [c.WriteCube(name=f"/n/{n}", payload=b"x") for n in range(64)]
    assert errnos(user.call(batch_of(*calls))) == [0] * 64
    assert world.store.commits == before + 1


def test_a_batch_stops_at_its_first_error_where_asked(world: World, user: Client) -> None:
    calls = (
        c.WriteCube(name="/n/a", payload=b"1"),
        c.StatCube(name="/n/missing"),
        c.WriteCube(name="/n/b", payload=b"2"),
    )
    batch = batch_of(*calls, stop_on_error=True)
    assert errnos(user.call(batch)) == [0, Errno.ENOENT, Errno.ECANCELED]
    assert user.read("/n/a") == b"1"
    user.fails(c.StatCube(name="/n/b"), Errno.ENOENT)


def test_what_cannot_be_part_of_a_batch_fails_alone(world: World, user: Client) -> None:
    refused = batch_of(
        c.Hello(client="x"), c.Batch(calls=()), c.Watch(), c.Sync(), c.Shutdown(), c.Fsck()
    ).calls
    odd = [(999, msgspec.Raw(encode({}))), (STAT, msgspec.Raw(encode({"nane": "/n/a"})))]
    reply = user.call(c.Batch(calls=(*refused, *odd, *batch_of(c.Info()).calls)))
    assert errnos(reply) == [Errno.EOPNOTSUPP] * 6 + [Errno.ENOSYS, Errno.EBADMSG, 0]


def test_a_batch_has_a_limit(world: World, user: Client) -> None:
    calls = [c.StatNamespace(name="/n")] * (BATCH_MAX_CALLS + 1)
    assert errnos(user.call(batch_of(*calls[1:]))) == [0] * BATCH_MAX_CALLS
    user.fails(batch_of(*calls), Errno.EINVAL)
    assert errnos(user.call(batch_of())) == []


def test_a_batch_whose_commit_fails_fails_and_grants_nothing(world: World, user: Client) -> None:
    user.blob("/n/map", bytes(8192))
    world.store.fail_commit(Errno.EIO)
    calls = (c.WriteCube(name="/n/a", payload=b"x"), c.MmapCube(name="/n/map"))
    user.fails(batch_of(*calls), Errno.EIO)
    assert user.session.handles == {}
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)


def test_a_batch_whose_session_ends_in_the_middle_leaves_nothing_behind(
    world: World, user: Client
) -> None:
    user.blob("/n/map", bytes(8192))
    user.call(c.Evict(name="/n/map"))
    calls = (c.MmapCube(name="/n/map"), c.CreateCube(name="/n/new", size_bytes=4096))
    user.start(batch_of(*calls))
    user.die()
    world.settle()
    assert user.session.handles == {}
    assert world.kernel.parts.residents.account.used_bytes == 8192
