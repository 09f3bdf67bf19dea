"""One caller's large or many things never hold the kernel, or its memory, for long."""

from itertools import pairwise

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Advice, Governance
from memosd.kernel.heat import _WRITE_BACK_STRETCH
from memosd.kernel.removal import _EXPIRY_STRETCH
from memosd.kernel.timers import Timers
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import FakeClock
from tests.kernel.world import Client, World, batch_of


def test_what_expires_together_goes_a_stretch_at_a_time(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + 1)
    count = 2 * _EXPIRY_STRETCH + 10
    writes = [c.WriteCube(name=f"/n/{n}", payload=b"", governance=soon) for n in range(count)]
    user.call(batch_of(*writes))
    start = user.call(c.Watch()).next_seq
    world.clock.advance(world.parameters.expiry_sweep_ns)
    world.kernel.turn()
    left = user.usage("/n").usage.cubes
    assert left == count - _EXPIRY_STRETCH, "the rest waits for the commit and another turn"
    world.settle()
    world.pass_time(1)
    world.pass_time(1)
    assert user.usage("/n").usage.cubes == 0
    assert user.call(c.Watch(since_seq=start, max_events=1000)).next_seq == start + count


def test_large_headers_are_not_kept_at_hand(world: World, user: Client) -> None:
    user.write("/n/small", b"")
    user.write("/n/large", b"", attributes={"k": "x" * 5000})
    for name in ("/n/small", "/n/large"):
        user.stat(name)
    assert list(world.kernel.parts.table._hot) == ["/n/small"]


def test_what_is_kept_at_hand_follows_every_change(world: World, user: Client) -> None:
    user.write("/n/a", b"1")
    assert user.stat("/n/a").version == 1
    user.write("/n/a", b"2")
    assert user.stat("/n/a").version == 2
    user.call(c.RenameCube(name="/n/a", new_name="/n/b"))
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert user.stat("/n/b").version == 2
    world.store.fail_commit(Errno.EIO)
    user.fails(c.WriteCube(name="/n/b", payload=b"3"), Errno.EIO)
    assert user.stat("/n/b").version == 2
    user.unlink("/n/b")
    user.fails(c.StatCube(name="/n/b"), Errno.ENOENT)


def test_a_history_reads_no_more_versions_than_it_shows(world: World, user: Client) -> None:
    for number in range(30):
        user.write("/n/a", b"%d" % number)
    user.unlink("/n/a@v28")
    shown = user.call(c.HistoryCube(name="/n/a", limit=5)).versions
    assert [stat.version for stat in shown] == [30, 29, 27, 26, 25]
    (newest, *_) = user.call(c.HistoryCube(name="/n/a@v3")).versions
    assert newest.version == 30


def test_pages_of_large_headers_are_short(world: World, user: Client) -> None:
    large = {"k": "x" * 200_000}
    for number in range(12):
        user.write(f"/n/{number:02}", b"", attributes=large)
    names: list[str] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        page = user.call(c.Readdir(path="/n", limit=1000, cursor=cursor))
        names += [stat.name for stat in page.entries]
        cursor, pages = page.next_cursor, pages + 1
        assert len(page.entries) <= 6
    assert names == [f"/n/{number:02}" for number in range(12)]
    history_page = user.call(c.HistoryCube(name="/n/00"))
    assert len(history_page.versions) == 1


def test_a_watch_that_waits_holds_nothing_per_commit(world: World, user: Client) -> None:
    waiting = user.start(c.Watch(under="/n/elsewhere", timeout_ms=60_000))
    events = world.kernel.events
    for number in range(20):
        user.write("/n/a", b"%d" % number)
    assert not waiting.is_answered
    (sleeper,) = events._sleepers
    assert sleeper._woken is not None
    assert len(sleeper._woken._waiters) == 1
    world.pass_time(60_000_000_000)
    assert waiting.result().events == ()
    assert not events._sleepers


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = Timers(FakeClock())
    for _ in range(10_000):
        timers.after(60_000_000_000, lambda: None).cancel()
    assert len(timers._heap) < 1000


def test_use_counts_are_written_a_stretch_at_a_time(world: World, user: Client) -> None:
    count = _WRITE_BACK_STRETCH + 5
    for start in range(0, count, 1000):
        names = [f"/n/{n}" for n in range(start, min(start + 1000, count))]
        user.call(batch_of(*(c.WriteCube(name=name, payload=b"x") for name in names)))
        user.call(batch_of(*(c.ReadCube(name=name) for name in names)))
    heat = world.kernel.parts.heat
    assert heat.write_back()
    assert len(heat._dirty) == 5
    assert not heat.write_back()
    assert user.stat("/n/0").behaviour.reads == 1


def test_who_may_only_read_does_not_evict_by_advice(world: World, user: Client) -> None:
    world.root.make("/shared", mode=0o755)
    world.root.blob("/shared/a", bytes(8192), governance=Governance(mode=0o644))
    user.call(c.AdviseCube(name="/shared/a", advice=Advice.DONTNEED))
    assert "ram" in world.root.stat("/shared/a").tiers
    world.root.call(c.AdviseCube(name="/shared/a", advice=Advice.DONTNEED))
    assert "ram" not in world.root.stat("/shared/a").tiers


def test_a_read_far_behind_the_end_is_empty(user: Client) -> None:
    user.blob("/n/paged", bytes(100_000))
    user.blob("/n/inline", b"x")
    for name in ("/n/paged", "/n/inline"):
        assert user.call(c.ReadCube(name=name, offset_bytes=1 << 63)).payload == b""


def test_a_namespace_number_is_never_given_twice(make_world: MakeWorld) -> None:
    world = make_world()
    user = world.client()
    numbers = []
    for name in ("/a", "/b", "/c"):
        user.make(name)
        numbers.append(world.kernel.parts.namespaces.find(name).id)
        user.call(c.RemoveNamespace(name=name))
    world.crash()
    world.root.make("/d")
    numbers.append(world.kernel.parts.namespaces.find("/d").id)
    assert all(earlier < later for earlier, later in pairwise(numbers))


def test_who_takes_a_freed_name_does_not_see_its_past(world: World, user: Client) -> None:
    open_to_all = Governance(mode=0o644)
    start = user.call(c.Watch()).next_seq
    user.write("/n/secret", b"x", governance=open_to_all)
    user.unlink("/n/secret")
    user.call(c.RemoveNamespace(name="/n"))
    other = world.client(2000)
    other.make("/n")
    other.write("/n/mine", b"y")
    events = other.call(c.Watch(since_seq=start)).events
    assert [event.name for event in events] == ["/n", "/n/mine"]
