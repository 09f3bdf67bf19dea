"""The control road's envelope: msgpack arrays around msgpack maps.

    request  [abi, seq, epoch, number, args]      reply  [seq, epoch, errno, body]

`args` and `body` are maps of the row's structs (`calls.py`). With errno 0 the body is the row's
result, else a `Fault`. `epoch` is the daemon's boot: a request made for another one is answered
ESTALE, except `hello`. The fd road carries `FdTag` messages with one descriptor each.
docs/format.md shows both roads byte by byte.
"""

from functools import cache
from typing import Any

import msgspec

from libmem.abi.calls import Call
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import ABI_VERSION, FRAME_MAX_BYTES
from libmem.abi.structs import Value
from libmem.abi.syscalls import BY_REQUEST, Syscall

__all__ = [
    "Fault",
    "FdTag",
    "Reply",
    "Request",
    "args_decoder",
    "decode_reply",
    "decode_request",
    "decode_result",
    "encode",
    "encode_arguments",
    "encode_error",
    "encode_reply",
    "encode_request",
    "fault_error",
]


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A request before its arguments are looked at."""

    abi: int
    seq: int
    """Chosen by the client, echoed in the reply."""
    epoch: int
    number: int
    args: msgspec.Raw


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """A reply before its body is looked at."""

    seq: int
    epoch: int
    errno: int
    body: msgspec.Raw


class Fault(Value, frozen=True):
    """The body of a failed call."""

    message: str
    detail: dict[str, str | int | float | bool | None] = {}


class FdTag(msgspec.Struct, frozen=True, array_like=True):
    """The bytes beside a descriptor on the fd road; handle 0 acknowledges the token."""

    handle: int
    epoch: int


_encoder = msgspec.msgpack.Encoder()
_request = msgspec.msgpack.Decoder(Request)
_reply = msgspec.msgpack.Decoder(Reply)
_fault = msgspec.msgpack.Decoder(Fault)

encode = _encoder.encode


@cache
def args_decoder(struct: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    """The strict decoder of one struct, made once."""
    return msgspec.msgpack.Decoder(struct)


def encode_request(call: Call[Any], seq: int, epoch: int) -> bytes:
    """One frame for the control road.

    Errors: EMSGSIZE when it is larger than one may be; EINVAL for what cannot be sent.
    """
    row = BY_REQUEST[type(call)]
    frame = _encode_sendable((ABI_VERSION, seq, epoch, row.number, call))
    if len(frame) > FRAME_MAX_BYTES:
        raise MemError(
            Errno.EMSGSIZE,
            f"{row.name}: the message would have {len(frame)} bytes",
            need_bytes=len(frame),
            free_bytes=FRAME_MAX_BYTES,
        )
    return frame


def encode_arguments(call: Call[Any]) -> msgspec.Raw:
    """A call's arguments alone, as a batch carries them. Errors: EINVAL for what cannot be sent."""
    return msgspec.Raw(_encode_sendable(call))


def _encode_sendable(message: object) -> bytes:
    try:
        return encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # An attribute of a type of the caller's own, half a surrogate pair, 2**64.
        raise MemError(Errno.EINVAL, f"this cannot be sent: {error}") from None


def decode_request(frame: bytes) -> Request:
    """Errors: EBADMSG for anything that is not a request envelope."""
    try:
        return _request.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MemError(Errno.EBADMSG, f"not a request: {error}") from None


def encode_reply(seq: int, epoch: int, result: Value) -> bytes:
    return encode((seq, epoch, 0, result))


def encode_error(seq: int, epoch: int, error: MemError) -> bytes:
    return encode((seq, epoch, int(error.errno), Fault(error.message, error.detail)))


def decode_reply(frame: bytes) -> Reply:
    """Errors: EBADMSG when the daemon's reply cannot be understood."""
    try:
        return _reply.decode(frame)
    except (msgspec.DecodeError, ValueError) as error:
        raise MemError(Errno.EBADMSG, f"not a reply: {error}") from None


def decode_result(row: Syscall, errno: int, body: msgspec.Raw) -> Any:
    """The row's result, or raise what the kernel raised."""
    if errno:
        raise fault_error(errno, body)
    try:
        return args_decoder(row.result).decode(body)
    except msgspec.DecodeError as error:
        raise MemError(Errno.EBADMSG, f"{row.name}: {error}") from None


def fault_error(errno: int, body: msgspec.Raw) -> MemError:
    """The MemError that a failed reply carries."""
    fault = _fault.decode(body)
    try:
        return MemError(Errno(errno), fault.message, **fault.detail)
    except ValueError:
        return MemError(Errno.EIO, f"errno {errno}: {fault.message}", **fault.detail)
