"""The control road: a ZeroMQ ROUTER that carries requests in and replies out.

Who sent a message is the `Peer-Address` property that libzmq took from the socket's credentials
(`:uid:gid:pid`), looked at on every message. ZeroMQ's descriptor is edge-triggered and sending
may swallow an edge, so the loop asks `has_message` before it waits, unless nothing was sent since
the road was last found empty. Replies never block: those that ZeroMQ does not take at once wait
here. A peer that goes on not reading is hung up on before they become too many: no reply is
dropped that its client would then wait for.
"""

import os
import select
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Final

import zmq

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import FRAME_MAX_BYTES
from memosd.connections import Connections
from memosd.descriptors import Descriptors
from memosd.kernel.access import Identity
from memosd.kernel.kernel import Kernel
from memosd.kernel.session import Session

__all__ = ["ControlRoad"]

_MESSAGES_PER_TURN: Final = 256
"""Served before the loop looks at other descriptors, timers and the commit again."""
_STRANGERS_MAX: Final = 4096
_LATE_PEER_BYTES: Final = 64 << 20
"""Replies kept for one peer that does not read as fast as it asks, ..."""
_LATE_USER_BYTES: Final = 128 << 20
"""... for all peers of one user, ..."""
_LATE_BYTES: Final = 256 << 20
"""... and for all together; beyond it whoever makes most of them wait is hung up on."""
_LATE_RETRY_S: Final = 0.05
"""ZeroMQ's descriptor tells when a peer has room again; this is for edges that a send swallowed."""
# As plain integers: arithmetic on zmq's flag enums costs a microsecond each, on every message.
_MORE: Final = int(zmq.SNDMORE | zmq.DONTWAIT)
_NOWAIT: Final = int(zmq.DONTWAIT)
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)


class ControlPeer:
    """One connection, the kernel's `Peer`."""

    __slots__ = (
        "_late",
        "_road",
        "address",
        "fd",
        "identity",
        "is_hung_up",
        "late_bytes",
        "routing_id",
        "session",
    )

    def __init__(self, road: "ControlRoad", routing_id: bytes, address: str, fd: int) -> None:
        self._road = road
        self._late: deque[bytes] = deque()
        self.late_bytes = 0
        self.routing_id = routing_id
        self.address = address
        self.fd = fd
        """libzmq's descriptor of the connection."""
        self.is_hung_up = False
        self.identity = _parse_identity(address)
        self.session: Session | None = None

    def reply(self, frame: bytes) -> None:
        # One commit may answer a thousand calls of one peer, faster than ZeroMQ passes them on.
        if self._late:
            self.flush()
        if self.is_hung_up or (not self._late and self._road.send(self.routing_id, frame)):
            return
        self._late.append(frame)
        self.late_bytes += len(frame)
        self._road.note_late(self, len(frame))

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._late and self._road.send(self.routing_id, self._late[0]):
            self._forget(self._late.popleft())

    def drop_late(self) -> None:
        """Give up what waits."""
        while self._late:
            self._forget(self._late.popleft())

    def _forget(self, frame: bytes) -> None:
        self.late_bytes -= len(frame)
        self._road.note_late(self, -len(frame))


def _is_live(peer: ControlPeer) -> bool:
    return peer.session is not None and not peer.session.is_ended


def _parse_identity(address: str) -> Identity:
    uid, gid, pid = address.rsplit(":", 3)[1:]
    return Identity(uid=int(uid), gid=int(gid), pid=int(pid))


class ControlRoad:
    """The listening socket and all peers."""

    def __init__(self, path: Path, mode: int, epoll: select.epoll, share: Descriptors) -> None:
        self._path = path
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._router = self._make_router()
        limit = share.sessions + share.strangers
        self.connections = Connections(self._router, path, limit, epoll)
        self._bind(mode)
        self._peers: OrderedDict[bytes, ControlPeer] = OrderedDict()
        self._slow: set[ControlPeer] = set()
        """Peers with replies that wait."""
        self._late_by_user: Counter[int] = Counter()
        """Bytes of replies that wait; users without any are left out."""
        self._deaf: list[ControlPeer] = []
        """Peers to hang up on."""
        self._is_empty = False
        """Nothing has arrived, and nothing was sent since that was found."""
        self.fd = int(self._router.fd)
        epoll.register(self.fd, select.EPOLLIN)

    def _make_router(self) -> "zmq.Socket[bytes]":
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 500)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.MAXMSGSIZE, FRAME_MAX_BYTES)
        router.setsockopt(zmq.BACKLOG, 1024)
        # What one peer that sends without reading may make the daemon hold, in messages.
        router.setsockopt(zmq.RCVHWM, 64)
        router.setsockopt(zmq.SNDHWM, 64)
        return router

    def _bind(self, mode: int) -> None:
        # A umask rather than a chmod afterwards: the socket is never open wider than it should be.
        before = os.umask(0o777 & ~mode)
        try:
            self._router.bind(f"ipc://{self._path}")
        except zmq.ZMQError as error:
            message = f"cannot listen on {self._path}: {error.strerror}"
            raise MemError(Errno.EACCES, message) from None
        finally:
            os.umask(before)

    def drain(self, kernel: Kernel) -> None:
        """Serve what has arrived, up to a turn's share."""
        while self._deaf:
            self._hang_up(self._deaf.pop(), kernel)
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

    def count_connections(self) -> None:
        """`connections.fd` became readable: hang up on strangers where there are too many."""
        if self.connections.read_events():
            live = (peer for peer in self._peers.values() if _is_live(peer))
            self.connections.shrink({peer.fd for peer in live})

    def wait_s(self, delay_s: float | None) -> float | None:
        """How long the loop may wait, given what else it waits for; None: until an event."""
        if not self._slow:
            return 0.0 if self._deaf or self.has_message() else delay_s
        for peer in list(self._slow):
            peer.flush()
        if self._deaf or self.has_message():
            return 0.0
        return _LATE_RETRY_S if delay_s is None else min(delay_s, _LATE_RETRY_S)

    def _serve(self, kernel: Kernel) -> None:
        head = self._router.recv(_NOWAIT, copy=False)
        body = self._router.recv(_NOWAIT, copy=False)
        last = body
        while last.more:
            last = self._router.recv(_NOWAIT, copy=False)
        peer = self._peer(head)
        # A request is one frame; more of them are none.
        kernel.serve(peer, peer.identity, body.bytes if last is body else b"")

    def _peer(self, head: zmq.Frame) -> ControlPeer:
        routing_id, address = head.bytes, str(head.get("Peer-Address"))
        peer = self._peers.get(routing_id)
        if peer is None or peer.address != address:
            # New, or another process under a routing id that was used before.
            if len(self._peers) >= _STRANGERS_MAX:
                self._forget_strangers()
            peer = ControlPeer(self, routing_id, address, int(head.get("__fd")))
            self._peers[routing_id] = peer
        return peer

    def _forget_strangers(self) -> None:
        """Drop connections without a live session; a peer that comes back is made anew."""
        self._peers = OrderedDict(
            (routing_id, peer) for routing_id, peer in self._peers.items() if _is_live(peer)
        )

    def note_late(self, peer: ControlPeer, more_bytes: int) -> None:
        """Of the replies to a peer, `more_bytes` more, or less, wait than before."""
        user, late = peer.identity.uid, self._late_by_user
        late[user] += more_bytes
        if not late[user]:
            del late[user]
        if not peer.late_bytes:
            self._slow.discard(peer)
            return
        self._slow.add(peer)
        if more_bytes < 0:
            return
        if peer.late_bytes > _LATE_PEER_BYTES:
            self._give_up(peer)
        elif late[user] > _LATE_USER_BYTES:
            self._give_up_slowest(user)
        elif late.total() > _LATE_BYTES:
            self._give_up_slowest(late.most_common(1)[0][0])

    def _give_up_slowest(self, user: int) -> None:
        peers = (peer for peer in self._slow if peer.identity.uid == user)
        self._give_up(max(peers, key=lambda peer: peer.late_bytes))

    def _give_up(self, peer: ControlPeer) -> None:
        # Only marked: a reply may leave in the middle of what its session's end would undo.
        peer.is_hung_up = True
        peer.drop_late()
        self._deaf.append(peer)

    def _hang_up(self, peer: ControlPeer, kernel: Kernel) -> None:
        self.connections.hang_up(peer.fd)
        if self._peers.get(peer.routing_id) is peer:
            del self._peers[peer.routing_id]
        if peer.session is not None:
            kernel.gone(peer.session)

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
        # First, for nobody counts from here on who is let in.
        self._router.unbind(f"ipc://{self._path}")
        self.connections.close()
        self._router.close()
        self._context.term()
        self._path.unlink(missing_ok=True)
