"""What the indexer reads: past RAM, again where it may help, and never stuck on one cube."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Descriptive, Durability
from memosd.drivers.plaintext.top import PlaintextDriver
from tests.kernel.conftest import MakeWorld
from tests.kernel.test_indexer import LARGE, RETRY_NS, found, words
from tests.kernel.world import Client, World


def decision(user: Client, name: str) -> str:
    """What was last decided about a cube, and why."""
    last = user.call(c.Explain(name=name)).decisions[-1]
    return f"{last.action}: {last.reason}"


# -- past RAM ------------------------------------------------------------------------------------


def test_indexing_is_no_use_of_what_is_in_ram(world: World, user: Client) -> None:
    for name in ("/n/a", "/n/b", "/n/c"):
        user.write(name, words("apple", LARGE))
    residents = world.kernel.parts.residents
    before = list(residents.victims(residents.account.groups()))
    used_bytes = residents.account.used_bytes
    user.call(c.SetHeader(name="/n/a", descriptive=Descriptive(title="first")))
    assert len(before) == 3
    assert sorted(found(user, "apple")) == ["/n/a", "/n/b", "/n/c"]
    assert list(residents.victims(residents.account.groups())) == before
    assert residents.account.used_bytes == used_bytes


def test_a_text_in_ram_alone_is_indexed_where_it_lies(world: World, user: Client) -> None:
    user.write("/n/a", words("apple", LARGE), durability=Durability.CACHE)
    resident = world.resident("/n/a")
    assert resident is not None
    assert resident.is_dirty
    search = user.start(c.Search(query="apple"))
    world.kernel.turn()
    while "index_text" not in world.index_io.names():
        world.index_io.finish_at(0)
    assert resident.busy == 1, "it cannot be evicted meanwhile"
    world.settle()
    assert [hit.name for hit in search.result().hits] == ["/n/a"]
    assert resident.busy == 0
    assert world.plan.calls["read"] == 0


# -- what may pass is tried again ----------------------------------------------------------------


@pytest.mark.parametrize("errno", [Errno.EIO, Errno.EMFILE, Errno.ENOMEM])
def test_a_text_that_cannot_be_read_now_is_indexed_later(
    world: World, user: Client, errno: Errno
) -> None:
    user.write("/n/a", words("apple", LARGE))
    world.plan.fail("read", errno)
    user.fails(c.Search(query="apple"), Errno.EAGAIN)
    info = user.call(c.Info())
    assert info.indexed_seq < info.log_seq
    assert any(errno.name in notice for notice in info.notices)
    world.pass_time(RETRY_NS)
    assert found(user, "apple") == ["/n/a"]
    assert user.call(c.Info()).notices == ()


def test_a_rebuild_goes_on_where_a_text_could_not_be_read(make_world: MakeWorld) -> None:
    world = make_world(log_retain_events=1)
    user = world.client()
    user.make("/n")
    for number in range(3):
        user.write(f"/n/{number}", words("apple", LARGE))
        found(user, "apple")
    world.index.stamp = 0
    world.crash()
    world.plan.fail("read", Errno.EIO, nth=2)
    world.settle()
    world.pass_time(RETRY_NS)
    assert sorted(found(world.root, "apple")) == ["/n/0", "/n/1", "/n/2"]
    assert world.index.clears == 1


# -- what does not pass stops nobody -------------------------------------------------------------


@pytest.mark.parametrize("errno", [Errno.ECORRUPT, Errno.ENOENT])
def test_a_text_found_damaged_is_put_aside(world: World, user: Client, errno: Errno) -> None:
    user.write("/n/damaged", words("apple", LARGE))
    user.write("/n/fine", words("apple", LARGE))
    world.plan.fail("read", errno)
    assert found(user, "apple") == ["/n/fine"]
    assert decision(user, "/n/damaged").startswith("not indexed: ECORRUPT")
    assert user.stat("/n/damaged").is_quarantined


def test_a_text_unlinked_before_it_is_read_is_not_put_aside(world: World, user: Client) -> None:
    user.write("/n/a", words("apple", LARGE))
    search = user.start(c.Search(query="apple"))
    world.kernel.turn()
    while "read" not in world.io.names():
        world.index_io.finish_at(0)
    read = world.io.find("read")
    world.io.jobs.remove(read)
    user.start(c.UnlinkCube(name="/n/a"))
    world.settle()
    read.finish()
    world.settle()
    assert search.result().hits == ()
    assert not world.kernel.parts.table.quarantined


@pytest.mark.parametrize("error", [RecursionError("too deep"), ValueError("senseless")])
@pytest.mark.parametrize("size_bytes", [0, LARGE])
def test_a_text_that_breaks_its_driver_stops_nobody(
    user: Client,
    surprises: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    size_bytes: int,
) -> None:
    index_text = PlaintextDriver.index_text

    def breaks(
        driver: PlaintextDriver, payload: memoryview | bytes, descriptive: Descriptive
    ) -> str | None:
        if descriptive.title == "poison":
            raise error
        return index_text(driver, payload, descriptive)

    monkeypatch.setattr(PlaintextDriver, "index_text", breaks)
    poison = Descriptive(title="poison")
    user.write("/n/bad", words("apple", size_bytes), descriptive=poison)
    user.write("/n/good", words("apple", size_bytes))
    assert found(user, "apple") == ["/n/good"]
    assert decision(user, "/n/bad") == f"not indexed: {type(error).__name__}: {error}"
    assert user.call(c.Info()).notices == ()
    assert [entry["event"] for entry in surprises] == ["not indexed"]
    surprises.clear()


def test_json_too_deep_to_be_indexed_is_refused(user: Client) -> None:
    deep = b"[" * 987 + b"]" * 987
    json = Descriptive(media_type="application/json")
    user.fails(c.WriteCube(name="/n/deep", payload=deep, descriptive=json), Errno.EILSEQ)
    user.write("/n/deep", deep)
    user.fails(c.SetHeader(name="/n/deep", descriptive=json), Errno.EILSEQ)
