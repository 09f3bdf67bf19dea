"""What a client does when the daemon dies, comes back, or never was."""

import socket
import threading
from typing import Any

import msgspec
import pytest

import libmem
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Event
from libmem.abi.wire import encode
from tests.libmem.fake_daemon import (
    PATIENCE_S,
    Action,
    FakeDaemon,
    Incoming,
    die,
    die_after,
    refuse,
)


def errno_of(raised: pytest.ExceptionInfo[MemError]) -> Errno:
    return raised.value.errno


def come_back(daemon: FakeDaemon) -> threading.Thread:
    """Start a successor once a scripted death has happened."""

    def revive() -> None:
        daemon.bury()
        daemon.start()

    thread = threading.Thread(target=revive)
    thread.start()
    return thread


def test_a_restart_is_noticed_and_the_call_succeeds(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    client.write("/a/b", "x")
    assert client.epoch == 1
    daemon.restart()
    assert client.read("/a/b") == b"x"
    assert client.epoch == 2
    assert client.write("/a/b", "y").version == 2


def test_a_mutation_after_an_idle_restart_is_sent_once(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.restart()
    assert client.write("/a/b", "x", expected_version=0).version == 1
    assert daemon.count("write_cube") == 1


@pytest.mark.parametrize("syscall", ["stat_cube", "write_cube"])
def test_a_request_refused_as_stale_is_sent_again_once(
    syscall: str, client: libmem.Client, daemon: FakeDaemon
) -> None:
    client.write("/a/b", "x")
    daemon.script(syscall, refuse(MemError(Errno.ESTALE, "unknown session")))
    if syscall == "stat_cube":
        assert client.stat("/a/b").version == 1
    else:
        assert client.write("/a/b", "y").version == 2
    assert daemon.count("hello") == 2


def test_a_daemon_that_calls_everything_stale_is_believed(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    stale = refuse(MemError(Errno.ESTALE, "unknown session"))
    daemon.script("stat_cube", stale, stale)
    with pytest.raises(MemError) as raised:
        client.stat("/a/b")
    assert errno_of(raised) is Errno.ESTALE
    assert daemon.count("stat_cube") == 2


def test_a_watch_of_a_lost_past_is_no_lost_session(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.script("watch", refuse(MemError(Errno.ESTALE, "older than the log")))
    with pytest.raises(MemError, match="older than the log"):
        client.call(c.Watch("/", since_seq=1))
    assert daemon.count("hello") == 1


def test_a_question_is_asked_again_when_the_daemon_dies(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    client.write("/a/b", "x")
    daemon.script("stat_cube", die)
    revival = come_back(daemon)
    assert client.stat("/a/b").version == 1
    revival.join()
    assert daemon.count("stat_cube") == 2


@pytest.mark.parametrize("death", [die, die_after])
def test_a_mutation_in_flight_has_an_unknown_outcome(
    death: Action, client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.script("write_cube", death)
    with pytest.raises(MemError) as raised:
        client.write("/a/b", "x")
    assert errno_of(raised) is Errno.ECONNRESET
    daemon.bury()
    daemon.start()
    left = ["/a/b"] if death is die_after else []
    assert [stat.name for stat in client.list("/a")] == left
    assert daemon.count("write_cube") == 1


def test_a_shutdown_is_never_repeated(client: libmem.Client, daemon: FakeDaemon) -> None:
    daemon.script("shutdown", die)
    client.shutdown()
    daemon.bury()
    daemon.start()
    assert client.info().server == "fake"
    assert daemon.count("shutdown") == 1


def test_a_reply_that_was_sent_before_the_death_counts(
    client: libmem.Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    saw_the_end = threading.Event()
    link = client._connection.link
    assert link is not None
    drain = link.drain

    def watched() -> bool:
        is_alive = drain()
        if not is_alive:
            saw_the_end.set()
        return is_alive

    def end_the_road_first(daemon: FakeDaemon, incoming: Incoming) -> None:
        road = daemon.live_sessions()[0].road
        assert road is not None
        road.shutdown(socket.SHUT_RDWR)
        assert saw_the_end.wait(PATIENCE_S)
        daemon.answer(incoming)

    monkeypatch.setattr(link, "drain", watched)
    monkeypatch.setattr(libmem.link, "GRACE_MS", PATIENCE_S * 1000)
    daemon.script("write_cube", end_the_road_first)
    assert client.write("/a/b", "x").version == 1
    assert saw_the_end.is_set()


def test_handles_do_not_survive(client: libmem.Client, daemon: FakeDaemon) -> None:
    client.write("/a/b", "x")
    fill = client.create("/a/c", 10)
    daemon.restart()
    assert client.read("/a/b") == b"x"
    with pytest.raises(MemError) as raised:
        fill.seal()
    assert errno_of(raised) is Errno.ESTALE
    fill.abort()
    with pytest.raises(MemError) as raised:
        client.call(c.UnpinCube(fill.handle))
    assert errno_of(raised) is not Errno.ESTALE  # sent: the caller's own affair
    daemon.restart()
    unpin = msgspec.Raw(encode(c.UnpinCube(1)))
    requests: list[c.Call[Any]] = [c.UnpinCube(1), c.Batch(((15, unpin),))]
    for request in requests:
        with pytest.raises(MemError) as raised:
            client.call(request)
        assert errno_of(raised) is Errno.ESTALE
        client.info()
        daemon.restart()


def test_a_mapping_outlives_the_daemon(client: libmem.Client, daemon: FakeDaemon) -> None:
    client.write("/a/b", "memory")
    mapping = client.map("/a/b")
    was_stale = mapping.is_stale
    daemon.restart()
    assert (was_stale, mapping.is_stale) == (False, True)
    client.info()
    assert bytes(mapping) == b"memory"
    mapping.close()
    client.info()
    assert daemon.count("munmap_cube") == 0


def test_pins_are_taken_again(client: libmem.Client, daemon: FakeDaemon) -> None:
    for name in ("/a/kept", "/a/gone", "/a/released"):
        client.write(name, "x")
    kept, gone, released = (client.pin(f"/a/{name}") for name in ("kept", "gone", "released"))
    released.release()
    daemon.kill()
    daemon.bury()
    del daemon.kernel.cubes["/a/gone"]
    daemon.start()
    client.info()
    assert list(daemon.live_sessions()[0].pinned.values()) == ["/a/kept"]
    assert daemon.count("pin_cube") == 3 + 2  # the released one is not asked for
    assert (kept.is_held, gone.is_held) == (True, False)
    kept.release()
    gone.release()
    client.info()
    assert not daemon.live_sessions()[0].pinned


def test_a_death_while_pins_are_taken_again_is_one_more_restart(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    client.write("/a/b", "x")
    pin = client.pin("/a/b")
    daemon.restart()
    daemon.script("pin_cube", die)
    revival = come_back(daemon)
    assert client.write("/a/b", "y").version == 2
    revival.join()
    assert (client.epoch, pin.is_held) == (3, True)
    assert daemon.count("write_cube") == 2


def test_a_large_write_is_begun_again(client: libmem.Client, daemon: FakeDaemon) -> None:
    daemon.script("seal_cube", refuse(MemError(Errno.ESTALE, "unknown session")))
    assert client.write("/a/b", bytes(10_000)).version == 1
    assert daemon.count("create_cube") == 2


def test_a_large_write_in_flight_has_an_unknown_outcome(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.script("seal_cube", die_after)
    with pytest.raises(MemError) as raised:
        client.write("/a/b", bytes(10_000))
    assert errno_of(raised) is Errno.ECONNRESET


def test_a_daemon_that_stays_away_is_refused_in_the_end(
    daemon: FakeDaemon,
) -> None:
    with libmem.connect(daemon.runtime_dir, timeout_s=0.1) as client:
        daemon.kill()
        for _ in range(2):
            with pytest.raises(MemError) as raised:
                client.info()
            assert errno_of(raised) is Errno.ECONNREFUSED
        daemon.bury()
        daemon.start()
        assert client.call(c.Info(), timeout_s=10).server == "fake"


def test_a_watch_goes_on_over_a_restart(client: libmem.Client, daemon: FakeDaemon) -> None:
    events = client.watch("/a", timeout_s=10)
    client.write("/a/1", "x")
    assert next(events).name == "/a/1"
    client.write("/a/2", "x")
    daemon.restart()
    client.write("/a/3", "x")
    assert [next(events).name, next(events).name] == ["/a/2", "/a/3"]


def test_a_watch_begins_where_it_was_called(client: libmem.Client) -> None:
    client.write("/a/before", "x")
    events = client.watch("/a", timeout_s=0.01)
    client.write("/a/after", "x")
    assert [event.name for event in events] == ["/a/after"]
    past: list[Event] = list(client.watch("/a", since_seq=0, timeout_s=0.01))
    assert [event.name for event in past] == ["/a/before", "/a/after"]


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_watch_has_a_connection_of_its_own(
    client: libmem.Client, daemon: FakeDaemon, is_begun: bool
) -> None:
    events = client.watch("/a", since_seq=0)
    client.write("/a/b", "x")
    if is_begun:
        assert next(events).name == "/a/b"
    assert len(daemon.live_sessions()) == 2
    del events
    daemon.wait_for(lambda: len(daemon.live_sessions()) == 1)
