"""kill -9 and start again: what was acknowledged is there, and clients hardly notice."""

import threading

import pytest

import libmem
from libmem import CubeType, Durability, Governance
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from tests.e2e.daemon import PATIENCE_S, Daemon, eventually, tier
from tests.e2e.raw import RawPeer

MIB = 1 << 20
NEVER = "[behaviour]\nwriteback_delay_s = 86400\n"
"""Cache payloads stay in RAM until they are asked to disk."""


def _errno_of(name: str, client: libmem.Client) -> Errno | None:
    try:
        client.read(name)
    except MemError as error:
        return error.errno
    return None


def test_the_next_call_works_and_everything_is_there(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/note", "an osprey over the bay")
        client.write("/t/large", bytes(range(256)) * 4096, type=CubeType.BLOB)
        with client.create("/t/filled", MIB) as fill:
            fill.buffer[-3:] = b"end"
        client.write("/t/gone", "unlinked")
        client.unlink("/t/gone")
        client.write("/t/old", "renamed, a heron")
        client.rename("/t/old", "/t/new")
        client.write("/t/note", "two ospreys over the bay")
        client.set_header("/t/note", attributes={"seen": 2})
        before = {stat.name: stat for stat in client.list("/t")}
        usage = client.stat_namespace("/t").usage
        epoch = client.epoch
        daemon.restart()
        after = {stat.name: stat for stat in client.list("/t")}
        assert client.epoch == epoch + 1
        assert sorted(after) == sorted(before) == ["/t/filled", "/t/large", "/t/new", "/t/note"]
        for name, stat in before.items():
            again = after[name]
            assert (again.id, again.version, again.digest) == (stat.id, stat.version, stat.digest)
            assert (again.created_ns, again.attributes) == (stat.created_ns, stat.attributes)
        assert client.read("/t/note") == b"two ospreys over the bay"
        assert client.read("/t/note@v1") == b"an osprey over the bay"
        assert client.read("/t/large") == bytes(range(256)) * 4096
        with client.map("/t/filled") as mapping:
            assert mapping[-3:] == b"end"
        assert [hit.name for hit in client.search("ospreys")] == ["/t/note"]
        assert [hit.name for hit in client.search("heron")] == ["/t/new"]
        assert client.search("unlinked") == ()
        assert client.stat_namespace("/t").usage.disk_bytes == usage.disk_bytes


def test_what_weighs_in_on_who_goes_is_kept(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/a", "x", governance=Governance(priority=70, half_life_s=90.5))
        client.write("/t/b", "x")
        client.set_header("/t/b", governance=Governance(half_life_s=5, expires_ns=1 << 62))
        before = [client.stat(name).governance for name in ("/t/a", "/t/b")]
        assert [(it.priority, it.half_life_s) for it in before] == [(70, 90.5), (50, 5.0)]
        with pytest.raises(MemError, match="half-life") as refused:
            client.write("/t/c", "x", governance=Governance(half_life_s=-1))
        assert refused.value.errno is Errno.EINVAL
        daemon.restart()
        assert [client.stat(name).governance for name in ("/t/a", "/t/b")] == before


def test_handles_of_before_are_stale(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/x", bytes(MIB), type=CubeType.BLOB)
        fill = client.create("/t/new", MIB)
        mapping = client.map("/t/x")
        daemon.restart()
        with pytest.raises(MemError) as seal:
            fill.seal()
        assert seal.value.errno is Errno.ESTALE
        with pytest.raises(MemError) as unmap:
            client.call(c.MunmapCube(mapping.handle))
        assert unmap.value.errno is Errno.ESTALE
        assert bytes(mapping) == bytes(MIB)  # the memory is as good as ever
        assert mapping.is_stale
        mapping.close()
        fill.abort()
        assert _errno_of("/t/new", client) is Errno.ENOENT
        assert tier(client.info(), "ram").used_bytes == 0
        with client.create("/t/new", MIB) as again:
            again.buffer[:5] = b"again"
        assert client.read("/t/new")[:5] == b"again"


def test_a_peer_that_knows_nothing_of_the_restart_is_told(daemon: Daemon) -> None:
    with RawPeer(daemon.runtime_dir) as peer:
        peer.bind()
        daemon.restart()
        assert peer.errno_of(c.Info()) is Errno.ESTALE
        assert peer.errno_of(c.StatCube("/t/x")) is Errno.ESTALE
        peer.bind()
        assert peer.errno_of(c.Info()) == 0


def test_pins_are_taken_again(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/x", bytes(MIB), type=CubeType.BLOB)
        client.write("/t/gone", bytes(MIB), type=CubeType.BLOB)
        kept, released, lost = client.pin("/t/x"), client.pin("/t/x"), client.pin("/t/gone")
        released.release()
        client.unlink("/t/gone")
        daemon.restart()
        assert client.stat("/t/x").pins == 1
        assert (kept.is_held, lost.is_held) == (True, False)
        assert client.stat("/t/x").tiers == ("ram", "disk")
        kept.release()
        assert client.stat("/t/x").pins == 0


def test_cache_cubes_are_lost_at_worst_and_never_wrong(idle: Daemon) -> None:
    idle.config = NEVER
    idle.start()
    cache = {"type": CubeType.BLOB, "durability": Durability.CACHE}
    with idle.connect() as client:
        client.make_namespace("/t")
        client.write("/t/synced", b"s" * MIB, **cache)  # type: ignore[arg-type]
        client.sync()
        client.write("/t/evicted", b"e" * MIB, **cache)  # type: ignore[arg-type]
        client.evict("/t/evicted")
        client.write("/t/lost", b"l" * MIB, **cache)  # type: ignore[arg-type]
        client.write("/t/older", b"1" * MIB, type=CubeType.BLOB)
        client.write("/t/older", b"2" * MIB, **cache)  # type: ignore[arg-type]
        client.write("/t/small", b"in the table", **cache)  # type: ignore[arg-type]
        assert client.stat("/t/lost").tiers == ("ram",)
        assert client.read("/t/older") == b"2" * MIB
        idle.restart()
        assert client.read("/t/synced") == b"s" * MIB
        assert client.read("/t/evicted") == b"e" * MIB
        assert client.read("/t/small") == b"in the table"
        assert _errno_of("/t/lost", client) is Errno.ENOENT
        assert client.read("/t/older") == b"1" * MIB
        assert client.stat("/t/older").latest_version == 1
        eventually(lambda: len(idle.page_files()) == 3, "those of synced, evicted and older")
        assert client.write("/t/older", b"3" * MIB, type=CubeType.BLOB).version == 3
        names = ["/t/evicted", "/t/older", "/t/small", "/t/synced"]
        assert [stat.name for stat in client.list("/t")] == names


def test_the_index_catches_up_or_is_built_anew(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/first", "kestrel")
        assert client.search("kestrel")
        client.write("/t/second", "kestrel")  # the index may not have seen it yet
        daemon.kill()
        daemon.start()
        assert len(client.search("kestrel")) == 2
        daemon.kill()
        for file in daemon.data_dir.glob("index.db*"):
            file.unlink()
        daemon.start()
        assert len(client.search("kestrel")) == 2
        daemon.kill()
        (daemon.data_dir / "index.db").write_bytes(b"no database " * 1000)
        daemon.start()
        assert len(client.search("kestrel")) == 2


def test_a_watch_goes_on_where_it_was(daemon: Daemon) -> None:
    with daemon.connect() as client:
        events = client.watch("/t")
        client.write("/t/one", "1")
        assert next(events).name == "/t/one"
        client.write("/t/two", "2")
        daemon.restart()
        client.write("/t/three", "3")
        assert [next(events).name for _ in range(2)] == ["/t/two", "/t/three"]


def test_a_watch_waits_through_a_restart(daemon: Daemon) -> None:
    seen: list[str] = []
    with daemon.connect() as client:
        events = client.watch("/t")

        def wait() -> None:
            seen.append(next(events).name)

        watcher = threading.Thread(target=wait)
        calls = client.info().calls
        watcher.start()
        eventually(lambda: client.info().calls > calls + 2, "it waits")
        daemon.restart()
        client.write("/t/after", "x")
        watcher.join(PATIENCE_S)
        assert seen == ["/t/after"]


def test_calls_wait_for_a_daemon_that_comes_back(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/x", "here")
        daemon.kill()
        with pytest.raises(MemError) as refused:
            client.call(c.StatCube("/t/x"), timeout_s=0.05)
        assert refused.value.errno is Errno.ECONNREFUSED
        found: list[bytes] = []
        caller = threading.Thread(target=lambda: found.append(client.read("/t/x")))
        caller.start()
        daemon.start()
        caller.join(PATIENCE_S)
        assert found == [b"here"]


def test_versions_and_events_are_not_numbered_twice(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/x", "1")
        client.write("/t/x", "2")
        client.unlink("/t/x")
        daemon.restart()
        client.write("/t/x", "3")
        daemon.restart()
        client.write("/t/x", "4")
        events = list(client.watch("/t", since_seq=0, timeout_s=0))
        numbers = [event.seq for event in events]
        assert numbers == list(range(1, len(numbers) + 1))
        assert [event.version for event in events if event.kind == "write"] == [1, 2, 1, 2]
        assert len({event.id for event in events if event.kind == "write"}) == 2
