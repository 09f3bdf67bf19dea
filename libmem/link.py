"""One link to one running daemon: the control road's DEALER and the fd road, used as one.

Owns both sockets and their ledger. A link is good for one boot of the daemon: it is never
repaired, only closed and replaced (`Connection`).

The daemon's death shows as the end of the fd road. `receive` waits on the DEALER alone for the
first milliseconds, where nearly every reply comes (polling two sockets costs 4 of 45 us), and on
both roads after that, so that an end is noticed at once and no time-out is needed to see it.

Fork: a link belongs to the process that made it. In a forked child the copy of the fd road is
closed at once, or the daemon would not see the parent die; the DEALER and its context are
never touched there, and pyzmq itself closes neither outside the process that made them.

Called by one thread at a time; the clients see to that.
"""

import math
import os
import select
import socket
import time
import weakref
from array import array
from collections.abc import Callable
from typing import Any, Final

import zmq

from libmem.abi.calls import Call, HelloReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_CHAIN_MAX
from libmem.abi.wire import Reply, decode_reply
from libmem.ledger import Ledger, close_all

__all__ = ["GRACE_MS", "Link", "new_dealer", "new_road", "timed_out"]

_GLANCE_MS: Final = 5
"""How long a reply is awaited on the control road alone."""
GRACE_MS: Final = 50
"""How long a reply that was sent before the daemon died may take to come through ZeroMQ."""
_TAG_MAX_BYTES: Final = 64
_FD_BYTES: Final = array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_LEN(KV_CHAIN_MAX * _FD_BYTES)
"""With one tag: a descriptor for each part of a cube."""
_RECEIVE_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class _Process:
    """What must not outlive a fork: this process's ZeroMQ context and its ends of fd roads."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.roads: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._inherited: list[zmq.Context[zmq.Socket[bytes]]] = []

    def after_fork_in_child(self) -> None:
        self._inherited.append(self.context)  # never collected: it is the parent's
        self.context = zmq.Context()
        for road in tuple(self.roads):
            road.close()
        self.roads.clear()


_process = _Process()
os.register_at_fork(after_in_child=_process.after_fork_in_child)


class _Dealer(zmq.Socket[bytes]):
    """A DEALER that is dropped in silence; pyzmq closes it only in the process that made it."""

    def __del__(self) -> None:
        self.close()


class _Road(socket.socket):
    """An end of the fd road that is dropped in silence, in whatever order a cycle is collected."""

    def __del__(self) -> None:
        self.close()


def new_dealer(path: str) -> zmq.Socket[bytes]:
    """A DEALER connected to `ipc://path`. Errors: ENAMETOOLONG."""
    dealer = _process.context.socket(zmq.DEALER, socket_class=_Dealer)
    dealer.linger = 0
    dealer.rcvtimeo = _GLANCE_MS
    dealer.reconnect_ivl = 20  # ms; only while the daemon's other socket is up already
    # No limit to what is in flight: a call that cannot be queued could not be timed out either.
    dealer.sndhwm = dealer.rcvhwm = 0
    try:
        dealer.connect(f"ipc://{path}")
    except zmq.ZMQError as error:
        dealer.close()
        raise MemError(Errno.ENAMETOOLONG, f"cannot connect to {path}: {error}") from None
    return dealer


def new_road() -> socket.socket:
    """An unconnected fd road that a forked child will not keep open."""
    road = _Road(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _process.roads.add(road)
    return road


class Link:
    """Both roads of one session. Closed when dropped."""

    hello: HelloReply
    """Set when the daemon has answered the greeting."""

    def __init__(self, dealer: zmq.Socket[bytes], road: socket.socket) -> None:
        self.ledger = Ledger()
        self.pid = os.getpid()
        self.on_close: Callable[[], None] | None = None
        """Called once, before the sockets are closed."""
        self.dealer = dealer
        self.road = road
        road.setblocking(False)
        self._recv = dealer.recv
        self._send = dealer.send
        self._pulse = select.poll()
        self._pulse.register(road, select.POLLIN)
        self._both = zmq.Poller()
        self._both.register(dealer, zmq.POLLIN)
        self._both.register(road, zmq.POLLIN)

    def __del__(self) -> None:
        self.close()

    @property
    def epoch(self) -> int:
        """The daemon's boot, 0 before its hello."""
        return self.ledger.epoch

    @property
    def is_inherited(self) -> bool:
        """True in a process that was forked from the one that made this link."""
        return self.pid != os.getpid()

    def is_alive(self) -> bool:
        """False once the daemon is gone, the link is closed, or this is a forked child."""
        if self.road.fileno() < 0:
            return False
        return not self._pulse.poll(0) or self.drain()

    def is_over(self) -> bool:
        """As not `is_alive()`, but for any thread: it changes nothing."""
        fd = self.road.fileno()
        if fd < 0:
            return True
        pulse = select.poll()
        pulse.register(fd, select.POLLRDHUP)
        return bool(pulse.poll(0))

    def send(self, request: Call[Any], flags: int = 0) -> int:
        """Send one request, without waiting; its sequence number. Errors: EMSGSIZE."""
        seq, frame = self.ledger.encode(request)
        self._send(frame, flags)
        return seq

    def round_trip(self, request: Call[Any], deadline: float) -> Reply:
        """Send a request and wait for its reply, to `deadline` on time.monotonic().

        Errors: ETIMEDOUT; ECONNRESET (the daemon is gone: no outcome); EMSGSIZE; EBADMSG.
        However it ends early, a reply that still comes is undone.
        """
        if self.ledger.released:
            self.post_released()
        seq = self.send(request)
        try:
            while (reply := self.receive(deadline)).seq != seq:
                self.settle(reply)
        except BaseException:  # KeyboardInterrupt too: whoever waited is gone
            self.ledger.abandon(seq, request)
            raise
        return reply

    def receive(self, deadline: float) -> Reply:
        """The next reply, whoever's it is. Errors as `round_trip`."""
        try:
            return decode_reply(self._recv())
        except zmq.Again:
            self._wait(deadline)
        return decode_reply(self._recv())

    def receive_now(self) -> Reply | None:
        """A reply that is there already, or None. Errors: EBADMSG."""
        try:
            return decode_reply(self._recv(zmq.NOBLOCK))
        except zmq.Again:
            return None

    def settle(self, reply: Reply) -> None:
        """Take a reply that nobody waits for any more."""
        self.drain()  # its descriptor came before it
        self.ledger.settle(reply)

    def post_released(self) -> None:
        """Send what gives handles back; the replies are never waited for."""
        released = self.ledger.released
        while released:
            self.send(released.popleft(), zmq.NOBLOCK)

    def claim(self, handle: int, count: int) -> list[int]:
        """The descriptors that the daemon sent before it replied with `handle`.

        Errors: EMFILE (this process may open no more files), EBADMSG (none was sent), ECONNRESET.
        """
        try:
            while not self.ledger.has_parked(handle):
                if not self._park_next():
                    raise MemError(Errno.EBADMSG, f"no descriptor came for handle {handle}")
        except ConnectionError:
            raise _gone() from None
        fds = self.ledger.unpark(handle)
        if len(fds) != count:
            close_all(fds)
            raise MemError(Errno.EMFILE, "this process has too many open files to receive another")
        return fds

    def await_acknowledgement(self, deadline: float) -> None:
        """Wait until the daemon has bound the session. Errors: ETIMEDOUT, ECONNRESET."""
        while not self.ledger.has_parked(0):
            if not self._pulse.poll(_milliseconds_to(deadline)):
                raise timed_out()
            if not self.drain():
                raise _gone()
        self.ledger.unpark(0)

    def drain(self) -> bool:
        """Park every descriptor that has come. False when the daemon is gone."""
        try:
            while self._park_next():
                pass
        except ConnectionError:
            return False
        return True

    def close(self) -> None:
        """Close both roads: the daemon frees all that the session held. Idempotent."""
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()
        self.road.close()
        self.dealer.close()
        self.ledger.close()

    def _wait(self, deadline: float) -> None:
        """Return when a reply can be read. Errors: ETIMEDOUT, ECONNRESET."""
        while True:
            ready = dict(self._both.poll(_milliseconds_to(deadline)))
            if self.dealer in ready:
                return
            if not ready:
                raise timed_out()
            if not self.drain():
                if self.dealer.poll(GRACE_MS):
                    return
                raise _gone()

    def _park_next(self) -> bool:
        """Park one descriptor; False when none is there. Errors: ConnectionError at the end."""
        try:
            # Not recv_fds: Python 3.11's drops the flags, and children would inherit the memory.
            message, ancillary, _, _ = self.road.recvmsg(
                _TAG_MAX_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS
            )
        except BlockingIOError:
            return False
        except OSError as error:  # ours is closed: the link was dropped
            raise ConnectionResetError from error
        if not message:
            raise ConnectionResetError
        self.ledger.park(message, _descriptors(ancillary))
        return True


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Those that came beside a tag, as many as this process could open."""
    fds = array("i")
    for level, kind, packed in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(packed[: len(packed) // _FD_BYTES * _FD_BYTES])
    return fds.tolist()


def _milliseconds_to(deadline: float) -> int:
    """Rounded up, so that nobody polls in a circle through the last one; 0 when it is over."""
    return max(0, math.ceil((deadline - time.monotonic()) * 1000))


def timed_out() -> MemError:
    """ETIMEDOUT."""
    return MemError(Errno.ETIMEDOUT, "the daemon did not reply in time")


def _gone() -> MemError:
    return MemError(Errno.ECONNRESET, "the daemon went away before it replied")
