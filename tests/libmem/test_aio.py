"""The asyncio client: the same operations, many at once, cancelled, and over restarts."""

import asyncio
import gc
import inspect
import math
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

import libmem
import libmem.aio
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType
from libmem.aio import AsyncClient
from libmem.operations import Operations
from tests.libmem.fake_daemon import PATIENCE_S, FakeDaemon, Incoming, die, hold, refuse, silent
from tests.libmem.script import run_script


def on_a_loop(
    test: Callable[..., Coroutine[Any, Any, None]],
) -> Callable[[FakeDaemon], None]:
    """Run a coroutine test with a connected client."""

    @wraps(test)
    def run(daemon: FakeDaemon) -> None:
        async def main() -> None:
            async with await libmem.aio.connect(daemon.runtime_dir) as client:
                await test(client, daemon)

        asyncio.run(main(), debug=True)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("daemon", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    )
    return run


async def seen(daemon: FakeDaemon, is_so: Callable[[], bool]) -> None:
    """Wait on the daemon's record without stopping the loop."""
    await asyncio.to_thread(daemon.wait_for, is_so)


async def errno_of(call: Awaitable[object]) -> Errno:
    with pytest.raises(MemError) as raised:
        await call
    return raised.value.errno


def test_both_clients_have_the_same_operations() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    threads = {"after_fork_in_child", "post_released", "sibling"}
    assert public(libmem.Client) - public(AsyncClient) == threads
    assert public(AsyncClient) - public(libmem.Client) == set()
    assert "stat" in public(Operations)


@on_a_loop
async def test_what_makes_no_sense_is_refused_before_it_is_sent(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    endless = libmem.aio.connect(daemon.runtime_dir, timeout_s=math.inf)
    assert await errno_of(endless) is Errno.EINVAL
    assert await errno_of(client.call(c.Info(), timeout_s=-1)) is Errno.EINVAL
    strange = client.batch([c.SetHeader("/a/b", attributes={"mine": object()})])
    assert await errno_of(strange) is Errno.EINVAL
    assert daemon.count("info") == daemon.count("batch") == 0


@on_a_loop
async def test_the_operations(client: AsyncClient, daemon: FakeDaemon) -> None:
    assert (await client.write("/a/b", "text")).version == 1
    assert await client.read("/a/b") == b"text"
    large = bytes(range(256)) * 8192
    await client.write("/a/large", large, type=CubeType.BLOB)
    assert await client.read("/a/large") == large
    names = [stat.name async for stat in client.list("/a")]
    assert names == ["/a/b", "/a/large"]
    wrote, missing = await client.batch([c.WriteCube("/a/c", b"x"), c.StatCube("/a/none")])
    assert wrote.version == 1
    assert isinstance(missing, MemError)
    assert await errno_of(client.stat("/a/none")) is Errno.ENOENT
    with await client.map("/a/b") as mapping, await client.pin("/a/b") as pin:
        assert bytes(mapping) == b"text"
        assert pin.is_held
        assert daemon.live_sessions()[0].handles == 2
    await seen(daemon, lambda: daemon.live_sessions()[0].handles == 0)


@on_a_loop
async def test_filling(client: AsyncClient, daemon: FakeDaemon) -> None:
    async with await client.create("/a/f", 100) as fill:
        fill.buffer[:2] = b"hi"
        view = memoryview(fill.buffer)
        assert await errno_of(fill.seal()) is Errno.EBUSY
        view.release()
    assert fill.result is not None
    assert (await client.read("/a/f"))[:3] == b"hi\0"
    with pytest.raises(ZeroDivisionError):
        async with await client.create("/a/g", 100):
            raise ZeroDivisionError
    await seen(daemon, lambda: daemon.live_sessions()[0].handles == 0)
    assert await errno_of(client.stat("/a/g")) is Errno.ENOENT


@on_a_loop
async def test_many_calls_in_flight_answered_in_any_order(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    names = [f"/a/{number}" for number in range(100)]
    await asyncio.gather(*(client.write(name, name) for name in names))
    daemon.script("read_cube", *[hold] * 10)
    held = [asyncio.create_task(client.read(name)) for name in names[:10]]
    await seen(daemon, lambda: daemon.count("read_cube") == 10)
    payloads = await asyncio.gather(*(client.read(name) for name in names[10:]))
    assert [payload.decode() for payload in payloads] == names[10:]
    assert not any(task.done() for task in held)
    daemon.release_held()
    assert [(await task).decode() for task in held] == names[:10]
    assert daemon.count("hello") == 1


@on_a_loop
async def test_mappings_in_flight_get_their_own_descriptors(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    names = [f"/a/{number}" for number in range(30)]
    for name in names:
        await client.write(name, name)
    mappings = await asyncio.gather(*(client.map(name) for name in names))
    assert [bytes(mapping).decode() for mapping in mappings] == names
    for mapping in mappings:
        mapping.close()
    await seen(daemon, lambda: daemon.live_sessions()[0].handles == 0)


@on_a_loop
async def test_a_call_times_out(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.script("info", silent)
    assert await errno_of(client.call(c.Info(), timeout_s=0.02)) is Errno.ETIMEDOUT
    assert (await client.info()).server == "fake"


def cancel_in(turns: int, task: "asyncio.Task[Any]") -> None:
    """Cancel a task after so many turns of the loop; its reply is read in the first of them."""
    loop = asyncio.get_running_loop()
    loop.call_soon(task.cancel) if turns == 0 else loop.call_soon(cancel_in, turns - 1, task)


@pytest.mark.parametrize("turns", [None, 0, 1], ids=["unanswered", "unread", "read"])
@pytest.mark.parametrize("syscall", ["mmap_cube", "create_cube", "pin_cube"])
def test_a_cancelled_call_gives_back_what_it_is_granted(
    daemon: FakeDaemon, syscall: str, turns: int | None, open_memory: Callable[[], int]
) -> None:
    async def main() -> None:
        async with await libmem.aio.connect(daemon.runtime_dir) as client:
            await client.write("/a/b", "x")
            before = open_memory()
            daemon.script(syscall, hold)
            call: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "mmap_cube": lambda: client.map("/a/b"),
                "create_cube": lambda: client.create("/a/c", 10),
                "pin_cube": lambda: client.pin("/a/b"),
            }
            task = asyncio.create_task(call[syscall]())
            await seen(daemon, lambda: daemon.count(syscall) == 1)
            if turns is None:
                task.cancel()
            else:
                await_the_answer_without_reading_it(client, daemon)
                cancel_in(turns, task)
            with pytest.raises(asyncio.CancelledError):
                await task
            daemon.release_held()
            await client.info()
            await client.info()
            await seen(daemon, lambda: daemon.live_sessions()[0].handles == 0)
            assert open_memory() == before

    asyncio.run(main())


def await_the_answer_without_reading_it(client: AsyncClient, daemon: FakeDaemon) -> None:
    """The loop stands still meanwhile."""
    link = client._connection.link
    assert link is not None
    daemon.release_held()
    announced = select.poll()  # ZeroMQ's own poll would use up the announcement
    announced.register(link.dealer, select.POLLIN)
    assert announced.poll(PATIENCE_S * 1000)


@on_a_loop
async def test_a_restart_is_met_by_all_with_one_new_session(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    await client.write("/a/b", "x")
    pin = await client.pin("/a/b")
    mapping = await client.map("/a/b")
    daemon.restart()
    stats = await asyncio.gather(*(client.stat("/a/b") for _ in range(20)))
    assert {stat.version for stat in stats} == {1}
    assert (client.epoch, daemon.count("hello")) == (2, 2)
    assert pin.is_held
    assert mapping.is_stale
    assert bytes(mapping) == b"x"
    mapping.close()
    assert list(daemon.live_sessions()[0].pinned.values()) == ["/a/b"]


@on_a_loop
async def test_a_death_with_calls_in_flight(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.write("/a/b", "x")
    fill = await client.create("/a/c", 10)
    daemon.script("stat_cube", hold)
    daemon.script("write_cube", hold)
    asked = asyncio.create_task(client.stat("/a/b"))
    wrote = asyncio.create_task(client.write("/a/b", "y"))
    await seen(daemon, lambda: daemon.count("write_cube") == 2)
    await seen(daemon, lambda: daemon.count("stat_cube") == 1)
    daemon.script("sync", die)
    synced = asyncio.create_task(client.sync())
    await asyncio.to_thread(daemon.bury)
    daemon.start()
    assert (await asked).version == 1
    assert await errno_of(wrote) is Errno.ECONNRESET
    await synced
    assert await errno_of(fill.seal()) is Errno.ESTALE
    assert daemon.count("hello") == 2


@on_a_loop
async def test_a_request_refused_as_stale_is_sent_again(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.script("write_cube", refuse(MemError(Errno.ESTALE, "unknown session")))
    assert (await client.write("/a/b", "x")).version == 1
    assert daemon.count("hello") == 2


@on_a_loop
async def test_nonsense_fails_what_is_in_flight_and_nothing_after(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    def nonsense(daemon: FakeDaemon, incoming: Incoming) -> None:
        daemon.send_frame(incoming, b"\xc1")

    daemon.script("info", nonsense)
    assert await errno_of(client.info()) is Errno.EBADMSG
    assert (await client.info()).server == "fake"


@on_a_loop
async def test_a_watch_and_its_end(client: AsyncClient, daemon: FakeDaemon) -> None:
    events = client.watch("/a", since_seq=0)
    await client.write("/a/1", "x")
    assert (await anext(events)).name == "/a/1"
    daemon.restart()
    await client.write("/a/2", "x")
    assert (await anext(events)).name == "/a/2"
    assert len(daemon.live_sessions()) == 2
    await closing(events)
    await seen(daemon, lambda: len(daemon.live_sessions()) == 1)
    quiet = [event.name async for event in client.watch("/a", since_seq=1, timeout_s=0.01)]
    assert quiet == ["/a/2"]


async def closing(events: AsyncIterator[object]) -> None:
    """End an iteration before its end."""
    assert inspect.isasyncgen(events)
    await events.aclose()


@on_a_loop
async def test_what_a_thread_closes_is_given_back(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.write("/a/b", "x")
    mapping = await client.map("/a/b")
    await asyncio.to_thread(mapping.close)
    await seen(daemon, lambda: daemon.live_sessions()[0].handles == 0)


@on_a_loop
async def test_a_closed_client_fails_what_is_in_flight(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.script("info", silent)
    task = asyncio.create_task(client.info())
    await seen(daemon, lambda: daemon.count("info") == 1)
    await client.close()
    assert await errno_of(task) is Errno.EBADF
    assert await errno_of(client.info()) is Errno.EBADF
    await seen(daemon, lambda: not daemon.live_sessions())


@on_a_loop
async def test_a_client_closed_while_it_reconnects_stays_closed(
    client: AsyncClient, daemon: FakeDaemon
) -> None:
    daemon.restart()
    daemon.script("hello", hold)
    task = asyncio.create_task(client.info())
    await seen(daemon, lambda: daemon.count("hello") == 2)
    await client.close()
    daemon.release_held()
    assert await errno_of(task) is Errno.EBADF
    await seen(daemon, lambda: not daemon.live_sessions())


def test_no_daemon_is_refused(daemon: FakeDaemon) -> None:
    daemon.kill()
    assert asyncio.run(errno_of(libmem.aio.connect(daemon.runtime_dir))) is Errno.ECONNREFUSED


def test_a_mapping_may_be_closed_after_the_loop(daemon: FakeDaemon) -> None:
    async def main() -> tuple[AsyncClient, libmem.Mapping]:
        client = await libmem.aio.connect(daemon.runtime_dir)
        await client.write("/a/b", "x")
        return client, await client.map("/a/b")

    loop = asyncio.new_event_loop()
    client, mapping = loop.run_until_complete(main())
    loop.run_until_complete(client.close())
    loop.close()
    assert bytes(mapping) == b"x"
    mapping.close()


def test_a_connection_nobody_waits_for_any_more_is_ended(daemon: FakeDaemon) -> None:
    daemon.script("hello", hold)

    async def main() -> None:
        task = asyncio.create_task(libmem.aio.connect(daemon.runtime_dir))
        await seen(daemon, lambda: daemon.count("hello") == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        daemon.release_held()

    asyncio.run(main())  # ends when the thread that was connecting has ended
    daemon.wait_for(lambda: not daemon.live_sessions())


def test_a_client_that_was_not_closed_ends_with_its_loop(daemon: FakeDaemon) -> None:
    async def main() -> libmem.Mapping:
        client = await libmem.aio.connect(daemon.runtime_dir)
        await client.write("/a/b", "x")
        return await client.map("/a/b")

    mapping = asyncio.run(main())
    assert bytes(mapping) == b"x"
    mapping.close()
    del mapping
    gc.collect()
    daemon.wait_for(lambda: not daemon.live_sessions())


def test_a_forked_child_leaves_the_parents_loop_alone(daemon: FakeDaemon) -> None:
    source = """
import asyncio, os, sys, libmem.aio
async def main():
    client = await libmem.aio.connect(sys.argv[1])
    await client.write("/a/b", "x")
    mapping = await client.map("/a/b")
    pid = os.fork()
    if pid == 0:
        mapping.close()
        client._connection.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (await client.stat("/a/b")).version == 1
    mapping.close()
    await client.close()
    print("served")
asyncio.run(main())
"""
    assert run_script(source, daemon.runtime_dir) == "served\n"
