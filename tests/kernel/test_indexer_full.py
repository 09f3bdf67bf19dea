"""The indexer while the disk is full: what is indexed is found, and the reply tells of the rest."""

from libmem.abi import calls as c
from libmem.abi.structs import Descriptive
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import Client, World

RETRY_NS = SECOND_NS
BEHIND = (
    "behind: not all that was written is found: the index cannot follow: ENOSPC: no room; "
    "ranked by words alone: no embedder is configured"
)


def found(user: Client, query: str) -> list[str]:
    return [hit.name for hit in user.call(c.Search(query=query)).hits]


def test_a_full_disk_leaves_what_is_indexed_to_be_found(world: World, user: Client) -> None:
    user.write("/n/old", b"apple")
    assert found(user, "apple") == ["/n/old"]
    world.index.is_full = True
    user.write("/n/new", b"apple")
    openings = world.kernel.indexer.openings
    for _ in range(3):
        reply = user.call(c.Search(query="apple"))
        assert ([hit.name for hit in reply.hits], reply.notice) == (["/n/old"], BEHIND)
        world.pass_time(RETRY_NS)
    assert world.kernel.indexer.openings == openings, "it is not read anew every time"
    world.index.is_full = False
    world.pass_time(RETRY_NS)
    reply = user.call(c.Search(query="apple"))
    assert sorted(hit.name for hit in reply.hits) == ["/n/new", "/n/old"]
    assert "behind" not in reply.notice


def test_a_full_disk_shows_no_words_that_are_gone(world: World, user: Client) -> None:
    for name in ("/n/gone", "/n/kept", "/n/anew", "/n/changed"):
        user.write(name, b"apple")
    found(user, "apple")
    world.index.is_full = True
    user.call(c.UnlinkCube(name="/n/gone"))
    user.call(c.SetHeader(name="/n/kept", descriptive=Descriptive(title="the same apple")))
    user.write("/n/changed", b"pear")
    user.write("/n/anew", b"pear")
    user.call(c.UnlinkCube(name="/n/anew@v1"))
    assert found(user, "apple") == ["/n/kept"], "what a cube says now, and nothing else"


def test_an_index_made_anew_on_a_full_disk_finds_what_it_has_come_to(make_world: MakeWorld) -> None:
    world = make_world(log_retain_events=1)
    user = world.client()
    user.make("/n")
    user.write("/n/a", b"apple")
    user.write("/n/b", b"apple")
    found(user, "apple")
    world.index.stamp = 1 << 40  # of another table
    world.index.is_full = True
    world.crash()
    world.settle()
    user = world.root
    reply = user.call(c.Search(query="apple"))
    assert (reply.hits, reply.notice) == ((), BEHIND)
    world.index.is_full = False
    world.pass_time(RETRY_NS)
    world.pass_time(SECOND_NS)
    assert sorted(found(user, "apple")) == ["/n/a", "/n/b"]
