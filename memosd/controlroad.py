"""The control road: a ZeroMQ ROUTER that carries requests in and replies out.

Who sent a message is the `Peer-Address` property that libzmq took from the socket's credentials
(`:uid:gid:pid`), looked at on every message. ZeroMQ's descriptor is edge-triggered and sending
may swallow an edge, so the loop asks `has_message` before it waits, unless nothing was sent since
the road was last found empty. Replies never block: those that ZeroMQ does not take at once wait
here, and a peer that goes on not reading loses its replies, not the daemon.
"""

import os
import select
from collections import OrderedDict, deque
from pathlib import Path
from typing import Final

import zmq

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import FRAME_MAX_BYTES
from memosd.kernel.access import Identity
from memosd.kernel.kernel import Kernel
from memosd.kernel.session import Session

__all__ = ["ControlRoad"]

_MESSAGES_PER_TURN: Final = 16
"""Served before the loop looks at other descriptors, timers and the commit again."""
_STRANGERS_MAX: Final = 4096
_LATE_MAX_BYTES: Final = 64 << 20
"""Replies kept for one peer that does not read as fast as it asks; more are dropped."""
_LATE_RETRY_S: Final = 0.05
"""ZeroMQ's descriptor tells when a peer has room again; this is for edges that a send swallowed."""
# As plain integers: arithmetic on zmq's flag enums costs a microsecond each, on every message.
_MORE: Final = int(zmq.SNDMORE | zmq.DONTWAIT)
_NOWAIT: Final = int(zmq.DONTWAIT)
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)


class ControlPeer:
    """One connection, the kernel's `Peer`."""

    __slots__ = ("_late", "_late_bytes", "_road", "_routing_id", "address", "identity", "session")

    def __init__(self, road: "ControlRoad", routing_id: bytes, address: str) -> None:
        self._road = road
        self._routing_id = routing_id
        self._late: deque[bytes] = deque()
        self._late_bytes = 0
        self.address = address
        self.identity = _parse_identity(address)
        self.session: Session | None = None

    def reply(self, frame: bytes) -> None:
        # One commit may answer a thousand calls of one peer, faster than ZeroMQ passes them on.
        if self._late:
            self.flush()
        if not self._late and self._road.send(self._routing_id, frame):
            return
        if self._late_bytes + len(frame) <= _LATE_MAX_BYTES:
            self._late.append(frame)
            self._late_bytes += len(frame)
            self._road.slow.add(self)

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._late:
            if not self._road.send(self._routing_id, self._late[0]):
                return
            self._late_bytes -= len(self._late.popleft())
        self._road.slow.discard(self)


def _parse_identity(address: str) -> Identity:
    uid, gid, pid = address.rsplit(":", 3)[1:]
    return Identity(uid=int(uid), gid=int(gid), pid=int(pid))


class ControlRoad:
    """The listening socket and all peers."""

    def __init__(self, path: Path, mode: int, epoll: select.epoll) -> None:
        self._path = path
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._router = self._bind(mode)
        self._peers: OrderedDict[bytes, ControlPeer] = OrderedDict()
        self.slow: set[ControlPeer] = set()
        """Peers with replies that wait."""
        self._is_empty = False
        """Nothing has arrived, and nothing was sent since that was found."""
        self.fd = int(self._router.fd)
        epoll.register(self.fd, select.EPOLLIN)

    def _bind(self, mode: int) -> "zmq.Socket[bytes]":
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 500)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.MAXMSGSIZE, FRAME_MAX_BYTES)
        router.setsockopt(zmq.BACKLOG, 1024)
        # What one peer that sends without reading may make the daemon hold, in messages.
        router.setsockopt(zmq.RCVHWM, 64)
        router.setsockopt(zmq.SNDHWM, 64)
        # A umask rather than a chmod afterwards: the socket is never open wider than it should be.
        before = os.umask(0o777 & ~mode)
        try:
            router.bind(f"ipc://{self._path}")
        except zmq.ZMQError as error:
            message = f"cannot listen on {self._path}: {error.strerror}"
            raise MemError(Errno.EACCES, message) from None
        finally:
            os.umask(before)
        return router

    def drain(self, kernel: Kernel) -> None:
        """Serve what has arrived, up to a turn's share."""
        for _ in range(_MESSAGES_PER_TURN):
            if not self.has_message():
                return
            self._serve(kernel)

    def has_message(self) -> bool:
        """Is there something to serve? To be asked before the loop waits."""
        if self._is_empty:
            return False
        self._is_empty = not int(self._router.get(_EVENTS)) & _READABLE
        return not self._is_empty

    def woken(self) -> None:
        """The descriptor became readable: look again."""
        self._is_empty = False

    def wait_s(self, delay_s: float | None) -> float | None:
        """How long the loop may wait, given what else it waits for; None: until an event."""
        if not self.slow:
            return 0.0 if self.has_message() else delay_s
        for peer in list(self.slow):
            peer.flush()
        if self.has_message():
            return 0.0
        return _LATE_RETRY_S if delay_s is None else min(delay_s, _LATE_RETRY_S)

    def _serve(self, kernel: Kernel) -> None:
        head = self._router.recv(_NOWAIT, copy=False)
        body = self._router.recv(_NOWAIT, copy=False)
        last = body
        while last.more:
            last = self._router.recv(_NOWAIT, copy=False)
        peer = self._peer(head.bytes, str(head.get("Peer-Address")))
        # A request is one frame; more of them are none.
        kernel.serve(peer, peer.identity, body.bytes if last is body else b"")

    def _peer(self, routing_id: bytes, address: str) -> ControlPeer:
        peer = self._peers.get(routing_id)
        if peer is None or peer.address != address:
            # New, or another process under a routing id that was used before.
            peer = self._peers[routing_id] = ControlPeer(self, routing_id, address)
            if len(self._peers) > _STRANGERS_MAX:
                self._forget_strangers()
        return peer

    def _forget_strangers(self) -> None:
        """Drop connections without a live session; a peer that comes back is made anew."""
        self._peers = OrderedDict(
            (routing_id, peer)
            for routing_id, peer in self._peers.items()
            if peer.session is not None and not peer.session.is_ended
        )

    def send(self, routing_id: bytes, frame: bytes) -> bool:
        """False when ZeroMQ holds as many replies for this peer as it may."""
        self._is_empty = False
        try:
            self._router.send(routing_id, _MORE)
            self._router.send(frame, _NOWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            return True  # EHOSTUNREACH: the peer is gone, and the reply is its loss
        return True

    def close(self) -> None:
        """Send what is queued, for half a second at most, and close."""
        self._router.close()
        self._context.term()
        self._path.unlink(missing_ok=True)
