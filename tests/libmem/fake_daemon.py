"""A scripted daemon in a thread of the test: both roads, a dict for a kernel.

It behaves like memosd as far as a client can tell, keeps its cubes over `restart()`, and does
what a test scripts for the next request of a kind: stay silent, hold the reply, die before or
after answering. Everything it sees is recorded; `wait_for` waits on that record.
"""

import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zmq

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import ABI_VERSION
from libmem.abi.paths import CONTROL_SOCKET, FD_SOCKET
from libmem.abi.structs import Value
from libmem.abi.syscalls import BY_NAME, BY_NUMBER, Syscall
from libmem.abi.wire import (
    FdTag,
    Request,
    args_decoder,
    decode_request,
    encode,
    encode_error,
    encode_reply,
)
from tests.libmem.fake_kernel import FakeKernel, FakeSession

__all__ = [
    "PATIENCE_S",
    "Action",
    "FakeDaemon",
    "Incoming",
    "die",
    "die_after",
    "hold",
    "refuse",
    "running",
    "silent",
]

PATIENCE_S = 20.0
"""How long a test waits for what must happen; only a failing test takes that long."""


class Incoming:
    """A request as the daemon sees it."""

    def __init__(self, routing_id: bytes, request: Request, row: Syscall) -> None:
        self.routing_id = routing_id
        self.seq = request.seq
        self.name = row.name
        self.row = row
        self.args: Any = args_decoder(row.request).decode(request.args)


Action = Callable[["FakeDaemon", Incoming], None]
"""What to do with one request; runs on the daemon's thread."""


class FakeDaemon:
    """Serves until `stop`; `kill` and `restart` are what they say."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.epoch = 0
        self.kernel = FakeKernel()
        self.calls: list[Incoming] = []
        self.seen = threading.Condition()
        self._scripts: dict[str, list[Action]] = defaultdict(list)
        self._held: list[Incoming] = []
        self._todo: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self.start()

    # For tests

    def script(self, syscall: str, *actions: Action) -> None:
        """Do these, one each, for the next requests of that kind; then behave again."""
        assert syscall in BY_NAME
        self._scripts[syscall].extend(actions)

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until something seen makes it so."""
        with self.seen:
            assert self.seen.wait_for(is_so, PATIENCE_S), "it never happened"

    def count(self, syscall: str) -> int:
        """How many requests of that kind have come."""
        return sum(call.name == syscall for call in self.calls)

    def release_held(self) -> None:
        """Answer what was held."""
        self._on_thread(self.answer_held)

    def live_sessions(self) -> list[FakeSession]:
        """The bound sessions."""
        return [session for session in self.sessions.values() if session.road is not None]

    def start(self) -> None:
        """A new incarnation, with another epoch and the same cubes."""
        self.epoch += 1
        self.sessions: dict[bytes, FakeSession] = {}
        self.is_dying = False
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(f"ipc://{self.runtime_dir / CONTROL_SOCKET}")
        self._wake, self._waker = socket.socketpair()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.runtime_dir / FD_SOCKET))
        self._listener.listen(64)
        self._unbound: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name="fake-daemon")
        self._thread.start()

    def kill(self) -> None:
        """Die at once, as by kill -9: nothing is answered, the socket files stay."""
        if self._thread is not None:
            self._on_thread(self.die)
            self._thread.join()
            self._thread = None

    def restart(self) -> None:
        """Die and come back."""
        self.kill()
        self.bury()
        self.start()

    def bury(self) -> None:
        """Wait for a scripted death, and make room for a successor."""
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
            self._thread = None
        (self.runtime_dir / FD_SOCKET).unlink(missing_ok=True)
        (self.runtime_dir / CONTROL_SOCKET).unlink(missing_ok=True)

    # For actions

    def answer(self, incoming: Incoming) -> None:
        """Do what is asked, and reply."""
        if incoming.name == "hello":
            self.greet(incoming)
            return
        session = self.sessions[incoming.routing_id]
        try:
            result = self.kernel.perform(session, incoming.args)
        except MemError as error:
            self.reply(incoming, error)
            return
        if isinstance(result, c.CreateReply | c.MapReply):
            self.send_descriptor(session, result.handle)
        self.reply(incoming, result)

    def send_descriptor(self, session: FakeSession, handle: int) -> None:
        """The handle's descriptor, over the fd road."""
        assert session.road is not None
        tag = encode(FdTag(handle, self.epoch))
        socket.send_fds(session.road, [tag], [session.descriptors[handle]])

    def reply(self, incoming: Incoming, result: Value | MemError) -> None:
        """Send a result or an error."""
        if isinstance(result, MemError):
            frame = encode_error(incoming.seq, self.epoch, result)
        else:
            frame = encode_reply(incoming.seq, self.epoch, result)
        self.send_frame(incoming, frame)

    def send_frame(self, incoming: Incoming, frame: bytes) -> None:
        """Send whatever bytes as the reply."""
        self._router.send_multipart([incoming.routing_id, frame])

    def answer_held(self) -> None:
        """Answer what was held, at once."""
        held, self._held = self._held, []
        for incoming in held:
            self.answer(incoming)

    def hold(self, incoming: Incoming) -> None:
        """Keep it for `release_held`."""
        self._held.append(incoming)

    def die(self) -> None:
        """End the thread after this request, closing everything."""
        self.is_dying = True

    # The thread

    def _on_thread(self, work: Callable[[], None]) -> None:
        self._todo.append(work)
        with suppress(OSError):  # it died by a script already
            self._waker.send(b"!")

    def _serve(self) -> None:
        try:
            while not self.is_dying:
                poller = zmq.Poller()
                roads = [session.road for session in self.live_sessions()]
                for source in (self._router, self._wake, self._listener, *self._unbound, *roads):
                    poller.register(source, zmq.POLLIN)
                ready = [source for source, _ in poller.poll()]
                with self.seen:
                    self._turn(ready, roads)
                    self.seen.notify_all()
        finally:
            with self.seen:
                self._close()
                self.seen.notify_all()

    def _turn(self, ready: list[Any], roads: list[Any]) -> None:
        descriptors = {s if isinstance(s, int) else s.fileno() for s in ready}
        if self._wake.fileno() in descriptors:
            self._wake.recv(64)
            todo, self._todo = self._todo, []
            for work in todo:
                work()
        if self._listener.fileno() in descriptors:
            self._unbound.append(self._listener.accept()[0])
        for road in [road for road in self._unbound if road.fileno() in descriptors]:
            self._bind(road)
        for session in [s for s in self.live_sessions() if s.road in roads]:
            if session.road is not None and session.road.fileno() in descriptors:
                self._end(session)
        if self._router in ready and not self.is_dying:
            self._take(*self._router.recv_multipart())

    def _bind(self, road: socket.socket) -> None:
        token = road.recv(64)
        self._unbound.remove(road)
        for session in self.sessions.values():
            if session.token == token:
                session.road = road
                road.send(encode(FdTag(0, self.epoch)))
                return
        road.close()

    def _end(self, session: FakeSession) -> None:
        assert session.road is not None
        session.road.close()
        session.close()
        self.sessions = {k: v for k, v in self.sessions.items() if v is not session}

    def _take(self, routing_id: bytes, frame: bytes) -> None:
        request = decode_request(frame)
        assert request.abi == ABI_VERSION
        incoming = Incoming(routing_id, request, BY_NUMBER[request.number])
        self.calls.append(incoming)
        session = self.sessions.get(routing_id)
        if incoming.name != "hello" and (session is None or request.epoch != self.epoch):
            self.reply(incoming, MemError(Errno.ESTALE, "unknown session"))
            return
        script = self._scripts[incoming.name]
        (script.pop(0) if script else FakeDaemon.answer)(self, incoming)

    def greet(self, incoming: Incoming) -> None:
        """Open a session."""
        session = FakeSession(token=os.urandom(16))
        self.sessions[incoming.routing_id] = session
        self.reply(
            incoming,
            c.HelloReply(
                session=len(self.sessions), token=session.token,
                fd_socket=str(self.runtime_dir / FD_SOCKET), server="fake",
                uid=os.getuid(), gid=os.getgid(), pid=os.getpid(),
                inline_limit_bytes=1024, call_by_value_bytes=4096, page_bytes=4096,
            ),
        )  # fmt: skip

    def _close(self) -> None:
        for session in self.live_sessions():
            self._end(session)
        for road in (*self._unbound, self._listener, self._wake, self._waker):
            road.close()
        self._router.close()
        self._context.term()


def silent(_daemon: FakeDaemon, _incoming: Incoming) -> None:
    """Never reply."""


def hold(daemon: FakeDaemon, incoming: Incoming) -> None:
    """Reply at `release_held`."""
    daemon.hold(incoming)


def die(daemon: FakeDaemon, _incoming: Incoming) -> None:
    """Die before doing anything."""
    daemon.die()


def die_after(daemon: FakeDaemon, incoming: Incoming) -> None:
    """Do it, and die before the reply."""
    daemon.kernel.perform(daemon.sessions[incoming.routing_id], incoming.args)
    daemon.die()


def refuse(error: MemError) -> Action:
    """Answer with an error."""
    return lambda daemon, incoming: daemon.reply(incoming, error)


@contextmanager
def running(runtime_dir: Path) -> Iterator[FakeDaemon]:
    """A daemon for the length of a block."""
    daemon = FakeDaemon(runtime_dir)
    try:
        yield daemon
    finally:
        daemon.kill()
