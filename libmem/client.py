"""The synchronous client.

Owns one connection and the lock around each call, so that threads may share a client: their
calls take turns. A long poll would make the others wait, so `watch` has a connection of its own.

Fork: a forked child's client has no link (see `link`) and a fresh lock; its first call connects.
"""

import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

from libmem.abi.calls import Call, CreateCube, Watch
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Event, Value
from libmem.abi.syscalls import BY_REQUEST
from libmem.abi.wire import Reply, decode_result
from libmem.connection import Connection, checked_timeout, deadline_of, new_connection
from libmem.fill import Fill
from libmem.handshake import open_link
from libmem.ledger import DESCRIPTOR_CALLS
from libmem.link import Link, timed_out
from libmem.methods import Blocking
from libmem.operations import Operations, watch_pages
from libmem.options import CubeOptions
from libmem.steps import (
    Acquire,
    Bind,
    Effect,
    Items,
    Open,
    Pages,
    Send,
    Step,
    Steps,
    drive,
)

__all__ = ["Client", "connect"]

R = TypeVar("R", bound=Value)
T = TypeVar("T")


def connect(
    runtime_dir: str | Path | None = None, *, timeout_s: float = 10.0, name: str | None = None
) -> "Client":
    """Open a session with the daemon of a runtime directory (None: the user's, or the system's).

    `timeout_s` is the patience of each call, this one included; `name` is the program's, as the
    daemon shall know it.
    Units:  timeout_s is within 0..TIMEOUT_MAX_S, which is 23 days.
    Errors: ECONNREFUSED (no daemon there), EACCES, EPERM (an impostor listens), ETIMEDOUT, EINVAL.
    """
    client = Client(new_connection(runtime_dir, name), timeout_s)
    client.open()
    return client


class Client(Operations, Blocking):
    """A session with a daemon that survives the daemon's restarts. Made by `connect`.

    Threads may share it, forks may inherit it. Closed when dropped.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = checked_timeout(timeout_s)
        self._lock = threading.Lock()
        _clients.add(self)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect now rather than with the first call. Errors: those of `connect`."""
        deadline = time.monotonic() + self._timeout_s
        with self._lock:
            if self._connection.usable() is None:
                drive(self._connection.binding(self, deadline), self._answer)

    def close(self) -> None:
        """End the session: the daemon frees its handles, mappings here stay readable."""
        with self._lock:
            self._connection.close()

    def call(self, request: Call[R], timeout_s: float | None = None) -> R:
        """One syscall, by its request struct.

        Units:  timeout_s, None: the client's own.
        Errors: what the row lists; ETIMEDOUT, ECONNREFUSED, ECONNRESET, ESTALE; EINVAL for
                what cannot be sent, or no time that can be waited.
        """
        patience_s = self._timeout_s if timeout_s is None else checked_timeout(timeout_s)
        if type(request) in DESCRIPTOR_CALLS:
            granted: R = self._perform(request, patience_s)
            return granted
        deadline = deadline_of(request, patience_s)  # the wait for one's turn counts
        self._take_turn(patience_s)
        try:
            reply = self._exchange(request, deadline)
        finally:
            self._end_turn()
        result: R = decode_result(BY_REQUEST[type(request)], reply.errno, reply.body)
        return result

    def create(self, name: str, size_bytes: int, **options: Unpack[CubeOptions]) -> Fill:
        """Memory to fill in place and seal as the cube's next version; a blob by default."""
        request = CreateCube(name=name, size_bytes=size_bytes, **options)
        return Fill(name, self._step(Acquire(request)), self._run)

    def watch(
        self, under: str = "/", *, since_seq: int | None = None, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """Events of a subtree, from this call on or after `since_seq`, over the daemon's restarts.

        Ends when none came for `timeout_s`; None: never. Has a connection of its own, closed with
        the iterator.
        Errors: ESTALE when `since_seq` is older than the log: list again.
        """
        own = self.sibling()
        own.open()
        if since_seq is None:
            since_seq = own.call(Watch(under)).next_seq
        return own._watching(watch_pages(under, since_seq, timeout_s))

    def sibling(self, timeout_s: float | None = None) -> "Client":
        """A client of the same daemon with a session of its own: neither waits for the other.

        Connects with its first call.
        Units:  timeout_s, the patience of its calls; None: as here.
        """
        connection = new_connection(self._connection.runtime_dir, self._connection.greeting.client)
        return Client(connection, self._timeout_s if timeout_s is None else timeout_s)

    def give_back(self, link: Link, undo: Call[Any]) -> None:
        """Send what a lease gives back, now or after the call that another thread is in."""
        link.ledger.released.append(undo)
        self.post_released()

    def after_fork_in_child(self) -> None:
        """Another thread of the parent may have held the lock; it will never release this copy."""
        self._lock = threading.Lock()

    def _watching(self, pages: Pages[Event]) -> Iterator[Event]:
        with self:
            yield from self._iterate(pages)

    def _run(self, steps: Steps[T]) -> T:
        return drive(steps, self._step)

    def _iterate(self, pages: Pages[T]) -> Iterator[T]:
        try:
            wanted = next(pages)
            while True:
                if isinstance(wanted, Items):
                    yield from wanted.items
                    wanted = next(pages)
                    continue
                try:
                    reply = self.call(wanted)
                except MemError as error:  # the listing decides, and re-raises
                    wanted = pages.throw(error)
                else:
                    wanted = pages.send(reply)
        except StopIteration:
            return

    def _step(self, step: Step) -> Any:
        if isinstance(step, Call):
            return self.call(step)
        return self._perform(step, self._timeout_s)

    def _exchange(self, request: Call[Any], deadline: float) -> Reply:
        """One call in one's turn. Almost every one ends here; the others go to `calling`."""
        begun: tuple[Link, Reply | MemError] | None = None
        link = self._connection.usable()
        if link is not None:
            try:
                reply = link.round_trip(request, deadline)
            except MemError as error:
                begun = link, error
            else:
                if reply.errno != Errno.ESTALE:
                    return reply
                begun = link, reply
        calling = self._connection.calling(request, deadline, begun=begun)
        return drive(calling, self._answer)[1]

    def _perform(self, step: Step, patience_s: float) -> Any:
        deadline = deadline_of(step, patience_s)
        self._take_turn(patience_s)
        try:
            return drive(self._connection.performing(self, step, deadline), self._answer)
        finally:
            self._end_turn()

    def _take_turn(self, patience_s: float) -> None:
        lock = self._lock
        if not lock.acquire(blocking=False) and not lock.acquire(timeout=max(0.0, patience_s)):
            raise timed_out()

    def _end_turn(self) -> None:
        self._lock.release()
        link = self._connection.link
        if link is not None and link.ledger.released:
            self.post_released()

    def _answer(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            return effect.link.round_trip(effect.request, effect.deadline)
        if isinstance(effect, Bind):
            return drive(self._connection.binding(self, effect.deadline), self._answer)
        if isinstance(effect, Open):
            connection = self._connection
            return open_link(connection.runtime_dir, connection.greeting, effect.deadline)
        time.sleep(effect.seconds)
        return None

    def post_released(self) -> None:
        """Give back now, and not with the next call, what was dropped. Never waits."""
        # Whoever holds the lock comes here after letting go of it, so what is queued meanwhile
        # waits for the end of one call, not for the next.
        connection = self._connection
        while (
            (link := connection.link) is not None
            and link.ledger.released
            and self._lock.acquire(blocking=False)
        ):
            try:
                if connection.usable() is link:
                    link.post_released()
            finally:
                self._lock.release()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in tuple(_clients):
        client.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
