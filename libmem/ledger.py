"""What one bound session knows, without a socket: sequence numbers, strays, descriptors.

Owns the numbering of requests, the memory of calls that were given up, the descriptors that
arrived before their reply was looked at, and the queue of handles to give back. Nothing here
does I/O beyond closing a descriptor, so tests need no daemon.

Invariant: every handle the daemon granted is held by somebody, or stands in `released`.

Called by `Link` alone, under its client's lock (or on its event loop). The one exception is
`released`: garbage collection appends to it from any thread, which a deque allows.
"""

import os
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from libmem.abi.calls import (
    AbortCube,
    Call,
    CreateCube,
    MapJob,
    MmapCube,
    MunmapCube,
    PinCube,
    UnpinCube,
)
from libmem.abi.errors import Errno, MemError
from libmem.abi.syscalls import BY_REQUEST, Syscall
from libmem.abi.wire import FdTag, Reply, args_decoder, decode_result, encode_request

__all__ = ["DESCRIPTOR_CALLS", "Ledger", "close_all", "undo_of"]

_UNDO: Final[dict[type[Call[Any]], type[Any]]] = {
    CreateCube: AbortCube,
    MmapCube: MunmapCube,
    MapJob: MunmapCube,
    PinCube: UnpinCube,
}
"""The calls whose reply grants a handle, and how it is given back."""

DESCRIPTOR_CALLS: Final = frozenset({CreateCube, MapJob, MmapCube})
"""Of those, the ones whose handle comes with a descriptor on the fd road."""


def undo_of(request: type[Call[Any]], handle: int) -> Call[Any]:
    """The request that gives back what `request` was granted as `handle`."""
    undo: Call[Any] = _UNDO[request](handle=handle)
    return undo


class Ledger:
    """The books of one session."""

    __slots__ = ("_abandoned", "_parked", "_seq", "epoch", "released")

    def __init__(self) -> None:
        self.epoch = 0
        """The daemon's boot; 0 until its hello is in."""
        self.released: deque[Call[Any]] = deque()
        """Requests that give handles back; sent with the next call, their replies ignored."""
        self._seq = 0
        self._abandoned: dict[int, Syscall] = {}
        self._parked: dict[int, list[int]] = {}
        """The descriptors of a handle that nobody claimed yet; fewer than were sent where this
        process may open no more."""

    def encode(self, request: Call[Any]) -> tuple[int, bytes]:
        """Number a request and make its frame. Errors: EMSGSIZE; EINVAL for what cannot be sent."""
        seq = self._seq + 1
        frame = encode_request(request, seq, self.epoch)
        self._seq = seq
        return seq, frame

    def abandon(self, seq: int, request: Call[Any]) -> None:
        """Nobody waits for this reply any more; should it grant a handle, give that back."""
        if type(request) in _UNDO:
            self._abandoned[seq] = BY_REQUEST[type(request)]

    def settle(self, reply: Reply) -> None:
        """Take a reply that nobody waits for. Its descriptor, if any, was parked before."""
        row = self._abandoned.pop(reply.seq, None)
        if row is not None and reply.errno == 0:
            self.give_back(row, decode_result(row, 0, reply.body).handle)

    def give_back(self, row: Syscall, handle: int) -> None:
        """Close what came with a granted handle, and queue the request that releases it."""
        close_all(self._parked.pop(handle, []))
        self.released.append(undo_of(row.request, handle))

    def park(self, message: bytes, fds: list[int]) -> None:
        """Keep descriptors until their reply is read. Errors: EBADMSG (no tag beside them)."""
        try:
            tag: FdTag = args_decoder(FdTag).decode(message)
        except ValueError as error:  # msgspec's DecodeError is one
            close_all(fds)
            raise MemError(Errno.EBADMSG, f"not a descriptor's tag: {error}") from None
        close_all(self._parked.pop(tag.handle, []))
        self._parked[tag.handle] = fds

    def has_parked(self, handle: int) -> bool:
        """True when the tag of `handle` has arrived."""
        return handle in self._parked

    def unpark(self, handle: int) -> list[int]:
        """Take the descriptors that came for `handle`."""
        return self._parked.pop(handle)

    def close(self) -> None:
        """Close what was never claimed and forget the rest: the daemon frees the handles."""
        for fds in self._parked.values():
            close_all(fds)
        self._parked.clear()
        self._abandoned.clear()
        self.released.clear()


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors of this process."""
    for fd in fds:
        os.close(fd)
