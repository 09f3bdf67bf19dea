"""Searches while the index is opening: after a boot, after damage, beside another table."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from tests.kernel.conftest import MakeWorld
from tests.kernel.test_indexer import RETRY_NS, found
from tests.kernel.world import Client, World


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_search_while_the_index_is_opening_waits_for_no_more_than_it_needs(
    world: World, user: Client, is_behind: bool
) -> None:
    user.write("/n/a", b"apple")
    assert found(user, "apple") == ["/n/a"]
    if is_behind:
        user.write("/n/b", b"apple apple")
    world.crash()
    user = world.client()
    search = user.start(c.Search(query="apple"))
    world.kernel.turn()
    assert world.index_io.names() == ["open"]
    world.index_io.finish("open")
    assert world.index_io.names() == (["apply"] if is_behind else ["plan"])
    while world.index_io.jobs:  # nothing but the index: no commit, no time
        world.index_io.finish_at(0)
    hits = [hit.name for hit in search.result().hits]
    assert hits == (["/n/b", "/n/a"] if is_behind else ["/n/a"])


@pytest.mark.parametrize("is_retained", [False, True], ids=["rebuilt", "followed again"])
def test_a_search_while_a_damaged_index_is_opened_again_is_no_half_answer(
    make_world: MakeWorld, is_retained: bool
) -> None:
    """Opening discards it; the search stands in the index's queue right behind that."""
    world = make_world(log_retain_events=1000 if is_retained else 1)
    user = world.client()
    user.make("/n")
    for name in "abc":
        user.write(f"/n/{name}", b"apple")
        assert found(user, "apple")
    world.index.failure = MemError(Errno.ECORRUPT, "malformed")
    first = user.start(c.Search(query="apple"))
    world.index_io.finish("plan")
    first.failure(Errno.EAGAIN)
    assert world.index_io.names() == ["open"]
    world.index.failure = None
    world.index.stamp = 0
    world.index.documents.clear()
    searches = []
    for _ in range(8):  # one before each step
        searches.append(user.start(c.Search(query="apple")))
        if world.index_io.jobs:
            world.index_io.finish_at(0)
    world.settle()
    for search in searches:
        assert search.errno() == Errno.EAGAIN or len(search.result().hits) == 3
    assert len(found(user, "apple")) == 3


def test_an_index_found_damaged_while_it_follows_is_opened_again(
    world: World, user: Client
) -> None:
    user.write("/n/a", b"apple")
    assert found(user, "apple") == ["/n/a"]
    early = user.start(c.Search(query="apple"))
    user.write("/n/b", b"apple")  # it rests now, before it follows
    world.index.failure = MemError(Errno.ECORRUPT, "malformed")
    search = user.start(c.Search(query="apple"))
    world.settle()
    assert {early.errno(), search.errno()} <= {0, Errno.EAGAIN}
    world.index.failure = None
    world.pass_time(RETRY_NS)
    assert sorted(found(user, "apple")) == ["/n/a", "/n/b"]


def test_an_index_that_closed_itself_is_opened_again(world: World, user: Client) -> None:
    """Keeping a vector may have done it: nothing that is written tells of it."""
    user.write("/n/a", b"apple")
    assert found(user, "apple") == ["/n/a"]
    world.index.failure = MemError(Errno.ESTALE, "not open")
    search = user.start(c.Search(query="apple"))
    world.index_io.finish("plan")
    search.failure(Errno.EAGAIN)
    assert world.index_io.names() == ["open"]
    world.index.failure = None
    assert found(user, "apple") == ["/n/a"]


def test_an_index_ahead_of_the_table_answers_nothing_before_it_is_rebuilt(
    world: World, user: Client
) -> None:
    user.write("/n/a", b"apple")
    assert found(user, "apple") == ["/n/a"]
    world.index.stamp = 1 << 60
    world.index.documents.clear()
    world.crash()
    early = world.root.start(c.Search(query="apple"))
    world.index_io.finish_at(0)  # it is open, and not yet cleared
    late = world.root.start(c.Search(query="apple"))
    world.settle()
    for search in (early, late):
        assert search.errno() == Errno.EAGAIN or len(search.result().hits) == 1


def test_an_empty_table_beside_an_index_of_another_is_searched(world: World) -> None:
    world.index.stamp = 7
    world.crash()
    search = world.root.start(c.Search(query="apple"))
    world.settle()
    assert search.result().hits == ()
    assert world.index.clears == 1
