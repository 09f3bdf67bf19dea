"""The books of a session: numbering, strays, descriptors, without a socket."""

import os
from typing import Any

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Value
from libmem.abi.wire import FdTag, Reply, decode_request, encode
from libmem.ledger import Ledger


def reply_to(seq: int, result: Value, errno: int = 0) -> Reply:
    return Reply(seq=seq, epoch=1, errno=errno, body=msgspec.Raw(encode(result)))


def a_descriptor() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


MAPPED = c.MapReply(handle=9, id=b"i", version=1, size_bytes=1, type=CubeType.BLOB)


def test_requests_are_numbered_and_carry_the_epoch() -> None:
    ledger = Ledger()
    assert decode_request(ledger.encode(c.Info())[1]).epoch == 0
    ledger.epoch = 7
    seq, frame = ledger.encode(c.Info())
    request = decode_request(frame)
    assert (request.seq, request.epoch) == (seq, 7) == (2, 7)


def test_a_message_that_is_too_large_takes_no_number() -> None:
    ledger = Ledger()
    with pytest.raises(MemError) as raised:
        ledger.encode(c.WriteCube("/a/b", bytes(5 << 20)))
    assert raised.value.errno is Errno.EMSGSIZE
    assert ledger.encode(c.Info())[0] == 1


@pytest.mark.parametrize(
    ("request_", "result", "undo"),
    [
        (c.MmapCube("/a/b"), MAPPED, c.MunmapCube(9)),
        (c.CreateCube("/a/b", 1), c.CreateReply(9, 1), c.AbortCube(9)),
        (c.PinCube("/a/b"), c.PinReply(9), c.UnpinCube(9)),
    ],
)
def test_a_late_grant_is_given_back(request_: Any, result: Value, undo: Any) -> None:
    ledger = Ledger()
    seq, _ = ledger.encode(request_)
    ledger.abandon(seq, request_)
    fd = a_descriptor()
    ledger.park(encode(FdTag(9, 1)), [fd])
    ledger.settle(reply_to(seq, result))
    assert list(ledger.released) == [undo]
    assert not is_open(fd)


def test_a_late_refusal_or_a_late_plain_reply_gives_nothing_back() -> None:
    ledger = Ledger()
    seq, _ = ledger.encode(c.PinCube("/a/b"))
    ledger.abandon(seq, c.PinCube("/a/b"))
    ledger.settle(reply_to(seq, c.Done(), errno=int(Errno.ENOENT)))
    ledger.settle(reply_to(seq + 1, c.Done()))
    assert not ledger.released


def test_descriptors_wait_for_their_reply_in_any_order() -> None:
    ledger = Ledger()
    first, second = a_descriptor(), a_descriptor()
    ledger.park(encode(FdTag(1, 1)), [first])
    ledger.park(encode(FdTag(2, 1)), [second])
    assert ledger.unpark(2) == [second]
    assert ledger.unpark(1) == [first]
    os.close(first)
    os.close(second)


def test_a_tag_whose_descriptor_was_lost_on_the_way_says_so() -> None:
    ledger = Ledger()
    ledger.park(encode(FdTag(1, 1)), [])
    assert ledger.has_parked(1)
    assert ledger.unpark(1) == []


def test_what_is_no_tag_is_refused_and_its_descriptor_closed() -> None:
    fd = a_descriptor()
    with pytest.raises(MemError) as raised:
        Ledger().park(b"\xc1", [fd])
    assert raised.value.errno is Errno.EBADMSG
    assert not is_open(fd)


def test_closing_closes_what_nobody_claimed() -> None:
    ledger = Ledger()
    fd = a_descriptor()
    ledger.park(encode(FdTag(1, 1)), [fd])
    ledger.released.append(c.UnpinCube(3))
    ledger.close()
    assert not is_open(fd)
    assert not ledger.released
