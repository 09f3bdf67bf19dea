"""Recorded accesses: every one in its order, bounded, and the administrator's."""

import json
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import PAGED, Client, World, cache

START, STOP, STATUS = c.TraceAction.START, c.TraceAction.STOP, c.TraceAction.STATUS


def start(world: World, **fields: Any) -> c.TraceStat:
    """Begin to record."""
    return world.root.call(c.SetTrace(START, **fields))


def lines(world: World, name: str = "t") -> list[Any]:
    """What is in the file."""
    return [json.loads(line) for line in world.traces.files[name].lines.splitlines()]


def test_every_access_is_a_line(world: World, user: Client) -> None:
    user.blob("/n/before", bytes(PAGED))
    begun = start(world, name="t")
    assert begun.is_recording
    assert begun.path == "/fake/t"
    user.blob("/n/a", bytes(PAGED))
    world.clock.advance(SECOND_NS)
    user.read("/n/a")
    user.call(c.Evict("/n/a"))
    user.mapped("/n/a")
    user.mapped("/n/before")
    user.unlink("/n/a")
    ended = world.root.call(c.SetTrace(STOP))
    found = lines(world)
    assert [each["op"] for each in found] == ["insert", "use", "use", "use", "remove"]
    assert (ended.is_recording, ended.accesses, ended.dropped) == (False, 5, 0)
    assert ended.size_bytes == len(world.traces.files["t"].lines)
    first, second, *_ = found
    assert found[0] == {
        "t": first["t"], "op": "insert", "key": first["key"], "size": PAGED, "parent": "",
        "group": first["group"], "priority": 50, "cost": pytest.approx(1e-3, rel=0.1),
    }  # fmt: skip
    assert len({each["key"] for each in found}) == 2
    assert second["t"] - first["t"] >= 1.0
    assert world.traces.files["t"].is_closed


def test_nothing_is_recorded_before_and_after(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    start(world, name="t")
    world.root.call(c.SetTrace(STOP))
    user.read("/n/a")
    assert world.kernel.pager.on_access is None
    assert lines(world) == []
    assert not world.root.call(c.SetTrace(STOP)).is_recording, "again is as good"


def test_lines_reach_the_file_within_a_second(world: World, user: Client) -> None:
    start(world, name="t")
    cache(user, "/n/a")
    world.pass_time(SECOND_NS)
    assert len(lines(world)) == 1
    assert world.root.call(c.SetTrace(STATUS)).accesses == 1


def test_hints_and_reclaim_are_no_accesses(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    start(world, name="t")
    user.call(c.Evict("/n/a"))
    user.call(c.AdviseCube("/n/a", "willneed", wait=True))  # type: ignore[arg-type]
    world.root.call(c.SetTrace(STOP))
    assert lines(world) == []


def test_a_full_disk_ends_it_with_a_notice(world: World, user: Client) -> None:
    start(world, name="t")
    user.blob("/n/a", bytes(PAGED))
    world.pass_time(SECOND_NS)
    world.traces.files["t"].failure = MemError(Errno.ENOSPC, "no space left")
    user.read("/n/a")
    world.pass_time(SECOND_NS)
    stat = world.root.call(c.SetTrace(STATUS))
    assert not stat.is_recording
    assert "no space left" in stat.problem
    assert (stat.accesses, stat.size_bytes) == (1, len(world.traces.files["t"].lines))
    assert stat.problem in user.call(c.Info()).notices
    assert world.traces.files["t"].is_closed
    assert user.read("/n/a") == bytes(PAGED), "nobody else is harmed"
    world.root.call(c.SetTrace(STOP))
    assert user.call(c.Info()).notices == (), "whoever stops it has read it"
    assert start(world, name="u").is_recording


def test_it_ends_at_its_largest_size(world: World, user: Client) -> None:
    start(world, name="t", max_bytes=4096)
    user.blob("/n/a", bytes(PAGED))
    for _ in range(100):
        user.read("/n/a")
    world.settle()
    stat = world.root.call(c.SetTrace(STATUS))
    assert (stat.is_recording, stat.size_bytes <= 4096) == (False, True)
    assert len(world.traces.files["t"].lines) == stat.size_bytes > 4096 - 200
    assert "largest size" in stat.problem


def test_what_the_disk_does_not_take_is_counted(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memosd.kernel.trace._WAITING_MAX_BYTES", 1000)
    start(world, name="t")
    user.blob("/n/a", bytes(PAGED))
    for _ in range(100):
        user.start(c.PinCube("/n/a"))
    assert world.root.start(c.SetTrace(STATUS)).result().dropped > 50
    stat = world.root.call(c.SetTrace(STOP))
    assert stat.accesses + stat.dropped == 101
    assert len(lines(world)) == stat.accesses


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "-x", "a\n", "x" * 101, "ä"])
def test_a_name_is_a_word(world: World, name: str) -> None:
    world.root.fails(c.SetTrace(START, name=name), Errno.EINVAL)


@pytest.mark.parametrize("max_bytes", [0, -1, 4095, (1 << 40) + 1])
def test_a_size_makes_sense(world: World, max_bytes: int) -> None:
    world.root.fails(c.SetTrace(START, max_bytes=max_bytes), Errno.EINVAL)


def test_one_at_a_time_and_no_file_twice(world: World) -> None:
    first = world.root.start(c.SetTrace(START, name="t"))
    second = world.root.start(c.SetTrace(START, name="u"))
    world.settle()
    assert (first.errno(), second.errno()) == (0, Errno.EBUSY)
    world.root.fails(c.SetTrace(START, name="u"), Errno.EBUSY)
    world.root.call(c.SetTrace(STOP))
    world.root.fails(c.SetTrace(START, name="t"), Errno.EEXIST)
    assert start(world).is_recording, "and a name of its own where none is given"


def test_it_is_the_administrators(world: World, user: Client) -> None:
    for action in c.TraceAction:
        user.fails(c.SetTrace(action), Errno.EPERM)
    start(world, name="of-roots-own")
    decisions = user.call(c.Log()).decisions
    assert [decision.reason for _, decision in decisions] == ["accesses are recorded"]
    assert "of-roots-own" not in repr((decisions, user.call(c.Info())))


def test_the_end_of_the_daemon_closes_it(world: World, user: Client) -> None:
    start(world, name="t")
    user.blob("/n/a", bytes(PAGED))
    world.stop()
    assert len(lines(world)) == 1
    assert world.traces.files["t"].is_closed
