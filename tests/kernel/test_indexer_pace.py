"""When the indexer sets to work while nobody searches."""

import pytest

from libmem.abi import calls as c
from tests.kernel.test_indexer import START_NS, found
from tests.kernel.world import Client, World

COMPANY_NS = 1_000_000_000


def test_a_text_without_a_searcher_is_indexed_in_its_time(world: World, user: Client) -> None:
    user.write("/n/a", b"apple")
    assert world.index.documents == {}
    world.pass_time(START_NS)  # it came while the namespace waited for company
    world.pass_time(START_NS)
    assert len(world.index.documents) == 1
    info = user.call(c.Info())
    assert info.indexed_seq == info.log_seq == world.index.stamp


def test_writes_that_keep_coming_are_indexed_together(world: World, user: Client) -> None:
    for number in range(COMPANY_NS // START_NS):
        assert world.index.documents == {}
        user.write(f"/n/{number}", b"apple")
        world.pass_time(START_NS)
    assert len(world.index.documents) > 1, "but not put off for ever"


def test_a_search_does_not_wait_for_more_writes(world: World, user: Client) -> None:
    for number in range(3):
        user.write(f"/n/{number}", b"apple")
        world.pass_time(START_NS // 2)
    assert world.index.documents == {}
    assert len(found(user, "apple")) == 3


def test_many_writes_are_not_put_off(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memosd.kernel.indexer._COMPANY_MAX", 10)
    for number in range(12):
        user.write(f"/n/{number}", b"apple")
    world.pass_time(START_NS)
    assert len(world.index.documents) == 12
