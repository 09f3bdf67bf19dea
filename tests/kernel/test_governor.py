"""The governor: the RAM budget falls in time, never takes what is held, and rises again."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.state import TierStat
from libmem.abi.structs import CubeType, Durability
from memosd.kernel.budget import Budget
from memosd.kernel.machine import Bound
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import FakeMachine
from tests.kernel.invariants import check_always, check_at_rest
from tests.kernel.world import PAGED, Client, World, cache, in_ram

SECOND_NS = 1_000_000_000
FRAME = PAGED
BUDGET = 32 * FRAME
RESERVE = 100 * FRAME
FLOOR = BUDGET // 16


@pytest.fixture
def machine() -> FakeMachine:
    """With 1,000 frames' worth available."""
    return FakeMachine(2000 * FRAME, 1000 * FRAME)


@pytest.fixture
def governed(make_world: MakeWorld, machine: FakeMachine) -> World:
    """RAM for 32 payloads, on a machine that may run short."""
    return make_world(
        ram_budget_bytes=BUDGET, ram_reserve_bytes=RESERVE, ram_low=1.0, machine=machine
    )


@pytest.fixture
def user(governed: World) -> Client:
    client = governed.client()
    client.make("/n")
    return client


def ram(client: Client) -> TierStat:
    return client.call(c.Info()).tiers[0]


def fill(client: Client, count: int, **fields: Any) -> None:
    for number in range(count):
        client.blob(f"/n/{number}", bytes(FRAME), **fields)


def budget_moves(client: Client) -> list[dict[str, float | str]]:
    """Newest first."""
    decisions = client.call(c.Log()).decisions
    return [each.numbers for name, each in decisions if name == "/" and each.action == "budget"]


def test_nothing_moves_while_there_is_room(governed: World, user: Client) -> None:
    fill(user, 30)
    governed.pass_time(20 * SECOND_NS)
    stat = ram(user)
    assert (stat.budget_bytes, stat.configured_bytes) == (BUDGET, BUDGET)
    assert stat.used_bytes == 30 * FRAME
    assert user.call(c.Info()).notices == ()
    assert budget_moves(user) == []


def test_what_is_missing_from_the_reserve_is_given_back(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    machine.available_bytes = RESERVE - 10 * FRAME
    governed.pass_time(SECOND_NS)
    stat = ram(user)
    assert stat.budget_bytes == stat.used_bytes == 20 * FRAME
    assert stat.configured_bytes == BUDGET
    info = user.call(c.Info())
    [notice] = info.notices
    assert "the RAM budget is 0.2 MiB instead of 0.2 MiB: the machine is short" in notice
    assert info.machine.available_bytes == RESERVE - 10 * FRAME
    assert (info.machine.reserve_bytes, info.machine.bound) == (RESERVE, "machine")
    assert budget_moves(user)[0]["budget_bytes"] == 20 * FRAME
    assert all(user.read(f"/n/{n}") == bytes(FRAME) for n in range(30)), "it is all on disk"


def test_a_lower_budget_refuses_what_is_above_it(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    machine.available_bytes = RESERVE + 10 * FRAME
    governed.pass_time(SECOND_NS)
    assert ram(user).budget_bytes == 10 * FRAME, "before anything has to go"
    fill(user, 20)
    assert ram(user).used_bytes <= 10 * FRAME
    request = c.CreateCube(name="/n/large", size_bytes=11 * FRAME)
    before = ram(user).used_bytes
    error = user.fails(request, Errno.ENOMEM)
    assert error.detail["need_bytes"] == 11 * FRAME
    assert ram(user).used_bytes == before, "what can never fit costs nobody a frame"


def test_the_budget_falls_with_what_is_used_and_admits_nothing_meanwhile(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    for number in range(30):
        cache(user, f"/n/{number}")
    account = governed.kernel.parts.residents.account
    machine.available_bytes = RESERVE - 10 * FRAME
    governed.clock.advance(SECOND_NS // 2)  # before the write-back that is due after a second
    governed.kernel.governor.look()
    assert account.budget.target_bytes == 20 * FRAME
    assert account.budget_bytes == account.used_bytes == 30 * FRAME
    write = user.start(c.CreateCube(name="/n/new", size_bytes=FRAME))
    assert not write.is_answered
    seen = [account.budget_bytes]
    while governed.io.jobs:
        governed.io.finish_at(0)
        governed.kernel.turn()
        assert account.used_bytes <= account.budget_bytes <= seen[-1]
        seen.append(account.budget_bytes)
    assert account.budget_bytes == 20 * FRAME
    assert len(set(seen)) > 2, "step by step"
    assert write.result().handle


def test_what_is_held_stays_and_something_is_left_to_work_with(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    for number in range(5):
        user.call(c.PinCube(name=f"/n/{number}"))
    machine.available_bytes = 0
    governed.pass_time(5 * SECOND_NS)
    stat = ram(user)
    assert stat.budget_bytes == 5 * FRAME + FLOOR
    assert stat.pinned_bytes == 5 * FRAME
    user.blob("/n/new", bytes(FRAME))
    assert ram(user).used_bytes <= stat.budget_bytes


def test_it_rises_slowly_and_after_a_while(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    machine.available_bytes = 0
    governed.pass_time(SECOND_NS)
    assert ram(user).budget_bytes == FLOOR
    machine.available_bytes = 1000 * FRAME
    governed.pass_time(3 * SECOND_NS)
    assert ram(user).budget_bytes == FLOOR, "it may be short again in a moment"
    seen = []
    for _ in range(30):
        governed.pass_time(SECOND_NS)
        seen.append(ram(user).budget_bytes)
    assert seen == sorted(seen)
    assert max(b - a for a, b in itertools.pairwise(seen)) == BUDGET // 16
    assert seen[-1] == BUDGET
    assert user.call(c.Info()).notices == ()
    assert budget_moves(user)[0]["budget_bytes"] == BUDGET


def test_it_rises_no_further_than_there_is_room(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    machine.available_bytes = 0
    governed.pass_time(SECOND_NS)
    machine.available_bytes = RESERVE + 20 * FRAME
    for _ in range(40):
        governed.pass_time(SECOND_NS)
    assert 18 * FRAME <= ram(user).budget_bytes <= 20 * FRAME


def test_a_wavering_machine_moves_nothing(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    machine.available_bytes = RESERVE + 20 * FRAME
    governed.pass_time(SECOND_NS)
    before = ram(user).budget_bytes
    for number in range(40):
        machine.available_bytes += 200 if number % 2 else -200
        governed.pass_time(SECOND_NS)
    assert ram(user).budget_bytes == before
    assert len(budget_moves(user)) == 1


def test_stalls_count_before_the_reserve_is_gone(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    machine.available_bytes = RESERVE + 90 * FRAME
    governed.pass_time(SECOND_NS)
    assert ram(user).budget_bytes == BUDGET
    machine.some_total_us += 400_000
    governed.pass_time(SECOND_NS)
    assert ram(user).used_bytes == ram(user).budget_bytes == 24 * FRAME
    assert "stalls" in user.call(c.Info()).notices[0]


def test_looks_in_quick_succession_count_a_stall_once(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    machine.available_bytes = RESERVE + 90 * FRAME
    governed.pass_time(SECOND_NS)
    machine.some_total_us += 200_000
    for _ in range(5):
        governed.clock.advance(SECOND_NS // 50)
        machine.on_pressure()
        governed.settle()
    assert ram(user).used_bytes == 27 * FRAME


def test_stalls_of_others_on_a_machine_with_room_do_not_count(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    for _ in range(5):
        machine.some_total_us += 900_000
        governed.pass_time(SECOND_NS)
    machine.some_total_us = 0  # a counter that began anew
    governed.pass_time(SECOND_NS)
    assert ram(user).used_bytes == 30 * FRAME


def test_a_cgroup_gets_back_no_more_than_is_charged_to_it(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    """Clients fill memory too, and are charged for it in cgroups of their own."""
    fill(user, 30)
    limit = 64 * FRAME
    machine.groups = (Bound("memory.high of a", limit, -50 * FRAME, 8 * FRAME),)
    for _ in range(5):
        machine.groups = (machine.groups[0]._replace(ours_bytes=8 * FRAME + ram(user).used_bytes
                                                     - 30 * FRAME),)  # fmt: skip
        governed.pass_time(SECOND_NS)
    assert ram(user).used_bytes == 22 * FRAME
    info = user.call(c.Info())
    assert info.machine.bound == "memory.high of a"
    assert "near its limit, memory.high of a" in info.notices[0]
    assert info.machine.reserve_bytes == limit // 16, "of its own size"


def test_the_trigger_makes_it_look_at_once(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    machine.available_bytes = RESERVE - 10 * FRAME
    machine.on_pressure()
    governed.settle()
    assert ram(user).used_bytes == 20 * FRAME


def test_a_machine_that_cannot_be_read_moves_nothing(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    fill(user, 30)
    machine.failure = MemError(Errno.EIO, "gone")
    governed.pass_time(3 * SECOND_NS)
    assert ram(user).budget_bytes == BUDGET
    notice = "the RAM budget does not follow the machine's memory: gone"
    assert user.call(c.Info()).notices == (notice,)
    machine.failure = None
    governed.pass_time(SECOND_NS)
    assert user.call(c.Info()).notices == ()


def test_no_reserve_no_governor(make_world: MakeWorld, machine: FakeMachine) -> None:
    machine.available_bytes = 0
    world = make_world(ram_budget_bytes=BUDGET, machine=machine)
    world.pass_time(5 * SECOND_NS)
    assert ram(world.client()).budget_bytes == BUDGET
    assert machine.reads == 0


def test_a_disk_that_fails_keeps_dirty_payloads_in_ram(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    for name in "abcdefgh":
        cache(user, f"/n/{name}")
    governed.plan.refuse("store", Errno.ENOSPC)
    machine.available_bytes = 0
    governed.pass_time(SECOND_NS)
    assert in_ram(user, "abcdefgh") == "abcdefgh", "background reclaim loses nothing"
    stat = ram(user)
    assert stat.budget_bytes == stat.used_bytes == 8 * FRAME
    assert any("still used" in notice for notice in user.call(c.Info()).notices)
    governed.plan.mend()
    for _ in range(2):
        governed.pass_time(SECOND_NS)
    assert ram(user).used_bytes <= FLOOR


def test_a_rename_while_it_falls_passes_no_budget(
    governed: World, user: Client, machine: FakeMachine
) -> None:
    user.make("/m")
    for number in range(10):
        cache(user, f"/n/{number}")
    account = governed.kernel.parts.residents.account
    machine.available_bytes = 0
    governed.clock.advance(SECOND_NS // 2)
    governed.kernel.governor.look()
    user.start(c.RenameCube(name="/n/9", new_name="/m/9"))
    check_always(governed.kernel)
    assert account.used_bytes == account.budget_bytes
    governed.settle()
    assert user.stat("/m/9").name == "/m/9"


@given(st.lists(st.tuples(st.booleans(), st.integers(-50, 150)), max_size=50))
def test_a_budget_is_never_below_what_is_used_nor_rises_by_itself(
    steps: list[tuple[bool, int]],
) -> None:
    budget, used = Budget(100), 0
    for is_aim, number in steps:
        before = budget.bytes
        if is_aim:
            budget.aim(number, used)
            assert 0 <= budget.target_bytes <= 100
        elif used + number <= budget.bytes and used + number >= 0:
            used += number
            if number < 0:
                budget.follow(used)
            assert budget.bytes <= before
        assert used <= budget.bytes <= 100
        assert budget.bytes in (budget.target_bytes, used)


MACHINES = st.tuples(
    st.integers(0, 400), st.integers(0, 2_000_000), st.integers(-60, 64), st.integers(0, 64)
)
STEPS = st.one_of(
    st.tuples(st.just("machine"), MACHINES),
    st.tuples(st.just("write"), st.integers(0, 19)),
    st.tuples(st.just("cache"), st.integers(0, 19)),
    st.tuples(st.just("pin"), st.integers(0, 19)),
    st.tuples(st.just("pass"), st.integers(1, 3000)),
    st.tuples(st.just("job"), st.integers(0, 4)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=40))
def test_whatever_the_machine_does_the_budget_holds(
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = FakeMachine(2000 * FRAME, 1000 * FRAME)
    folder = tmp_path_factory.getbasetemp()
    world = World(folder, ram_budget_bytes=16 * FRAME, ram_reserve_bytes=RESERVE, machine=machine)
    user = world.client()
    user.make("/n")
    for kind, number in steps:
        if kind == "machine":
            available, stalled, left, ours = number
            machine.available_bytes = available * FRAME
            machine.some_total_us += stalled
            machine.groups = (Bound("group", 64 * FRAME, left * FRAME, ours * FRAME),)
        elif kind == "write":
            user.start(c.CreateCube(name=f"/n/{number}", size_bytes=FRAME))
        elif kind == "cache":
            user.start(
                c.WriteCube(
                    name=f"/n/{number}",
                    payload=bytes(FRAME),
                    type=CubeType.BLOB,
                    durability=Durability.CACHE,
                )
            )
        elif kind == "pin":
            user.start(c.PinCube(name=f"/n/{number}"))
        elif kind == "pass":
            world.clock.advance(number * 1_000_000)
            world.kernel.turn()
        elif number < len(world.io.jobs):
            world.io.finish_at(number)
        check_always(world.kernel)
        budget = world.kernel.parts.residents.account.budget
        assert 16 * FRAME // 16 <= budget.target_bytes <= budget.configured_bytes
    machine.groups = ()
    machine.available_bytes = 1000 * FRAME
    for _ in range(40):
        world.pass_time(SECOND_NS)
    check_at_rest(world.kernel, world.ram, world.disk)
    assert world.kernel.parts.residents.account.budget_bytes == 16 * FRAME
    world.close()
