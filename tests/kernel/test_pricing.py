"""What costs decide: load or compute, what is worth storing, what it costs to be without."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.costs import PrefillSample
from libmem.abi.errors import Errno
from libmem.abi.kv import pack_tokens
from libmem.abi.structs import Advice, Durability, EventKind, Governance
from memosd.kernel import pricing
from memosd.kernel.costs import Transfer
from memosd.kernel.pagetable import Cube
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.kv import GRAIN, MODEL, OTHER_MODEL, part, write
from tests.kernel.world import KIB, Client, World

LOAD, STORE = Transfer("disk", "load"), Transfer("disk", "store")
LONG = list(range(1, 1 + 2 * GRAIN))
MIB = 1 << 20


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(disk_budget_bytes=64 << 20, ram_budget_bytes=4096 * KIB)


def disk_takes(world: World, seconds: float, transfer: Transfer = LOAD) -> None:
    """A load takes so long, whatever its size."""
    for _ in range(30):
        for size_bytes in (KIB, MIB):
            world.kernel.parts.costs.observe(transfer, size_bytes, seconds)


def computing_takes(client: Client, seconds_a_token: float) -> None:
    samples = [
        PrefillSample(tokens=tokens, seconds=tokens * seconds_a_token, map_s=1e-4)
        for tokens in (4, 8, 16) * 10
    ]
    assert client.call(c.ReportPrefill(MODEL, tuple(samples))).taken == len(samples)


def plan(client: Client, tokens: list[int], **fields: Any) -> c.PlanReply:
    return client.call(c.PlanPrefix(MODEL, pack_tokens(tokens), **fields))


def evict(client: Client, *names: str) -> None:
    for name in names:
        client.call(c.Evict(name=name))


def is_in_ram(client: Client, name: str) -> bool:
    return "ram" in client.stat(name).tiers


@pytest.fixture
def cube(user: Client) -> str:
    write(user, "/n/a", LONG)
    evict(user, "/n/a")
    return "/n/a@v1"


def test_without_a_measurement_everything_is_loaded(user: Client, cube: str) -> None:
    found = plan(user, [*LONG, 99])
    assert (found.name, found.tokens, found.cube_tokens) == (cube, len(LONG), len(LONG))
    assert (found.load_name, found.load_tokens) == (cube, len(LONG))
    assert not found.is_measured
    assert is_in_ram(user, "/n/a"), "its load began at once"


def test_what_nobody_stored_is_computed(user: Client, cube: str) -> None:
    found = plan(user, [7, 7])
    assert (found.name, found.tokens, found.load_name, found.load_tokens) == ("", 0, "", 0)
    assert found.compute_s == found.plan_s > 0


def test_from_a_slow_disk_it_is_computed(world: World, user: Client, cube: str) -> None:
    disk_takes(world, 5.0)
    computing_takes(user, 0.01)
    found = plan(user, [*LONG, 99])
    assert found.is_measured
    assert (found.tokens, found.load_name, found.load_tokens) == (len(LONG), "", 0)
    assert found.plan_s == found.compute_s == pytest.approx(0.09, rel=0.2)
    assert found.load_s == pytest.approx(5.0, rel=0.2)
    assert not is_in_ram(user, "/n/a")


def test_from_a_quick_disk_it_is_loaded(world: World, user: Client, cube: str) -> None:
    disk_takes(world, 0.001)
    computing_takes(user, 0.01)
    found = plan(user, [*LONG, 99], is_prefetched=False)
    assert (found.load_name, found.load_tokens) == (cube, len(LONG))
    assert found.plan_s == found.load_s < found.compute_s
    assert 0 < found.fault_s < found.plan_s
    assert not is_in_ram(user, "/n/a"), "as asked for"


def test_what_is_in_ram_is_mapped(world: World, user: Client, cube: str) -> None:
    disk_takes(world, 5.0)
    computing_takes(user, 0.01)
    user.call(c.PinCube(name="/n/a"))
    found = plan(user, [*LONG, 99])
    assert (found.load_name, found.load_tokens, found.fault_s) == (cube, len(LONG), 0.0)


def test_rows_make_computing_dearer(world: World, user: Client, cube: str) -> None:
    disk_takes(world, 0.3)
    computing_takes(user, 0.01)
    assert plan(user, [*LONG, 99], is_prefetched=False).load_tokens == 0
    assert plan(user, [*LONG, 99], is_prefetched=False, rows=8).load_tokens == len(LONG)


def test_a_long_queue_makes_loading_dearer(world: World, user: Client, cube: str) -> None:
    disk_takes(world, 0.02)
    computing_takes(user, 0.01)
    assert plan(user, [*LONG, 99], is_prefetched=False).load_tokens
    waiting = vars(world.kernel.parts.costs)["_waiting"]
    waiting += [1.0] * 8
    assert not plan(user, [*LONG, 99], is_prefetched=False).load_tokens
    waiting.clear()
    assert plan(user, [*LONG, 99], is_prefetched=False).load_tokens
    for _ in range(30):
        world.kernel.parts.costs.observe(LOAD, MIB, 0.04)
    world.kernel.parts.turns.waiting_bytes = 64 << 30
    assert not plan(user, [*LONG, 99], is_prefetched=False).load_tokens, "they have no turn yet"
    world.kernel.parts.turns.waiting_bytes = 0


def test_a_part_in_ram_is_mapped_and_the_rest_computed(world: World, user: Client) -> None:
    write(user, "/n/base", LONG)
    longer = [*LONG, *range(50, 50 + 3 * GRAIN)]
    part(user, "/n/child", longer, "/n/base")
    evict(user, "/n/child")
    disk_takes(world, 5.0)
    computing_takes(user, 0.01)
    found = plan(user, [*longer, 99])
    assert (found.name, found.tokens) == ("/n/child@v1", len(longer))
    assert (found.load_name, found.load_tokens) == ("/n/base@v1", len(LONG))
    assert found.fault_s == 0.0
    assert found.plan_s < min(found.load_s, found.compute_s)
    evict(user, "/n/base")
    assert plan(user, [*longer, 99]).load_name == ""


def test_a_base_that_the_caller_may_not_read_is_no_cut(world: World, user: Client) -> None:
    user.make("/open", mode=0o777)
    write(user, "/open/base", LONG, governance=Governance(mode=0o600))
    longer = [*LONG, *range(50, 50 + 3 * GRAIN)]
    part(user, "/open/child", longer, "/open/base", governance=Governance(mode=0o644))
    evict(user, "/open/child")
    other = world.client(uid=user.identity.uid + 1)
    disk_takes(world, 5.0)
    computing_takes(other, 0.01)
    found = plan(other, [*longer, 99])
    assert (found.name, found.load_name) == ("/open/child@v1", "")


def test_a_slow_disk_is_looked_at_again_where_nobody_waits(
    world: World, user: Client, cube: str
) -> None:
    disk_takes(world, 5.0)
    computing_takes(user, 0.01)
    world.pass_time(31 * SECOND_NS)
    assert plan(user, [*LONG, 99]).load_tokens == 0
    assert is_in_ram(user, "/n/a")
    evict(user, "/n/a")
    assert plan(user, [*LONG, 99]).load_tokens == 0
    assert not is_in_ram(user, "/n/a"), "not each time"


def test_what_plans_load_is_bounded_as_hints_are(make_world: MakeWorld) -> None:
    world = make_world(prefetches_per_session=2)
    user = world.client()
    user.make("/n")
    for first in range(1, 6):
        write(user, f"/n/{first}", [first, *LONG])
        evict(user, f"/n/{first}")
    plans = [user.start(c.PlanPrefix(MODEL, pack_tokens([first, *LONG]))) for first in range(1, 6)]
    assert all(each.result().load_tokens for each in plans)
    loads = [job for job in world.io.jobs if job.name == "load"]
    assert (len(loads), len(world.kernel.prefetch)) == (1, 2), "one at a time"
    mapped = user.start(c.MmapCube("/n/2"))
    assert len([job for job in world.io.jobs if job.name == "load"]) == 2, "and no fault waits"
    world.settle()
    assert mapped.errno() == 0
    assert [is_in_ram(user, f"/n/{first}") for first in range(1, 6)] == [True] * 2 + [False] * 3


def test_a_plan_loads_all_that_is_mapped(user: Client) -> None:
    write(user, "/n/base", LONG)
    longer = [*LONG, *range(50, 50 + 3 * GRAIN)]
    part(user, "/n/child", longer, "/n/base")
    evict(user, "/n/child", "/n/base")
    assert plan(user, [*longer, 99]).load_tokens == len(longer)
    assert is_in_ram(user, "/n/child")
    assert is_in_ram(user, "/n/base")


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "x"},
        {"tokens": b"123"},
        {"rows": 0},
        {"rows": 1 << 20},
        {"prompt_tokens": -1},
        {"prompt_tokens": 1 << 30},
    ],
)
def test_bad_questions(user: Client, fields: dict[str, Any]) -> None:
    request = {"model": MODEL, "tokens": b"", **fields}
    user.fails(c.PlanPrefix(**request), Errno.EINVAL)


def test_a_damaged_base_is_not_planned_with(world: World, user: Client, cube: str) -> None:
    key = world.kernel.parts.table.cube_row(user.stat("/n/a").id)
    assert key is not None
    world.kernel.parts.table.quarantine(key.current.payload_id, "by the test")
    assert plan(user, [*LONG, 99]).name == ""


# -- what is worth storing -------------------------------------------------------------------


def cached(user: Client, name: str, tokens: list[int], **options: Any) -> None:
    write(user, name, tokens, durability=Durability.CACHE, **options)


def test_what_is_computed_quicker_is_not_written_back(world: World, user: Client) -> None:
    disk_takes(world, 5.0)
    disk_takes(world, 5.0, STORE)
    computing_takes(user, 0.01)
    cached(user, "/n/a", LONG)
    world.pass_time(10 * world.parameters.writeback_delay_ns)
    assert user.stat("/n/a").tiers == ("ram",)
    user.call(c.Sync())
    assert user.stat("/n/a").tiers == ("ram", "disk"), "who asks for it gets it"


def test_what_others_say_of_computing_loses_nobody_anything(world: World, user: Client) -> None:
    disk_takes(world, 5.0)
    disk_takes(world, 5.0, STORE)
    liar = world.client(uid=user.identity.uid + 1)
    computing_takes(liar, 1e-6)
    cached(user, "/n/a", LONG)
    resident = world.resident("/n/a")
    assert resident is not None
    assert pricing.restore_s(world.kernel.parts, resident) > 1.0
    world.pass_time(10 * world.parameters.writeback_delay_ns)
    assert user.stat("/n/a").tiers == ("ram", "disk")
    evict(user, "/n/a")
    assert user.call(c.AdviseCube("/n/a", Advice.WILLNEED)).outcome is c.AdviceOutcome.QUEUED
    assert plan(user, [*LONG, 99], is_prefetched=False).is_measured, "an answer is as good as any"


def test_it_is_written_once_that_pays(world: World, user: Client) -> None:
    disk_takes(world, 5.0)
    disk_takes(world, 5.0, STORE)
    computing_takes(user, 0.01)
    cached(user, "/n/a", LONG)
    world.pass_time(10 * world.parameters.writeback_delay_ns)
    disk_takes(world, 0.001)
    disk_takes(world, 0.001, STORE)
    world.pass_time(60 * SECOND_NS)
    assert user.stat("/n/a").tiers == ("ram", "disk")


@pytest.mark.parametrize("of_model", [MODEL, OTHER_MODEL])
def test_what_nobody_measured_is_written_back(world: World, user: Client, of_model: str) -> None:
    disk_takes(world, 5.0)
    if of_model == OTHER_MODEL:  # of another model than the cube's
        disk_takes(world, 5.0, STORE)
        samples = (PrefillSample(tokens=8, seconds=0.01),) * 4
        user.call(c.ReportPrefill(of_model, samples))
    else:  # no store was measured
        computing_takes(user, 0.01)
    cached(user, "/n/a", LONG)
    world.pass_time(10 * world.parameters.writeback_delay_ns)
    assert user.stat("/n/a").tiers == ("ram", "disk")


def test_what_others_stand_on_is_written_back(world: World, user: Client) -> None:
    disk_takes(world, 5.0)
    disk_takes(world, 5.0, STORE)
    computing_takes(user, 0.01)
    cached(user, "/n/base", LONG)
    longer = [*LONG, *range(50, 50 + 3 * GRAIN)]
    part(user, "/n/child", longer, "/n/base", durability=Durability.CACHE)
    world.pass_time(10 * world.parameters.writeback_delay_ns)
    assert user.stat("/n/base").tiers == ("ram", "disk")
    assert user.stat("/n/child").tiers == ("ram",)


def test_under_pressure_it_is_lost_with_the_reason(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=128 * KIB)
    user = world.client()
    user.make("/n")
    disk_takes(world, 5.0)
    disk_takes(world, 5.0, STORE)
    computing_takes(user, 0.01)
    start = user.call(c.Watch()).next_seq
    cached(user, "/n/a", LONG)
    size_bytes = world.kernel.parts.residents.account.used_bytes
    world.fill_ram(user, 128 * KIB - size_bytes)
    user.blob("/n/b", bytes(8 * KIB))
    user.call(c.PinCube(name="/n/b"))
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    events = user.call(c.Watch(since_seq=start)).events
    assert EventKind.LOSE in {event.kind for event in events if event.name == "/n/a"}
    reasons = [decision.reason for _, decision in world.kernel.parts.heat.recent]
    assert any("computed again in less time" in reason for reason in reasons)


# -- what it costs to be without -------------------------------------------------------------


def test_residents_have_a_price_that_follows(world: World, user: Client, cube: str) -> None:
    user.call(c.PinCube(name="/n/a"))
    resident = world.resident("/n/a")
    assert resident is not None
    guess = resident.restore_s
    assert guess > 0
    assert resident.entry().restore_s == guess
    disk_takes(world, 5.0)
    world.settle()
    assert resident.restore_s == pytest.approx(5.0, rel=0.6)
    computing_takes(user, 0.01)
    world.settle()
    assert resident.restore_s == pytest.approx(0.08, rel=0.6), "the quicker way"


def test_prices_are_made_in_stretches(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing, "_STRETCH", 2)
    for number in range(7):
        write(user, f"/n/{number}", [number, *LONG])
    disk_takes(world, 5.0)
    prices = [resident.restore_s for resident in world.kernel.parts.residents]
    assert sum(price > 1 for price in prices) == 2
    user.unlink("/n/3")
    world.settle()
    assert all(resident.restore_s > 1 for resident in world.kernel.parts.residents)


def test_a_prefetch_is_worth_it_in_time(world: World, user: Client, cube: str) -> None:
    parts = world.kernel.parts
    cube_id = parts.table.find_id("/n/a")
    assert cube_id is not None
    row = parts.table.cube_row(cube_id)
    assert row is not None
    found = Cube(cube_id, row, row.current)
    assert pricing.worth_prefetch(parts, found, within_s=0.0), "nothing was measured"
    disk_takes(world, 5.0)
    assert pricing.worth_prefetch(parts, found)
    assert not pricing.worth_prefetch(parts, found, within_s=1.0)
    assert pricing.worth_prefetch(parts, found, within_s=9.0)
    computing_takes(user, 0.01)
    assert not pricing.worth_prefetch(parts, found, within_s=9.0)


def test_a_hint_is_refused_where_computing_is_quicker(
    world: World, user: Client, cube: str
) -> None:
    disk_takes(world, 5.0)
    computing_takes(user, 0.01)
    reply = user.call(c.AdviseCube("/n/a", Advice.WILLNEED))
    assert reply.outcome is c.AdviceOutcome.REFUSED
    assert "computed" in reply.reason
    assert not is_in_ram(user, "/n/a")
    disk_takes(world, 0.001)
    assert user.call(c.AdviseCube("/n/a", Advice.WILLNEED)).outcome is c.AdviceOutcome.QUEUED
    assert is_in_ram(user, "/n/a")
