"""The log: rows of many events are read, passed over and forgotten as events are."""

import pytest

from libmem.abi import calls as c
from memosd.kernel.log import Log
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import Client, World, batch_of

ROW_MAX_EVENTS = 16


@pytest.fixture
def log(world: World) -> Log:
    """Of the kernel under test."""
    return world.kernel.parts.table.log


def write_all(user: Client, first: int, count: int) -> None:
    """So many writes, all in one commit."""
    writes = [c.WriteCube(name=f"/n/{first + n}", payload=b"x") for n in range(count)]
    user.call(batch_of(*writes))


def names_after(log: Log, seq: int) -> list[tuple[int, str]]:
    """What the log tells from there on."""
    return [(number, event.name) for number, event in log.events_after(seq)]


def rows(world: World) -> list[bytes]:
    """The keys of all rows."""
    return [key for key, _ in world.store.scan("log", b"")]


def test_a_commit_with_many_events_takes_few_rows(world: World, user: Client, log: Log) -> None:
    start, before = log.durable_seq, len(rows(world))
    write_all(user, 0, 40)
    assert len(rows(world)) == before + 3
    told = [(start + 1 + n, f"/n/{n}") for n in range(40)]
    for skipped in range(41):
        assert names_after(log, start + skipped) == told[skipped:]
    assert log.durable_seq == start + 40


def test_the_numbers_go_on_after_a_restart(world: World, user: Client, log: Log) -> None:
    write_all(user, 0, 40)
    last = log.durable_seq
    world.crash()
    young = world.kernel.parts.table.log
    assert (young.oldest_seq, young.durable_seq) == (1, last)
    world.client().write("/n/next", b"x")
    assert names_after(young, last) == [(last + 1, "/n/next")]


def test_a_damaged_row_takes_its_own_events_along_and_no_others(
    world: World, user: Client, log: Log
) -> None:
    start = log.durable_seq
    write_all(user, 0, 40)
    world.damage("log", rows(world)[-2])
    left = [*range(ROW_MAX_EVENTS), *range(2 * ROW_MAX_EVENTS, 40)]
    assert names_after(log, start) == [(start + 1 + n, f"/n/{n}") for n in left]


def test_rows_of_many_events_are_forgotten_by_commits_of_few(make_world: MakeWorld) -> None:
    world = make_world(log_retain_events=20)
    user = world.client()
    user.make("/n")
    log = world.kernel.parts.table.log
    write_all(user, 0, 100)
    user.call(c.Search(query="x"))  # the index follows: the log may go
    for number in range(100):
        user.write("/n/a", b"%d" % number)
        user.call(c.Search(query="x"))
    held = log.durable_seq - log.oldest_seq + 1
    assert 20 <= held <= 20 + ROW_MAX_EVENTS
    assert [number for number, _ in log.events_after(0)] == [
        *range(log.oldest_seq, log.durable_seq + 1)
    ]
