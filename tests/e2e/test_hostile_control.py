"""Peers that speak badly on the control road get one clear error each; nobody else notices."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

import libmem
import libmem.aio
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import BATCH_MAX_CALLS, FRAME_MAX_BYTES, READ_MAX_BYTES
from libmem.abi.syscalls import BY_NAME, BY_NUMBER, SYSCALLS
from tests.e2e.actor import Actor
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.raw import RawPeer, is_hung_up

MIB = 1 << 20


def _packed(*fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b"\xc1",),  # the one byte that msgpack never uses
        (b"GET / HTTP/1.1\r\n\r\n",),
        (os.urandom(1000),),
        (_packed(1, 2, 3),),  # too few fields
        (_packed(1, 2, 3, 4, {}, 6),),  # too many
        (_packed("1", 2, 3, 4, {}),),
        (_packed(1, 2, 3, 4, {})[:-1],),
        (_packed(1, 2, 3, 4, {}) + b"\0",),
        (msgspec.msgpack.encode({"abi": 1}),),
        (b"\x91" * 100_000 + b"\x90",),  # nested 100,000 deep
        (b"\xdd\xff\xff\xff\xff",),  # an array of 4 billion, not there
        (b"\xc6\xff\xff\xff\xff",),  # bytes, likewise
        (_packed(1, 1, 0, 0, {"client": "two"}), b"more"),
        (b"", b""),
        (b"",) * 100,
        (bytes(FRAME_MAX_BYTES),),
    ],
)
def test_what_is_no_request_is_bad(frames: tuple[bytes, ...], shared: Daemon) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        reply = peer.raw(*frames)
        assert (reply.seq, reply.errno) == (0, Errno.EBADMSG)
        peer.bind()  # and the connection is as good as before


@pytest.mark.parametrize(
    ("number", "args"),
    [
        (BY_NAME["stat_cube"].number, {}),
        (BY_NAME["stat_cube"].number, {"name": 7}),
        (BY_NAME["stat_cube"].number, {"name": None}),
        (BY_NAME["stat_cube"].number, {"name": "/t/x", "flags": 1}),
        (BY_NAME["stat_cube"].number, ["/t/x"]),
        (BY_NAME["stat_cube"].number, "/t/x"),
        (BY_NAME["stat_cube"].number, None),
        (BY_NAME["write_cube"].number, {"name": "/t/x", "payload": "text, not bytes: 3"}),
        (BY_NAME["write_cube"].number, {"name": "/t/x", "payload": b"", "type": "novel"}),
        (BY_NAME["write_cube"].number, {"name": "/t/x", "payload": b"", "attributes": {1: 2}}),
        (BY_NAME["create_cube"].number, {"name": "/t/x", "size_bytes": 1.5}),
        (BY_NAME["create_cube"].number, {"name": "/t/x", "size_bytes": True}),
        (BY_NAME["batch"].number, {"calls": [[1]]}),
        (BY_NAME["watch"].number, {"timeout_ms": "long"}),
        (BY_NAME["set_quota"].number, {"namespace": "/t", "quota": {"disk": 1}}),
    ],
)
def test_arguments_of_the_wrong_shape_are_bad(
    number: int, args: object, shared: Daemon, client: libmem.Client
) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        assert peer.numbered(number, args).errno == Errno.EBADMSG
    assert list(client.list("/t")) == []


def test_unknown_numbers_and_versions_are_named(shared: Daemon) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        for number in (-1, max(BY_NUMBER) + 1, 10_000, 2**63):
            assert peer.numbered(number, {}).errno == Errno.ENOSYS
        for abi in (0, 2, -1, 2**40):
            assert peer.errno_of(c.Info(), abi=abi) is Errno.EPROTONOSUPPORT
        assert peer.errno_of(c.Info(), seq=-(2**63)) == 0


def test_a_frame_over_the_limit_ends_its_connection_alone(
    shared: Daemon, client: libmem.Client
) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        peer.dealer.send(bytes(FRAME_MAX_BYTES + 1))
        # ZeroMQ hangs up and connects anew: another connection, which has no session.
        assert peer.errno_of(c.Info()) is Errno.ESTALE
        assert client.info().sessions == 2  # it ends with the fd road, not before
    eventually(lambda: client.info().sessions == 1, "the session is over")


def test_calls_need_a_bound_session_of_this_boot(shared: Daemon) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        for row in SYSCALLS:
            if row.name != "hello":
                assert peer.numbered(row.number, {}).errno == Errno.ESTALE, row.name
        terms = peer.hello()
        for row in SYSCALLS:
            if row.name != "hello":
                assert peer.numbered(row.number, {}).errno == Errno.EPROTO, row.name
        assert peer.show(terms.token)
        assert peer.errno_of(c.Info()) == 0
        for epoch in (0, peer.epoch - 1, peer.epoch + 1, -1):
            assert peer.errno_of(c.Info(), epoch=epoch) is Errno.ESTALE


def test_a_second_hello_ends_the_first_session(shared: Daemon, client: libmem.Client) -> None:
    client.write("/t/x", bytes(MIB), type=libmem.CubeType.BLOB)
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        peer.call(c.PinCube("/t/x"))
        assert client.stat("/t/x").pins == 1
        peer.hello()
        assert client.stat("/t/x").pins == 0
        assert peer.road is not None
        assert is_hung_up(peer.road)  # or each hello would leave a descriptor behind
        assert peer.errno_of(c.Info()) is Errno.EPROTO


def test_a_routing_id_used_again_by_another_process_is_a_stranger(
    shared: Daemon, client: libmem.Client
) -> None:
    """The session belongs to the process that the operating system vouched for, not to a name."""
    client.write("/t/x", "mine")
    program = """
from pathlib import Path
from libmem.abi import calls as c
from tests.e2e.raw import RawPeer
with RawPeer(Path(sys.argv[1]), identity=b"the-same") as peer:
    peer.epoch = client.epoch
    say(peer.errno_of(c.StatCube("/t/x")).name)
    say(peer.errno_of(c.MunmapCube(1)).name)
"""
    with RawPeer(shared.runtime_dir, identity=b"the-same") as peer:
        peer.bind()
        assert peer.errno_of(c.StatCube("/t/x")) == 0
        peer.dealer.close()
        with Actor(shared, program) as thief:
            thief.expect("ESTALE")
            thief.expect("ESTALE")
            thief.end()


def test_batches_have_bounds(shared: Daemon, client: libmem.Client) -> None:
    client.write("/t/large", bytes(READ_MAX_BYTES), type=libmem.CubeType.BLOB)
    stat, read = c.StatCube("/t/large"), c.ReadCube("/t/large")
    with pytest.raises(MemError) as many:
        client.batch([stat] * (BATCH_MAX_CALLS + 1))
    assert many.value.errno is Errno.EINVAL
    inner, hello = client.batch([c.Batch(calls=()), c.Hello(client="me")])
    assert inner.errno is hello.errno is Errno.EOPNOTSUPP
    before = client.info().rss_bytes
    outcomes = client.batch([read] * BATCH_MAX_CALLS)
    served = [item for item in outcomes if not isinstance(item, MemError)]
    refused = {item.errno for item in outcomes if isinstance(item, MemError)}
    assert 1 <= len(served) <= FRAME_MAX_BYTES // READ_MAX_BYTES + 1
    assert refused == {Errno.EMSGSIZE}
    assert client.info().rss_bytes - before < 16 * FRAME_MAX_BYTES


def test_attributes_have_bounds(client: libmem.Client, shared: Daemon) -> None:
    """What was stored must be readable by everybody: deep nesting is refused where it arrives."""
    number = BY_NAME["write_cube"].number
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        for depth in (*range(40, 1000, 60), *range(900, 1000, 5), 100_000):
            nested = b"\x81\xa1x" + b"\x91" * depth + b"\x90"
            args = {"name": "/t/deep", "payload": b"", "attributes": msgspec.Raw(nested)}
            reply = peer.numbered(number, args)
            assert reply.errno in (Errno.EINVAL, Errno.EBADMSG), depth
        odd = b"\x81\xa1x\x81\x80\x01"  # a map whose key is a map
        args = {"name": "/t/odd", "payload": b"", "attributes": msgspec.Raw(odd)}
        assert peer.numbered(number, args).errno == Errno.EBADMSG
    with pytest.raises(MemError) as large:
        client.write("/t/x", "", attributes={"x": "y" * 300_000})
    assert large.value.errno is Errno.EINVAL
    assert list(client.list("/t")) == []


async def _burst(runtime_dir: Path) -> list[object]:
    async with await libmem.aio.connect(runtime_dir) as client:
        writes = (client.write(f"/t/{number}", "many") for number in range(2000))
        return list(await asyncio.gather(*writes, return_exceptions=True))


def test_a_burst_of_calls_from_one_client_is_answered_whole(
    shared: Daemon, client: libmem.Client
) -> None:
    """One commit answers them all at once, faster than ZeroMQ takes the replies."""
    outcomes = asyncio.run(_burst(shared.runtime_dir))
    assert [item for item in outcomes if isinstance(item, BaseException)] == []
    assert client.stat_namespace("/t").usage.cubes == 2000


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_client_that_reads_no_replies_is_hung_up_on(
    shared: Daemon, client: libmem.Client
) -> None:
    """It must learn that replies are lost: of a dropped one it would never know."""
    client.write("/t/large", bytes(READ_MAX_BYTES), type=libmem.CubeType.BLOB)
    before = _rss_bytes(shared.pid)
    with RawPeer(shared.runtime_dir, rcvhwm=1) as peer:
        peer.bind()
        for _ in range(600):
            peer.post(c.ReadCube("/t/large"))
        assert peer.road is not None
        assert is_hung_up(peer.road)
        assert client.stat("/t/large").behaviour.reads < 600
        assert _rss_bytes(shared.pid) - before < 300 * MIB
        assert client.read("/t/large") == bytes(READ_MAX_BYTES)
    eventually(lambda: _rss_bytes(shared.pid) - before < 100 * MIB, "what was kept is free")


def test_a_flood_of_requests_lets_others_through(shared: Daemon, client: libmem.Client) -> None:
    with RawPeer(shared.runtime_dir, sndhwm=0) as peer:
        peer.bind()
        for _ in range(20_000):
            peer.post(c.StatCube("/t/absent"))
        client.write("/t/x", "in between")
        assert client.read("/t/x") == b"in between"
