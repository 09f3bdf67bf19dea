"""The working set: thrashing is seen, answered by refusing frames, and ends; healthy loads are left
alone."""

import random
from collections.abc import Iterable

import pytest

from libmem.abi import calls as c
from libmem.abi.structs import Advice
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import PAGED, Client, World

FRAMES = 10


def thrash_world(make_world: MakeWorld) -> tuple[World, Client]:
    """RAM for ten payloads, forty on disk, none of them in RAM."""
    world = make_world(ram_budget_bytes=FRAMES * PAGED)
    user = world.client()
    user.make("/n")
    for number in range(40):
        user.blob(f"/n/{number}", bytes([number]) * PAGED)
        user.call(c.Evict(name=f"/n/{number}"))
    world.kernel.reclaim.working_set._shadows.clear()
    return world, user


def hits_of(world: World, user: Client, numbers: Iterable[int], how: str = "read") -> float:
    """The share of uses that found their payload in RAM; each gives the right bytes."""
    found = total = 0
    for number in numbers:
        total += 1
        found += world.resident(f"/n/{number}") is not None
        use = user.read if how == "read" else user.mapped
        assert use(f"/n/{number}") == bytes([number]) * PAGED
    return found / total


def loop(rounds: int, length: int = 2 * FRAMES) -> list[int]:
    """A scan over and over, longer than RAM."""
    return [*range(length)] * rounds


@pytest.mark.parametrize("how", ["read", "map"])
def test_a_loop_twice_as_long_as_ram_keeps_what_it_has(make_world: MakeWorld, how: str) -> None:
    world, user = thrash_world(make_world)
    hits_of(world, user, loop(3), how)
    before = world.kernel.parts.heat.evictions
    share = hits_of(world, user, loop(5), how)
    assert share > 0.35, "half of it fits"
    if how == "read":
        assert world.kernel.parts.heat.evictions - before <= 5, "and nothing is driven out for it"
    assert any("thrashes" in notice for notice in user.call(c.Info()).notices)
    actions = {made.action for _, made in world.kernel.parts.heat.recent}
    assert {"read": "refuse", "map": "cool"}[how] in actions


def test_without_refusal_such_a_loop_finds_nothing(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refusal is worth, in the same workload."""
    world, user = thrash_world(make_world)
    monkeypatch.setattr(world.kernel.reclaim.working_set, "is_worse", lambda *_: False)
    assert hits_of(world, user, loop(8)) == 0


def test_prefetching_what_was_just_evicted_is_refused_with_a_reason(
    make_world: MakeWorld,
) -> None:
    world, user = thrash_world(make_world)
    hits_of(world, user, loop(6))
    absent = next(n for n in range(20) if world.resident(f"/n/{n}") is None)
    user.call(c.AdviseCube(name=f"/n/{absent}", advice=Advice.WILLNEED))
    assert world.resident(f"/n/{absent}") is None
    last = user.call(c.Explain(name=f"/n/{absent}")).decisions[-1]
    assert last.action == "prefetch refused"


def test_uses_without_a_frame_are_recorded_too(make_world: MakeWorld) -> None:
    world, user = thrash_world(make_world)
    hits_of(world, user, loop(6))
    refusals = world.kernel.reclaim.working_set.refusals
    world.root.call(c.SetTrace(c.TraceAction.START, name="t"))
    hits_of(world, user, loop(1))
    assert world.kernel.reclaim.working_set.refusals > refusals
    assert world.root.call(c.SetTrace(c.TraceAction.STOP)).accesses == 2 * FRAMES


def test_a_use_without_a_frame_is_a_fault_that_waits_its_turn(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, user = thrash_world(make_world)
    monkeypatch.setattr(world.kernel.pager, "is_refused", lambda *_: True)
    faults, turns = world.kernel.parts.heat.faults, world.kernel.parts.turns
    for _ in range(world.parameters.io_threads):
        turns.enter(world.kernel.parts.namespaces.control.root, PAGED)
    reads = [user.start(c.ReadCube("/n/7")) for _ in range(3)]
    world.kernel.turn()
    assert turns.waiting_bytes == PAGED, "one read for all of them"
    assert not [job for job in world.io.jobs if job.name == "read"]
    turns.leave()
    stalled = world.kernel.parts.pressure.waiting("disk").some
    before_ns = stalled.total_ns
    world.clock.advance(1_000_000)
    world.settle()
    assert stalled.total_ns - before_ns == 1_000_000
    assert world.kernel.parts.heat.faults == faults + 1
    assert {read.result().payload for read in reads} == {bytes([7]) * PAGED}


def test_who_turns_to_fewer_payloads_has_them_in_ram_soon(make_world: MakeWorld) -> None:
    world, user = thrash_world(make_world)
    hits_of(world, user, loop(6))
    working = [n for n in range(20) if world.resident(f"/n/{n}") is None][:5]
    hits_of(world, user, working * 10)
    assert hits_of(world, user, working * 2) == 1
    hits_of(world, user, working * 60)
    assert not world.kernel.reclaim.working_set.is_thrashing
    assert not any("thrashes" in notice for notice in user.call(c.Info()).notices)


def test_what_was_never_there_is_always_admitted(make_world: MakeWorld) -> None:
    world, user = thrash_world(make_world)
    hits_of(world, user, loop(6))
    user.read("/n/33")
    assert world.resident("/n/33") is not None


@pytest.mark.parametrize("load", ["fits", "skewed", "scan"])
def test_a_healthy_load_is_left_alone(make_world: MakeWorld, load: str) -> None:
    world, user = thrash_world(make_world)
    rng = random.Random(7)
    uses = {
        "fits": [rng.randrange(FRAMES) for _ in range(300)],
        "skewed": [min(39, int(rng.expovariate(1 / 4))) for _ in range(300)],
        "scan": [n for base in range(0, 40, 5) for n in [*range(base, base + 5)] * 8],
    }[load]
    hits_of(world, user, uses)
    assert world.kernel.reclaim.working_set.refusals == 0


def test_shadows_are_bounded(make_world: MakeWorld) -> None:
    world, user = thrash_world(make_world)
    rng = random.Random(1)
    hits_of(world, user, [rng.randrange(40) for _ in range(400)])
    working_set = world.kernel.reclaim.working_set
    assert len(working_set._shadows) <= 2 * FRAMES + 1
    for number in range(40):
        user.unlink(f"/n/{number}")
    assert all(world.resident(f"/n/{n}") is None for n in range(40))
