"""The indexer: follows the log, never behind a search, never finds what is gone."""

from collections.abc import Iterable, Sequence

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexDocument
from libmem.abi.structs import CubeType, Descriptive, Governance
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import KIB, Client, World

LARGE = 4 * KIB
RETRY_NS = 1 * SECOND_NS
START_NS = 20_000_000


def found(user: Client, query: str, under: str = "/", k: int = 10) -> list[str]:
    """Names of the hits, best first."""
    return [hit.name for hit in user.call(c.Search(query=query, under=under, k=k)).hits]


def words(word: str, size_bytes: int = 0) -> bytes:
    """A text with a word in it."""
    return (word + " " + "filler " * (size_bytes // 7)).encode()


# -- in step with the table ----------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, LARGE])
def test_a_written_text_is_found_by_the_next_search(user: Client, size_bytes: int) -> None:
    user.write("/n/a", words("apple", size_bytes))
    assert found(user, "apple") == ["/n/a"]
    user.write("/n/b", words("apple apple", size_bytes))
    assert found(user, "apple") == ["/n/b", "/n/a"]


def test_a_search_waits_for_what_was_durable_when_it_came(world: World, user: Client) -> None:
    written = user.start(c.WriteCube(name="/n/a", payload=b"apple"))
    world.kernel.turn()
    world.io.finish("commit")
    assert written.is_answered
    search = user.start(c.Search(query="apple"))
    assert not search.is_answered
    world.settle()
    assert [hit.name for hit in search.result().hits] == ["/n/a"]


def test_an_unlinked_text_is_found_by_none(world: World, user: Client) -> None:
    user.write("/n/a", b"apple")
    assert found(user, "apple") == ["/n/a"]
    pending = user.start(c.UnlinkCube(name="/n/a"))
    search = user.start(c.Search(query="apple"))
    world.settle()
    assert pending.result().versions == 1
    assert search.result().hits == ()
    assert found(user, "apple") == []
    world.crash()
    assert found(world.client(), "apple") == []


def test_the_index_hears_of_a_version_that_goes(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = user.write("/n/a", b"apple")
    user.write("/n/a", b"pear")
    assert found(user, "pear") == ["/n/a"]
    heard: list[bytes] = []
    apply = world.index.apply

    def listen(stamp: int, documents: Sequence[IndexDocument], removed: Iterable[bytes]) -> None:
        heard.extend(removed)
        apply(stamp, documents, removed)

    monkeypatch.setattr(world.index, "apply", listen)
    user.call(c.UnlinkCube(name="/n/a@v1"))
    assert found(user, "pear") == ["/n/a"]
    assert heard == [stat.id]


def test_only_the_current_version_is_found(user: Client) -> None:
    user.write("/n/a", b"apple")
    user.write("/n/a", b"pear")
    assert found(user, "apple") == []
    assert found(user, "pear") == ["/n/a"]
    user.call(c.SetHeader(name="/n/a", descriptive=Descriptive(title="quince")))
    hit = user.call(c.Search(query="quince")).hits[0]
    assert (hit.name, hit.version) == ("/n/a", 3)


def test_a_renamed_text_is_found_under_its_new_name(user: Client) -> None:
    user.make("/m")
    user.write("/n/a/b", b"apple")
    user.call(c.RenameCube(name="/n/a/b", new_name="/m/c"))
    assert found(user, "apple") == ["/m/c"]
    assert found(user, "apple", under="/n") == []
    assert found(user, "apple", under="/m") == ["/m/c"]


def test_an_expired_text_is_not_found(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + SECOND_NS)
    user.write("/n/a", b"apple", governance=soon)
    assert found(user, "apple") == ["/n/a"]
    world.clock.advance(SECOND_NS)
    assert found(user, "apple") == []
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert found(user, "apple") == []
    assert world.index.documents == {}


def test_only_texts_are_indexed(world: World, user: Client) -> None:
    user.blob("/n/a", b"apple")
    user.write("/n/b", b"apple")
    assert found(user, "apple") == ["/n/b"]
    typed = c.Search(query="apple", types=(CubeType.BLOB,))
    assert user.call(typed).hits == ()
    assert len(world.index.documents) == 1


def test_an_empty_text_is_indexed_by_its_title(user: Client) -> None:
    user.write("/n/a", b"", descriptive=Descriptive(title="apple"))
    assert found(user, "apple") == ["/n/a"]


def test_many_events_are_indexed_in_stretches(world: World, user: Client) -> None:
    for number in range(2500):
        user.start(c.WriteCube(name=f"/n/{number:04}", payload=b"apple"))
    world.settle()
    search = user.start(c.Search(query="apple", k=1000))
    user.start(c.UnlinkCube(name="/n/0000"))
    world.settle()
    assert len(search.result().hits) == 1000
    assert len(found(user, "apple", k=1000)) == 1000
    assert len(world.index.documents) == 2499


# -- what a search may say -----------------------------------------------------------------------


def test_a_search_is_limited_to_a_subtree(user: Client) -> None:
    for name in ("/n/a", "/n/a/b", "/n/ab", "/n/c"):
        user.write(name, b"apple")
    assert sorted(found(user, "apple", under="/n/a")) == ["/n/a", "/n/a/b"]
    assert found(user, "apple", under="/n/d") == []
    user.fails(c.Search(query="apple", under="/m"), Errno.ENOENT)
    user.fails(c.Search(query="apple", under="n"), Errno.EINVAL)


def test_hits_that_may_not_be_read_do_not_use_up_the_places(world: World, user: Client) -> None:
    user.make("/shared", mode=0o755)
    for number in range(60):
        user.write(f"/shared/{number}", b"apple apple")
    user.write("/shared/open", b"apple", governance=Governance(mode=0o644))
    stranger = world.client(2000)
    reply = stranger.call(c.Search(query="apple", k=1))
    assert [(hit.name, hit.rank) for hit in reply.hits] == [("/shared/open", 1)]
    assert found(stranger, "apple", under="/shared") == ["/shared/open"]
    stranger.fails(c.Search(query="apple", under="/n"), Errno.EACCES)


def test_hits_tell_what_they_are(user: Client) -> None:
    written = user.write("/n/a", b"apple apple")
    hit = user.call(c.Search(query="apple")).hits[0]
    assert (hit.id, hit.version, hit.score) == (written.id, 1, 2.0)
    assert hit.signals == {"bm25": 2.0}
    assert hit.snippet == "\x02apple\x03"


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_a_senseless_number_of_hits_is_refused(user: Client, k: int) -> None:
    user.fails(c.Search(query="apple", k=k), Errno.EINVAL)


def test_a_query_is_no_document(user: Client) -> None:
    user.write("/n/a", b"apple")
    assert found(user, "a" * 10_000) == []
    error = user.fails(c.Search(query="a" * 10_001), Errno.EINVAL)
    assert "10000 characters" in error.message


# -- after a restart -----------------------------------------------------------------------------


def test_after_a_crash_it_catches_up_from_its_stamp(world: World, user: Client) -> None:
    user.write("/n/a", b"apple")
    assert found(user, "apple") == ["/n/a"]
    stamp = world.index.stamp
    user.write("/n/b", b"apple")
    user.unlink("/n/a")
    world.crash()
    assert world.index.stamp == stamp
    assert found(world.client(), "apple") == ["/n/b"]
    assert world.index.clears == 0, "no rebuild for what the log can tell"


@pytest.mark.parametrize("stamp", [0, 5, 1 << 60])
def test_an_index_out_of_step_is_rebuilt(make_world: MakeWorld, stamp: int) -> None:
    """Behind what the log can tell, or ahead of a table that was restored."""
    world = make_world(log_retain_events=10)
    user = world.client()
    user.make("/n")
    for number in range(30):
        user.write(f"/n/{number}", b"apple")
        found(user, "apple")
    for number in range(25):
        user.unlink(f"/n/{number}")
        found(user, "apple")
    assert world.kernel.parts.table.log.oldest_seq > 6
    world.index.stamp = stamp
    world.crash()
    world.settle()
    assert world.index.clears == 1
    assert sorted(found(world.client(), "apple")) == [f"/n/{n}" for n in range(25, 30)]


def test_a_new_index_over_a_whole_log_just_follows_it(world: World, user: Client) -> None:
    user.write("/n/a", b"apple")
    world.index.stamp = 0
    world.crash()
    assert found(world.client(), "apple") == ["/n/a"]
    assert world.index.clears == 0


def test_while_it_is_rebuilt_searches_say_so_and_writes_go_on(make_world: MakeWorld) -> None:
    world = make_world(log_retain_events=1)
    user = world.client()
    user.make("/n")
    for number in range(5):
        user.write(f"/n/{number}", b"apple")
        found(user, "apple")
    world.index.stamp = 0
    world.crash()
    user = world.root
    searches = []
    for step in range(6):
        searches.append(user.start(c.Search(query="apple")))
        if world.index_io.jobs:
            world.index_io.finish_at(0)
        if step == 2:
            user.start(c.WriteCube(name="/n/late", payload=b"apple"))
            world.kernel.turn()
            world.io.finish("commit")
    world.settle()
    assert {search.errno() for search in searches} == {0, Errno.EAGAIN}
    for search in searches:
        if search.errno() == 0:
            assert len(search.result().hits) >= 5, "never half an answer"
    assert len(found(user, "apple")) == 6


def test_events_during_a_rebuild_are_not_missed(make_world: MakeWorld) -> None:
    world = make_world(log_retain_events=1)
    user = world.client()
    user.make("/n")
    for number in range(5):
        user.write(f"/n/{number}", b"apple")
        found(user, "apple")
    world.index.stamp = 0
    world.crash()
    user = world.root
    for number in range(5):  # one change before each step of the rebuild
        if world.index_io.jobs:
            world.index_io.finish_at(0)
        user.start(c.UnlinkCube(name=f"/n/{number}"))
        user.start(c.WriteCube(name=f"/n/new{number}", payload=b"apple"))
        world.kernel.turn()
        world.io.finish("commit")
    world.settle()
    assert sorted(found(user, "apple")) == [f"/n/new{number}" for number in range(5)]
    assert len(world.index.documents) == 5


# -- an index that fails -------------------------------------------------------------------------


def test_an_index_that_fails_says_try_again_and_recovers(world: World, user: Client) -> None:
    user.write("/n/a", b"apple")
    world.index.failure = MemError(Errno.EIO, "disk on fire")
    error = user.fails(c.Search(query="apple"), Errno.EAGAIN)
    assert "disk on fire" in error.message
    assert user.write("/n/b", b"apple").version == 1, "the write path never waits for it"
    assert any("disk on fire" in notice for notice in user.call(c.Info()).notices)
    world.index.failure = None
    world.pass_time(RETRY_NS)
    assert sorted(found(user, "apple")) == ["/n/a", "/n/b"]
    assert user.call(c.Info()).notices == ()


def test_it_recovers_by_itself_without_any_search(world: World, user: Client) -> None:
    world.index.failure = MemError(Errno.EIO, "disk on fire")
    user.write("/n/a", b"apple")
    world.pass_time(START_NS)
    world.index.failure = None
    world.pass_time(RETRY_NS)
    world.pass_time(START_NS)
    assert len(world.index.documents) == 1


def test_the_log_is_kept_for_an_index_that_is_behind(make_world: MakeWorld) -> None:
    world = make_world(log_retain_events=5)
    user = world.client()
    user.make("/n")
    world.index.failure = MemError(Errno.EIO, "disk on fire")
    for number in range(30):
        user.write(f"/n/{number}", b"apple")
    assert world.kernel.parts.table.log.oldest_seq == 1
    world.index.failure = None
    world.pass_time(RETRY_NS)
    assert len(found(user, "apple", k=100)) == 30
    assert world.index.clears == 0
    for _ in range(30):
        user.write("/n/x", b"pear")
        found(user, "pear")
    assert world.kernel.parts.table.log.oldest_seq > 30


def test_a_damaged_event_or_cube_does_not_stop_it(world: World, user: Client) -> None:
    start = user.call(c.Watch()).next_seq
    damaged = user.write("/n/damaged", b"apple").id
    user.write("/n/passed-over", b"apple")
    user.write("/n/fine", b"apple")
    world.damage("payloads", damaged)
    world.damage("log", (start + 2).to_bytes(8, "big") * 2)
    assert found(user, "apple") == ["/n/fine"]
    info = user.call(c.Info())
    assert info.indexed_seq == info.log_seq
    assert user.call(c.Explain(name="/n/damaged")).decisions[-1].action == "not indexed"


def test_a_damaged_event_at_the_end_of_the_log_does_not_stop_it(world: World, user: Client) -> None:
    user.write("/n/a", b"apple")
    user.write("/n/b", b"apple")
    world.damage("log", world.kernel.parts.table.log.durable_seq.to_bytes(8, "big") * 2)
    assert found(user, "apple") == ["/n/a"]


def test_a_text_is_indexed_without_taking_ram_from_anybody(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=2 * LARGE)
    user = world.client()
    user.make("/n")
    user.write("/n/a", words("apple", LARGE - 100))
    user.call(c.Evict(name="/n/a"))
    world.fill_ram(user, 2 * LARGE)
    assert found(user, "apple") == ["/n/a"]
    assert user.stat("/n/a").tiers == ("disk",)
    assert user.stat("/n/a").behaviour.faults == 0


def test_a_text_unlinked_while_it_is_read_for_the_index_is_no_harm(
    world: World, user: Client
) -> None:
    user.write("/n/a", words("apple", LARGE))
    user.call(c.Evict(name="/n/a"))
    search = user.start(c.Search(query="apple"))
    world.index_io.finish_at(0) if world.index_io.jobs else None
    user.start(c.UnlinkCube(name="/n/a"))
    world.settle()
    assert search.result().hits == ()
    assert world.index.documents == {}


def test_the_index_is_closed_at_the_end(world: World, user: Client) -> None:
    user.write("/n/a", b"apple")
    assert world.stop().is_done
