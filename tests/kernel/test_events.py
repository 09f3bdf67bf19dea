"""Events: what a watcher is told, when it is woken, what it may not see."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Durability, EventKind, Governance
from memosd.kernel.events import is_under
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import ROOT, Client, World, batch_of

OTHER = 2000


def kinds(reply: c.WatchReply) -> list[tuple[str, str]]:
    """(kind, name) of each event."""
    return [(event.kind.value, event.name) for event in reply.events]


def test_every_change_is_an_event_in_the_order_of_commits(world: World, user: Client) -> None:
    start = user.call(c.Watch()).next_seq
    written = user.write("/n/a", b"1")
    user.call(c.SetHeader(name="/n/a", attributes={"k": 1}))
    user.call(c.RenameCube(name="/n/a", new_name="/n/b"))
    user.unlink("/n/b@v1")
    user.unlink("/n/b")
    user.write("/n/short", b"x", governance=Governance(expires_ns=world.clock.wall_ns() + 1))
    world.pass_time(world.parameters.expiry_sweep_ns)
    reply = user.call(c.Watch(since_seq=start))
    assert kinds(reply) == [
        ("write", "/n/a"),
        ("header", "/n/a"),
        ("rename", "/n/b"),
        ("prune", "/n/b"),
        ("unlink", "/n/b"),
        ("write", "/n/short"),
        ("expire", "/n/short"),
    ]
    assert [event.seq for event in reply.events] == list(range(start + 1, reply.next_seq + 1))
    first, _, renamed = reply.events[:3]
    assert (first.id, first.version, first.uid) == (written.id, 1, user.identity.uid)
    assert renamed.old_name == "/n/a"


def test_a_quarantined_payload_is_an_event(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(8192))
    user.call(c.Evict(name="/n/a"))
    start = user.call(c.Watch()).next_seq
    world.plan.flip_bit()
    user.fails(c.ReadCube(name="/n/a"), Errno.ECORRUPT)
    assert kinds(user.call(c.Watch(since_seq=start))) == [("quarantine", "/n/a")]


def test_what_falls_with_its_source_is_an_event(user: Client) -> None:
    user.write("/n/a", b"one")
    derived = {"parents": ("/n/a",), "attributes": {"derivation": {"recipe": "any"}}}
    user.write("/n/kept", b"x", **derived)
    user.write("/n/again", b"x", durability=Durability.CACHE, **derived)
    start = user.call(c.Watch()).next_seq
    user.write("/n/a", b"two")
    assert kinds(user.call(c.Watch(since_seq=start))) == [
        ("write", "/n/a"),
        ("outdate", "/n/kept"),
        ("fall", "/n/again"),
    ]


def test_a_namespace_is_an_event(world: World) -> None:
    user = world.client()
    start = user.call(c.Watch()).next_seq
    user.make("/fresh")
    user.call(c.RemoveNamespace(name="/fresh"))
    seen = kinds(world.root.call(c.Watch(since_seq=start)))
    assert seen == [("namespace", "/fresh"), ("namespace", "/fresh")]


def test_a_reader_that_resumes_misses_nothing_and_sees_nothing_twice(user: Client) -> None:
    start = user.call(c.Watch()).next_seq
    for number in range(10):
        user.write(f"/n/{number}", b"x")
    names: list[str] = []
    since = start
    while (reply := user.call(c.Watch(since_seq=since, max_events=3))).events:
        names += [event.name for event in reply.events]
        since = reply.next_seq
    assert names == [f"/n/{number}" for number in range(10)]


def test_a_subtree_is_watched_and_nothing_beside_it(user: Client) -> None:
    start = user.call(c.Watch()).next_seq
    for name in ("/n/a", "/n/a/b", "/n/ab", "/n/c"):
        user.write(name, b"x")
    user.call(c.RenameCube(name="/n/a/b", new_name="/n/d"))
    user.call(c.RenameCube(name="/n/c", new_name="/n/a/c"))
    seen = kinds(user.call(c.Watch(under="/n/a", since_seq=start)))
    assert seen == [
        ("write", "/n/a"),
        ("write", "/n/a/b"),
        ("rename", "/n/d"),
        ("rename", "/n/a/c"),
    ]


@given(st.lists(st.sampled_from(["a", "ab", "b"]), min_size=1, max_size=3), st.integers(0, 3))
@settings(deadline=None)
def test_a_subtree_is_its_root_and_what_lies_below(segments: list[str], depth: int) -> None:
    name = "/" + "/".join(segments)
    subtree = "/" + "/".join(segments[:depth])
    assert is_under(name, subtree)
    assert not is_under(name + "x", name)
    assert not is_under(subtree, name + "/b")


# -- waiting -------------------------------------------------------------------------------------


def test_a_watcher_is_woken_by_the_commit_and_not_before(world: World, user: Client) -> None:
    waiting = user.start(c.Watch(under="/n", timeout_ms=60_000))
    user.start(c.WriteCube(name="/n/a", payload=b"x"))
    world.kernel.turn()
    assert not waiting.is_answered
    world.io.finish("commit")
    assert kinds(waiting.result()) == [("write", "/n/a")]


def test_what_happens_elsewhere_does_not_end_the_wait(world: World, user: Client) -> None:
    user.make("/other")
    waiting = user.start(c.Watch(under="/n", timeout_ms=1000))
    user.write("/other/a", b"x")
    assert not waiting.is_answered
    user.write("/n/a", b"x")
    assert kinds(waiting.result()) == [("write", "/n/a")]


def test_the_wait_ends_with_its_time_out(world: World, user: Client) -> None:
    waiting = user.start(c.Watch(timeout_ms=1000))
    world.pass_time(SECOND_NS - 1)
    assert not waiting.is_answered
    world.pass_time(1)
    assert waiting.result().events == ()


def test_without_a_time_out_nobody_waits(user: Client) -> None:
    pending = user.start(c.Watch())
    assert pending.result().events == ()


def test_the_wait_ends_with_the_session(world: World, user: Client) -> None:
    waiting = [user.start(c.Watch(timeout_ms=60_000)) for _ in range(3)]
    user.die()
    assert all(watch.is_answered for watch in waiting)
    assert user.session.on_end == set()


def test_the_wait_ends_with_the_daemon(world: World, user: Client) -> None:
    waiting = user.start(c.Watch(timeout_ms=60_000))
    user.write("/n/a", b"x", type=CubeType.BLOB)
    again = user.start(c.Watch(since_seq=waiting.result().next_seq, timeout_ms=60_000))
    done = world.stop()
    assert again.result().events == ()
    assert done.is_done


def test_a_session_waits_in_a_limited_number_of_watches(make_world: MakeWorld) -> None:
    world = make_world(watches_per_session=2)
    user = world.client()
    waiting = [user.start(c.Watch(timeout_ms=1000)) for _ in range(2)]
    user.start(c.Watch(timeout_ms=1000)).failure(Errno.EMFILE)
    world.pass_time(SECOND_NS)
    assert all(watch.result().events == () for watch in waiting)
    assert not user.start(c.Watch(timeout_ms=1000)).is_answered


# -- the log -------------------------------------------------------------------------------------


def test_a_reader_behind_the_retained_log_is_told_to_list_again(make_world: MakeWorld) -> None:
    world = make_world(log_retain_events=10)
    user = world.client()
    user.make("/n")
    start = user.call(c.Watch()).next_seq
    for _ in range(40):
        user.write("/n/a", b"x")
        user.call(c.Search(query="x"))  # the index follows: the log may go
    error = user.fails(c.Watch(since_seq=start), Errno.ESTALE)
    oldest = error.detail["oldest_seq"]
    assert len(user.call(c.Watch(since_seq=oldest - 1)).events) <= 2 * 10
    user.fails(c.Watch(since_seq=oldest - 2), Errno.ESTALE)


def test_a_reader_from_the_future_or_the_past_is_told_so(user: Client) -> None:
    now = user.call(c.Watch()).next_seq
    for since in (now + 1, 1 << 63, -1, -(1 << 63)):
        user.fails(c.Watch(since_seq=since), Errno.ESTALE)


@pytest.mark.parametrize("place", ["last", "middle", "all"])
def test_a_damaged_event_is_passed_over_and_never_waited_for(
    world: World, user: Client, place: str
) -> None:
    start = user.call(c.Watch()).next_seq
    for number in range(3):
        user.write(f"/n/{number}", b"x")
    damaged = {"last": [3], "middle": [2], "all": [1, 2, 3]}[place]
    for number in damaged:
        world.damage("log", (start + number).to_bytes(8, "big") * 2)
    left = [("write", f"/n/{n - 1}") for n in (1, 2, 3) if n not in damaged]
    waiting = user.start(c.Watch(since_seq=start, timeout_ms=1000))
    if left:
        assert kinds(waiting.result()) == left
        waiting = user.start(c.Watch(since_seq=waiting.result().next_seq, timeout_ms=1000))
    assert not waiting.is_answered
    user.write("/n/next", b"x")
    assert kinds(waiting.result()) == [("write", "/n/next")]


def test_a_reader_far_behind_does_not_hold_the_kernel(world: World, user: Client) -> None:
    stranger = world.client(OTHER)
    start = stranger.call(c.Watch()).next_seq
    batch = batch_of(*[c.WriteCube(name="/n/a", payload=b"x")] * 1000)
    for _ in range(9):
        user.call(batch)
    reply = stranger.start(c.Watch(since_seq=start, timeout_ms=1000)).result()
    assert reply.events == ()
    assert start < reply.next_seq < start + 9000


@pytest.mark.parametrize(
    "bad",
    [
        {"max_events": 0},
        {"max_events": 1001},
        {"timeout_ms": -1},
        {"timeout_ms": 60_001},
        {"under": "n"},
        {"under": "/n/../m"},
    ],
)
def test_senseless_requests_are_refused(user: Client, bad: dict[str, object]) -> None:
    user.fails(c.Watch(**bad), Errno.EINVAL)  # type: ignore[arg-type]


# -- rights --------------------------------------------------------------------------------------


def test_events_are_shown_by_the_rights_of_their_time(world: World, user: Client) -> None:
    shared = user.make("/shared", mode=0o755)
    assert shared.mode == 0o755
    stranger, root = world.client(OTHER), world.client(ROOT)
    start = user.call(c.Watch()).next_seq
    user.write("/shared/open", b"x", governance=Governance(mode=0o644))
    user.write("/shared/closed", b"x")
    user.write("/n/hidden", b"x", governance=Governance(mode=0o644))
    user.call(c.SetHeader(name="/shared/open", governance=Governance(mode=0o600)))
    everything = [
        ("write", "/shared/open"),
        ("write", "/shared/closed"),
        ("write", "/n/hidden"),
        ("header", "/shared/open"),
    ]
    assert kinds(user.call(c.Watch(since_seq=start))) == everything
    assert kinds(root.call(c.Watch(since_seq=start))) == everything
    assert kinds(stranger.call(c.Watch(since_seq=start))) == everything[:1]


def test_a_namespace_that_may_not_be_entered_may_not_be_watched(world: World, user: Client) -> None:
    stranger = world.client(OTHER)
    stranger.fails(c.Watch(under="/n"), Errno.EACCES)
    stranger.fails(c.Watch(under="/nowhere"), Errno.ENOENT)
    assert user.call(c.Watch(under="/n")).events == ()


def test_all_kinds_of_events_occur_in_these_tests() -> None:
    assert {kind.value for kind in EventKind} == {
        "write",
        "header",
        "rename",
        "unlink",
        "prune",
        "expire",
        "lose",
        "fall",
        "outdate",
        "quarantine",
        "namespace",
    }
