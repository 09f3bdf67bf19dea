"""Noise of all kinds on the control road: every message gets one reply that makes sense."""

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import ABI_VERSION
from libmem.abi.structs import CubeType, Descriptive
from libmem.abi.syscalls import BY_NAME, BY_REQUEST, SYSCALLS
from libmem.abi.wire import Reply, decode_reply, decode_request, encode
from tests.e2e.daemon import Daemon
from tests.e2e.raw import RawPeer

CHUNK = 200
SHUTDOWN = BY_NAME["shutdown"].number
FIRST_SEQ = 1 << 40
"""Requests of the fuzz have other numbers than those with which the test asks."""

# A watch would hold its reply back for as long as it says.
VALID: tuple[c.Call[Any], ...] = (
    c.Hello(client="fuzz"),
    c.Info(),
    c.WriteCube(name="/t/x", payload=b"text", descriptive=Descriptive(tags=("a", "b"))),
    c.WriteCube(name="/t/blob", payload=bytes(20_000), type=CubeType.BLOB, expected_version=0),
    c.CreateCube(name="/t/y", size_bytes=4096),
    c.SealCube(handle=1),
    c.ReadCube(name="/t/x", offset_bytes=1, length_bytes=2),
    c.MmapCube(name="/t/blob"),
    c.StatCube(name="/t/x@v1"),
    c.HistoryCube(name="/t/x"),
    c.Readdir(path="/t", cursor="/t/a", limit=10, is_recursive=True),
    c.RenameCube(name="/t/x", new_name="/t/z"),
    c.UnlinkCube(name="/t/z"),
    c.PinCube(name="/t/blob"),
    c.Search(query="text", under="/t", k=3),
    c.Watch(under="/t", since_seq=0, timeout_ms=0),
    c.SetHeader(name="/t/x", attributes={"a": [1, 2.5, None, {"b": b"c"}]}),
    c.MakeNamespace(name="/u", mode=0o750),
    c.Fsck(cursor="00ff", limit=5),
    c.Log(limit=3),
    c.Batch(calls=((0, msgspec.Raw(b"\x80")), (9, msgspec.Raw(b"\x81\xa4name\xa4/t/x")))),
)


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[RawPeer]:
    with RawPeer(daemon.runtime_dir) as peer:
        peer.bind()
        yield peer


def _is_shutdown(frame: bytes) -> bool:
    try:
        return decode_request(frame).number == SHUTDOWN
    except MemError:
        return False


def _exchange(peer: RawPeer, frames: list[bytes]) -> list[Reply]:
    """Send frames; the replies to them, which must be as many and of known errors."""
    frames = [frame for frame in frames if not _is_shutdown(frame)]
    for frame in frames:
        peer.dealer.send(frame)
    replies = [decode_reply(peer.dealer.recv()) for _ in frames]
    assert {reply.errno for reply in replies} <= {0, *Errno}
    assert {reply.errno for reply in replies}.isdisjoint({Errno.EIO, Errno.ECORRUPT})
    return replies


def _chunks(frames: Iterator[bytes], count: int) -> Iterator[list[bytes]]:
    for _ in range(0, count, CHUNK):
        yield [next(frames) for _ in range(CHUNK)]


def _noise(dice: random.Random) -> Iterator[bytes]:
    while True:
        yield dice.randbytes(dice.randrange(200))


def test_random_bytes(peer: RawPeer) -> None:
    for frames in _chunks(_noise(random.Random(1)), 3000):
        for reply in _exchange(peer, frames):
            assert (reply.seq, reply.errno) == (0, Errno.EBADMSG)
    assert peer.errno_of(c.Info()) == 0


def _mutated(dice: random.Random, epoch: int) -> Iterator[bytes]:
    """Valid requests with a few bytes flipped, cut out or put in."""
    while True:
        call = dice.choice(VALID[1:])
        number = BY_REQUEST[type(call)].number
        frame = bytearray(encode((ABI_VERSION, FIRST_SEQ, epoch, number, call)))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(frame))
            match dice.randrange(4):
                case 0:
                    frame[at] ^= 1 << dice.randrange(8)
                case 1:
                    del frame[at : at + dice.randrange(1, 8)]
                case 2:
                    frame[at:at] = dice.randbytes(dice.randrange(1, 8))
                case _:
                    frame[at] = dice.randrange(256)
            if not frame:
                break
        yield bytes(frame)


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_requests(seed: int, peer: RawPeer) -> None:
    for frames in _chunks(_mutated(random.Random(seed), peer.epoch), 4000):
        _exchange(peer, frames)
    assert peer.errno_of(c.Info()) == 0


def _value(dice: random.Random, depth: int = 0) -> Any:
    """Anything that msgpack can say."""
    kind = dice.randrange(10 if depth < 4 else 7)
    match kind:
        case 0:
            return None
        case 1:
            return dice.random() < 0.5
        case 2:
            return dice.choice([0, 1, -1, 7, 2**31, 2**63 - 1, -(2**63), 2**64 - 1])
        case 3:
            return dice.choice([0.0, -1.5, float("nan"), float("inf"), 1e308])
        case 4 | 5:
            return dice.choice(["", "/", "/t", "/t/x", "/t/x@v1", "a\0b", "é" * 300, "ram", "blob"])
        case 6:
            return dice.randbytes(dice.randrange(40))
        case 7:
            return [_value(dice, depth + 1) for _ in range(dice.randrange(4))]
        case _:
            return {_key(dice): _value(dice, depth + 1) for _ in range(dice.randrange(4))}


def _key(dice: random.Random) -> str:
    fields = dice.choice(SYSCALLS).request.__struct_fields__
    return dice.choice([*fields, "name", "path", "unknown", ""])


def _structured(dice: random.Random, epoch: int) -> Iterator[bytes]:
    """Requests whose arguments have the right names and any values."""
    while True:
        row = dice.choice([row for row in SYSCALLS if row.name not in ("hello", "watch")])
        args: Any = {
            field: _value(dice)
            for field in row.request.__struct_fields__
            if dice.random() < 0.8
        }  # fmt: skip
        if dice.random() < 0.1:
            args = _value(dice)
        yield encode((ABI_VERSION, FIRST_SEQ, epoch, row.number, args))


@pytest.mark.parametrize("seed", [1, 2])
def test_right_fields_with_any_values(seed: int, peer: RawPeer) -> None:
    for frames in _chunks(_structured(random.Random(seed), peer.epoch), 4000):
        _exchange(peer, frames)
    assert peer.errno_of(c.Info()) == 0
