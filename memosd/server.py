"""The server: one thread, one loop, between the sockets and the kernel.

    wait (epoll) -> finished I/O -> fd road -> control road, until empty -> timers, group commit

The control road is a ZeroMQ ROUTER. Who sent a message is the `Peer-Address` property that
libzmq took from the socket's credentials (`:uid:gid:pid`), looked at on every message. ZeroMQ's
descriptor is edge-triggered, so the road is drained before the loop waits again. Replies never
block: those that ZeroMQ does not take at once wait here, and a peer that goes on not reading
loses its replies, not the daemon.
"""

import os
import select
from collections import OrderedDict, deque
from pathlib import Path
from typing import Final

import structlog
import zmq

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import FRAME_MAX_BYTES
from libmem.abi.paths import CONTROL_SOCKET, FD_SOCKET
from memosd.fdroad import FdRoad
from memosd.iopool import Wakeup
from memosd.kernel.access import Identity
from memosd.kernel.kernel import Kernel
from memosd.kernel.session import Session
from memosd.kernel.wait import Completion, detach
from memosd.notify import Notifier

__all__ = ["Server"]

_log = structlog.get_logger("memosd.server")
_MESSAGES_PER_TURN: Final = 256
"""Served before the loop looks at other descriptors, timers and the commit again."""
_STRANGERS_MAX: Final = 4096
_LATE_MAX_BYTES: Final = 32 << 20
"""Replies kept for one peer that does not read as fast as it asks; more are dropped."""
_LATE_RETRY_S: Final = 0.05
"""ZeroMQ's descriptor tells when a peer has room again; this is for edges that a send swallowed."""
# As plain integers: arithmetic on zmq's flag enums costs a microsecond each, on every message.
_MORE: Final = int(zmq.SNDMORE | zmq.DONTWAIT)
_NOWAIT: Final = int(zmq.DONTWAIT)
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)
_STOP_GRACE_NS: Final = 30_000_000_000


class ControlPeer:
    """One connection of the control road."""

    __slots__ = (
        "_late",
        "_late_bytes",
        "_router",
        "_routing_id",
        "_slow",
        "address",
        "identity",
        "session",
    )

    def __init__(
        self,
        router: "zmq.Socket[bytes]",
        routing_id: bytes,
        address: str,
        slow: set["ControlPeer"],
    ) -> None:
        """`slow`: where it enrols while replies wait, to be asked to `flush`."""
        self._router = router
        self._routing_id = routing_id
        self._slow = slow
        self._late: deque[bytes] = deque()
        self._late_bytes = 0
        self.address = address
        self.identity = _parse_identity(address)
        self.session: Session | None = None

    def reply(self, frame: bytes) -> None:
        # One commit may answer a thousand calls of one peer, faster than ZeroMQ passes them on.
        if not self._late and self._send(frame):
            return
        if self._late_bytes + len(frame) <= _LATE_MAX_BYTES:
            self._late.append(frame)
            self._late_bytes += len(frame)
            self._slow.add(self)

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._late:
            if not self._send(self._late[0]):
                return
            self._late_bytes -= len(self._late.popleft())
        self._slow.discard(self)

    def _send(self, frame: bytes) -> bool:
        """False when ZeroMQ holds as many replies for this peer as it may."""
        try:
            self._router.send(self._routing_id, _MORE)
            self._router.send(frame, _NOWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            return True  # EHOSTUNREACH: the peer is gone, and the reply is its loss
        return True


def _parse_identity(address: str) -> Identity:
    uid, gid, pid = address.rsplit(":", 3)[1:]
    return Identity(uid=int(uid), gid=int(gid), pid=int(pid))


class Server:
    """Owns the sockets and the loop; `Gate` for the kernel."""

    def __init__(self, runtime_dir: Path, mode: int, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._epoll = select.epoll()
        self._epoll.register(wakeup.fd, select.EPOLLIN)
        self._control_path = runtime_dir / CONTROL_SOCKET
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._router = self._bind_control(mode)
        self._fd_road = FdRoad(runtime_dir / FD_SOCKET, mode, self._epoll)
        self._peers: OrderedDict[bytes, ControlPeer] = OrderedDict()
        self._slow: set[ControlPeer] = set()
        self._is_stopping = False
        self._is_stopped = False
        self._notifier = Notifier()
        self.kernel: Kernel | None = None
        """Set by boot, once the kernel is made; it needs this server as its gate."""

    def _bind_control(self, mode: int) -> "zmq.Socket[bytes]":
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 500)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.MAXMSGSIZE, FRAME_MAX_BYTES)
        router.setsockopt(zmq.BACKLOG, 1024)
        # What one peer that sends without reading may make the daemon hold, in messages.
        router.setsockopt(zmq.RCVHWM, 64)
        router.setsockopt(zmq.SNDHWM, 128)
        # A umask rather than a chmod afterwards: the socket is never open wider than it should be.
        before = os.umask(0o777 & ~mode)
        try:
            router.bind(f"ipc://{self._control_path}")
        except zmq.ZMQError as error:
            message = f"cannot listen on {self._control_path}: {error.strerror}"
            raise MemError(Errno.EACCES, message) from None
        finally:
            os.umask(before)
        self._epoll.register(int(router.fd), select.EPOLLIN)
        return router

    # -- the kernel's gate ---------------------------------------------------------------------

    def send_fd(self, session: Session, handle: int, fd: int) -> None:
        assert self.kernel is not None
        self._fd_road.send_fd(session, handle, fd, self.kernel.epoch)

    def stop(self) -> None:
        """Begin an orderly end; safe from a signal handler."""
        self._wakeup.post(self._begin_stop)

    def _begin_stop(self) -> None:
        kernel = self.kernel
        if self._is_stopping or kernel is None:
            return
        self._is_stopping = True
        _log.info("stopping")
        self._notifier.send("STOPPING=1", "STATUS=writing back")
        kernel.parts.timers.after(_STOP_GRACE_NS, self._give_up)
        done = detach(kernel.stop())
        done.on_done(lambda: self._finish_stop(done))

    def _finish_stop(self, _done: Completion[None]) -> None:
        self._is_stopped = True

    def _give_up(self) -> None:
        _log.error("could not stop in order", grace_s=_STOP_GRACE_NS // 10**9)
        self._is_stopped = True

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped. READY was announced by then."""
        kernel = self.kernel
        assert kernel is not None
        self._announce(kernel)
        while not self._is_stopped:
            self._drain(kernel)
            kernel.turn()
            for peer in list(self._slow):
                peer.flush()
            # Sending may have swallowed the edge that announced a message: look once more.
            delay_s = 0.0 if self._has_message() else self._delay_s(kernel)
            for fd, _ in self._epoll.poll(delay_s):
                if fd == self._wakeup.fd:
                    self._wakeup.deliver()
                else:
                    self._fd_road.serve(fd, kernel)
        self._close(kernel)

    def _delay_s(self, kernel: Kernel) -> float | None:
        """How long the loop may wait for events; None: until one comes."""
        delay_s = kernel.parts.timers.next_delay_s()
        if not self._slow:
            return delay_s
        return _LATE_RETRY_S if delay_s is None else min(delay_s, _LATE_RETRY_S)

    def _announce(self, kernel: Kernel) -> None:
        self._notifier.send("READY=1", f"MAINPID={os.getpid()}", self._status(kernel))
        period_ns = self._notifier.watchdog_period_ns()
        if period_ns is not None:
            kernel.parts.timers.every(
                period_ns, lambda: self._notifier.send("WATCHDOG=1", self._status(kernel))
            )
        _log.info("ready", epoch=kernel.epoch, cubes=kernel.parts.table.count())

    @staticmethod
    def _status(kernel: Kernel) -> str:
        cubes, sessions = kernel.parts.table.count(), len(kernel.sessions)
        return f"STATUS=serving {cubes} cubes to {sessions} sessions"

    def _has_message(self) -> bool:
        return bool(int(self._router.get(_EVENTS)) & _READABLE)

    def _drain(self, kernel: Kernel) -> None:
        """Serve what has arrived, up to a turn's share."""
        for _ in range(_MESSAGES_PER_TURN):
            if not self._has_message():
                return
            self._serve_message(kernel)

    def _serve_message(self, kernel: Kernel) -> None:
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
            peer = self._peers[routing_id] = ControlPeer(
                self._router, routing_id, address, self._slow
            )
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

    def _close(self, kernel: Kernel) -> None:
        self._fd_road.close(kernel)
        self._router.close()
        self._context.term()
        self._control_path.unlink(missing_ok=True)
        self._epoll.close()
