"""The asyncio client: the operations as coroutines, many calls in flight on one socket.

Owns one connection and, for its present link, a pump that hands replies to the calls that wait
for them. All decisions are shared with the synchronous client (`connection`, `operations`); what
differs is only how one waits. The DEALER's descriptor is read on the loop: a call takes 80 us, the
same over zmq.asyncio 104, and with 64 in flight a third more of them are done.

A client belongs to the event loop it was made on. Cancelling a task abandons its call cleanly:
what its reply would have granted is given back. Opening a link is blocking code and takes a
thread for that moment.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

import zmq

from libmem.abi.calls import Call, CreateCube, WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Event, Value
from libmem.abi.wire import Reply
from libmem.connection import Connection, checked_timeout, deadline_of, new_connection
from libmem.fill import FillMemory
from libmem.handshake import open_link
from libmem.lease import Grant
from libmem.link import GRACE_MS, Link, timed_out
from libmem.methods import Awaiting
from libmem.operations import Operations, watch_pages
from libmem.options import CubeOptions
from libmem.steps import Acquire, Bind, Effect, Items, Open, Pages, Send, Step, Steps

__all__ = ["AsyncClient", "AsyncFill", "connect"]

E = TypeVar("E")
R = TypeVar("R", bound=Value)
T = TypeVar("T")


async def connect(
    runtime_dir: str | Path | None = None, *, timeout_s: float = 10.0, name: str | None = None
) -> "AsyncClient":
    """As `libmem.connect`."""
    client = AsyncClient(new_connection(runtime_dir, name), timeout_s)
    await client.open()
    return client


class AsyncFill(FillMemory):
    """Memory to fill in place. `async with` seals it, or aborts on an exception."""

    def __init__(
        self, name: str, grant: Grant, run: Callable[[Steps[WriteReply]], Awaitable[WriteReply]]
    ) -> None:
        super().__init__(name, grant)
        self._run = run

    async def __aenter__(self) -> "AsyncFill":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and self.is_open:
                await self.seal()
        finally:
            self.abort()  # does nothing to what is sealed

    async def seal(self, size_bytes: int | None = None) -> WriteReply:
        """As `Fill.seal`."""
        return await self._run(self.sealing(size_bytes))


class AsyncClient(Operations, Awaiting):
    """A session with a daemon that survives the daemon's restarts. Made by `connect`.

    `async with await client.create(...)`, `with await client.map(...)`.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = checked_timeout(timeout_s)
        self._pumps: dict[Link, _Pump] = {}
        self._binding = asyncio.Lock()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect now rather than with the first call. Errors: those of `connect`."""
        await self._answer(Bind(time.monotonic() + self._timeout_s))

    async def close(self) -> None:
        """End the session; calls in flight fail with EBADF, or ECONNRESET where they mutate."""
        self._connection.close()

    async def call(self, request: Call[R], timeout_s: float | None = None) -> R:
        """One syscall, by its request struct. As `Client.call`."""
        patience_s = self._timeout_s if timeout_s is None else checked_timeout(timeout_s)
        reply: R = await self._perform(request, patience_s)
        return reply

    async def create(self, name: str, size_bytes: int, **options: Unpack[CubeOptions]) -> AsyncFill:
        """Memory to fill in place and seal as the cube's next version; a blob by default."""
        request = CreateCube(name=name, size_bytes=size_bytes, **options)
        return AsyncFill(name, await self._step(Acquire(request)), self._run)

    async def watch(
        self, under: str = "/", *, since_seq: int | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        """As `Client.watch`, but from now on means from the first step of the iteration."""
        connection = self._connection
        own = await connect(
            connection.runtime_dir, timeout_s=self._timeout_s, name=connection.greeting.client
        )
        async with own:
            async for event in own._iterate(watch_pages(under, since_seq, timeout_s)):
                yield event

    def give_back(self, link: Link, undo: Call[Any]) -> None:
        """Send what a lease gives back, from whichever thread."""
        link.ledger.released.append(undo)
        pump = self._pumps.get(link)
        if pump is not None and not link.is_over():
            pump.flush_soon()

    async def _run(self, steps: Steps[T]) -> T:
        return await _drive(steps, self._step)

    async def _iterate(self, pages: Pages[T]) -> AsyncIterator[T]:
        try:
            wanted = next(pages)
            while True:
                if isinstance(wanted, Items):
                    for item in wanted.items:
                        yield item
                    wanted = next(pages)
                    continue
                try:
                    reply = await self.call(wanted)
                except MemError as error:  # the listing decides, and re-raises
                    wanted = pages.throw(error)
                else:
                    wanted = pages.send(reply)
        except StopIteration:
            return

    async def _step(self, step: Step) -> Any:
        return await self._perform(step, self._timeout_s)

    async def _perform(self, step: Step, patience_s: float) -> Any:
        performing = self._connection.performing(self, step, deadline_of(step, patience_s))
        return await _drive(performing, self._answer)

    async def _answer(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            pump = self._pumps[effect.link]
            return await pump.round_trip(effect.request, effect.deadline)
        if isinstance(effect, Bind):
            return await self._bind(effect.deadline)
        if isinstance(effect, Open):
            return await self._open_link(effect.deadline)
        return await asyncio.sleep(effect.seconds)

    async def _bind(self, deadline: float) -> Link:
        """Connect once for all the calls that found themselves without a link."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._binding.acquire()
        except TimeoutError:
            raise timed_out() from None
        try:
            link = self._connection.usable()
            if link is None:
                link = await _drive(self._connection.binding(self, deadline), self._answer)
            return link
        finally:
            self._binding.release()

    async def _open_link(self, deadline: float) -> Link:
        connection = self._connection
        loop = asyncio.get_running_loop()
        link = await loop.run_in_executor(
            None, open_link, connection.runtime_dir, connection.greeting, deadline
        )
        self._pumps[link] = _Pump(link, loop)
        link.on_close = functools.partial(self._stop_pump, link)
        return link

    def _stop_pump(self, link: Link) -> None:
        self._pumps.pop(link).stop()


class _Pump:
    """Reads one link's roads on the event loop and wakes the calls that wait for replies."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop
        self._waiting: dict[int, tuple[asyncio.Future[Reply], Call[Any]]] = {}
        self._control_fd = link.dealer.fileno()
        self._is_stopped = False
        loop.add_reader(self._control_fd, self._read_replies)
        loop.add_reader(link.road, self._read_road)

    async def round_trip(self, request: Call[Any], deadline: float) -> Reply:
        """As `Link.round_trip`, while other calls are in flight."""
        self._link.post_released()
        seq = self._link.send(request, zmq.NOBLOCK)
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting[seq] = future, request
        self._look_again()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await future
        except BaseException as error:  # a cancelled task too
            self._abandon(seq, future, request)
            if isinstance(error, TimeoutError):
                raise timed_out() from None
            raise

    def flush_soon(self) -> None:
        """Send what was released, as soon as the loop comes to it. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the session with it
            self._loop.call_soon_threadsafe(self._flush)

    def stop(self) -> None:
        """Read no more; whoever still waits learns that the daemon is gone."""
        self._is_stopped = True
        if not self._link.is_inherited:  # a forked child shares the loop's epoll with its parent
            self._loop.remove_reader(self._control_fd)
            self._loop.remove_reader(self._link.road)
        self._fail_all(Errno.ECONNRESET, "the client dropped the connection before the reply")

    def _flush(self) -> None:
        if self._link.is_alive():
            self._link.post_released()
            self._look_again()

    def _abandon(self, seq: int, future: asyncio.Future[Reply], request: Call[Any]) -> None:
        if self._waiting.pop(seq, None) is not None:
            self._link.ledger.abandon(seq, request)
        elif future.done() and not future.cancelled() and future.exception() is None:
            # Answered, but the task was cancelled before it could look.
            self._undo(seq, request, future.result())

    def _undo(self, seq: int, request: Call[Any], reply: Reply) -> None:
        self._link.ledger.abandon(seq, request)
        self._link.settle(reply)

    def _look_again(self) -> None:
        # ZeroMQ's descriptor shows edges, not levels: sending may have consumed the one that
        # announced a reply.
        if int(self._link.dealer.get(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._read_replies)

    def _read_replies(self) -> None:
        try:
            while not self._is_stopped and (reply := self._link.receive_now()) is not None:
                future, request = self._waiting.pop(reply.seq, (None, None))
                if future is None or request is None:
                    self._link.settle(reply)
                elif future.done():  # cancelled, and its task has not run since
                    self._undo(reply.seq, request, reply)
                else:
                    future.set_result(reply)
        except MemError as error:  # it cannot be told whose reply that was
            self._fail_all(error.errno, error.message)

    def _read_road(self) -> None:
        if not self._link.drain():
            self._loop.remove_reader(self._link.road)
            self._loop.call_later(GRACE_MS / 1000, self._end)

    def _end(self) -> None:
        self._read_replies()
        self._fail_all(Errno.ECONNRESET, "the daemon went away before it replied")

    def _fail_all(self, errno: Errno, message: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            if not future.done():
                future.set_exception(MemError(errno, message))


async def _drive(generator: Generator[E, Any, T], answer: Callable[[E], Awaitable[Any]]) -> T:
    """As `steps.drive`, awaiting the answers."""
    try:
        wanted = next(generator)
        while True:
            try:
                value = await answer(wanted)
            except BaseException as error:  # noqa: BLE001 - the generator decides, and re-raises
                wanted = generator.throw(error)
            else:
                wanted = generator.send(value)
    except StopIteration as end:
        result: T = end.value
        return result
