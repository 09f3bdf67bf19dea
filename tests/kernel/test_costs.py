"""Costs: measured where they happen, believed only of oneself, kept over a restart."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.costs import CostStat, PrefillSample
from libmem.abi.errors import Errno
from memosd.drivers.tiers.faulty import Operation
from memosd.kernel.costs import Costs, Transfer
from memosd.kernel.ledger import Ledger
from memosd.kernel.wait import detach
from tests.kernel.fakes import SECOND_NS, FakeClock, FakeIo
from tests.kernel.kv import MODEL, OTHER_MODEL
from tests.kernel.world import PAGED, Client, World, cache

LOAD = Transfer("disk", "load")
KEY = bytes.fromhex(MODEL)
SECOND = PrefillSample(tokens=1000, seconds=1.0)


@pytest.fixture
def costs(world: World) -> Costs:
    return world.kernel.parts.costs


def shown(client: Client) -> dict[str, CostStat]:
    return {stat.name: stat for stat in client.call(c.Info()).costs}


def report(client: Client, *samples: PrefillSample, model: str = MODEL) -> int:
    return client.call(c.ReportPrefill(model=model, samples=samples)).taken


def test_waiting_for_a_thread_is_no_part_of_a_load(world: World, costs: Costs) -> None:
    io, clock = FakeIo(), world.clock

    def load() -> None:
        clock.advance(2 * SECOND_NS)

    done = [detach(costs.timed(LOAD, PAGED, io, load)) for _ in range(2)]
    clock.advance(60 * SECOND_NS)  # in the queue
    for _ in range(2):
        io.finish("load")
    assert all(each.is_done for each in done)
    assert costs.transfer(LOAD, PAGED).seconds == pytest.approx(2.0, rel=0.01)
    assert costs.transfer(LOAD, PAGED).is_measured


def test_a_failed_load_tells_nothing(costs: Costs) -> None:
    io = FakeIo()

    def fail() -> None:
        raise OSError

    done = detach(costs.timed(LOAD, PAGED, io, fail))
    io.finish("fail")
    with pytest.raises(Exception, match="EIO"):
        done.result()
    assert costs.transfer(LOAD, PAGED) == costs.transfer(LOAD._replace(tier="ram"), PAGED)
    assert costs.queue_s == 0.0


def test_the_queue_is_what_the_threads_have_to_do(world: World) -> None:
    store = world.store
    costs = Costs(Ledger(store, FakeIo()), store, FakeClock(), io_threads=2)
    io = FakeIo()
    for _ in range(2):
        costs.observe(LOAD, PAGED, 3.0)

    def load() -> None:
        """Nothing: only how many wait matters."""

    detach(costs.timed(LOAD, PAGED, io, load))
    assert costs.queue_s == 0.0, "a thread is free"
    for _ in range(3):
        detach(costs.timed(LOAD, PAGED, io, load))
    assert costs.queue_s == pytest.approx(6.0, rel=0.01)
    while io.jobs:
        io.finish_at(0)
    assert costs.queue_s == 0.0


def test_loads_and_stores_are_timed_where_they_happen(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = world.plan.enter

    def slowly(operation: Operation) -> int:
        world.clock.advance({"store": 3 * SECOND_NS, "load": SECOND_NS}.get(operation, 0))
        return enter(operation)

    monkeypatch.setattr(world.plan, "enter", slowly)
    for name in ("/n/a", "/n/b"):
        cache(user, name)
        user.call(c.Evict(name=name))  # writes it back
        user.call(c.UnpinCube(handle=user.call(c.PinCube(name=name)).handle))
    costs = world.kernel.parts.costs
    assert costs.transfer(LOAD, PAGED).seconds == pytest.approx(1.0, rel=0.1)
    assert costs.transfer(Transfer("disk", "store"), PAGED).seconds == pytest.approx(3.0, rel=0.1)
    assert {"disk load", "disk store"} <= shown(user).keys()


def test_what_was_measured_outlives_a_crash(world: World, user: Client, costs: Costs) -> None:
    for _ in range(2):
        costs.observe(LOAD, PAGED, 3.0)
    assert report(user, SECOND, SECOND, SECOND) == 3
    before = shown(user)
    assert before["disk load"].is_measured
    assert before["prefill"].tokens_per_s == pytest.approx(1000, rel=0.1)
    world.pass_time(world.parameters.heat_flush_ns)
    world.crash()
    after = shown(world.client(user.identity.uid))
    assert after["prefill"] == before["prefill"]
    loads = [each["disk load"] for each in (before, after)]
    assert loads[0].samples == loads[1].samples == 2
    assert loads[0].measured_ns == loads[1].measured_ns
    assert loads[1].latency_s == pytest.approx(loads[0].latency_s, rel=0.2), "10 s nearer the guess"


@pytest.mark.parametrize("at", [-1, 0])
def test_a_damaged_row_is_measured_anew(world: World, costs: Costs, at: int) -> None:
    for _ in range(2):
        costs.observe(LOAD, PAGED, 3.0)
    world.pass_time(world.parameters.heat_flush_ns)
    world.damage("costs", b"disk/load/exact", at)
    world.crash()
    assert not world.kernel.parts.costs.transfer(LOAD, PAGED).is_measured
    fresh = Costs(Ledger(world.store, FakeIo()), world.store, FakeClock(), 4)
    assert fresh.transfer(LOAD, PAGED).seconds < 1.0


def test_a_liar_spoils_only_its_own_view(world: World, user: Client, costs: Costs) -> None:
    report(user, SECOND, SECOND)
    liar = world.client(uid=user.identity.uid + 1)
    report(liar, *[PrefillSample(tokens=1000, seconds=1e-6)] * 8)
    honest = costs.prefill(KEY, user.identity.uid, 1000)
    assert honest.seconds == pytest.approx(1.0, rel=0.1)
    assert costs.prefill(KEY, liar.identity.uid, 1000).seconds < 0.01
    # Who reported nothing is answered by the middle of the others.
    for number in range(2):
        report(world.client(uid=3000 + number), SECOND, SECOND)
    assert costs.prefill(KEY, 9999, 1000).seconds == pytest.approx(1.0, rel=0.1)
    assert costs.prefill(KEY, 9999, 1000)[1:] == (True, True), "measured, and borrowed"
    assert not costs.prefill(KEY, user.identity.uid, 1000).is_borrowed
    assert not costs.prefill(bytes.fromhex(OTHER_MODEL), 9999, 1000).is_measured


def test_of_prefills_users_see_their_own(world: World, user: Client) -> None:
    report(user, SECOND, SECOND)
    assert "prefill" in shown(user)
    assert "prefill" not in shown(world.client(uid=user.identity.uid + 1))
    assert shown(world.root)["prefill"].uid == user.identity.uid


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 0, "seconds": 1.0},
        {"tokens": -5, "seconds": 1.0},
        {"tokens": 1, "seconds": 61.0},
        {"tokens": 1 << 25, "seconds": 1.0},
        {"tokens": 10, "cached_tokens": -1, "seconds": 1.0},
        {"tokens": 10, "rows": 0, "seconds": 1.0},
        {"tokens": 10, "seconds": -1.0},
        {"tokens": 10, "seconds": float("nan")},
        {"tokens": 10, "seconds": float("inf")},
        {"map_s": float("inf")},
        {"map_s": 1e9},
        {"map_s": -1.0},
        {"tokens": 10, "seconds": 0.1, "map_s": 1e300},
        {"tokens": 10, "seconds": 0.1, "map_s": -5.0},
        {},
    ],
)
def test_what_cannot_be_true_is_passed_over(
    user: Client, costs: Costs, fields: dict[str, Any]
) -> None:
    assert report(user, PrefillSample(**fields), SECOND) == 1
    assert shown(user)["prefill"].samples == 1


@pytest.mark.parametrize("seconds", [5e-324, 1e-300, 1e-160, 1e-30])
def test_next_to_no_time_takes_nothing_from_anybody(
    world: World, user: Client, costs: Costs, seconds: float
) -> None:
    assert report(user, *[PrefillSample(tokens=10, seconds=seconds, map_s=seconds)] * 8) == 8
    assert {"prefill", "map"} <= set(shown(world.root)), "`info` answers"
    assert 0.0 < costs.prefill(KEY, 9999, 10).seconds < 1e-3
    assert 0.0 < costs.mapping(KEY, 9999).seconds < 1e-3


def test_reports_are_bounded(world: World, user: Client) -> None:
    user.fails(c.ReportPrefill(model=MODEL, samples=(SECOND,) * 65), Errno.EINVAL)
    user.fails(c.ReportPrefill(model="x", samples=(SECOND,)), Errno.EINVAL)
    taken = [report(user, *[SECOND] * 64) for _ in range(6)]
    assert taken == [64, 64, 64, 64, 0, 0]
    assert report(world.client(uid=5555), SECOND) == 1, "of each user"
    world.pass_time(SECOND_NS)
    assert report(user, *[SECOND] * 64) == 16


def test_a_user_has_room_for_so_many_models(world: World, user: Client, costs: Costs) -> None:
    other = world.client(uid=user.identity.uid + 1)
    report(other, SECOND, SECOND)
    for number in range(70):
        report(user, SECOND, SECOND, model=f"{number:064x}")
    known = vars(costs)["_prefills"]
    assert sum(key.uid == user.identity.uid for key in known) == 64
    assert costs.prefill(KEY, other.identity.uid, 1000).is_measured
    assert not costs.prefill(bytes(32), user.identity.uid, 1000).is_measured, "the oldest went"
    world.pass_time(world.parameters.heat_flush_ns)
    assert world.store.count("costs") == 65


def test_a_wait_is_no_prefill(user: Client, costs: Costs) -> None:
    """Mapping is learned apart from computing."""
    report(user, *[PrefillSample(tokens=1000, seconds=1.0, map_s=0.05)] * 3)
    assert costs.mapping(KEY, user.identity.uid).seconds == pytest.approx(0.05, rel=0.05)
    assert costs.prefill(KEY, user.identity.uid, 1000).seconds == pytest.approx(1.0, rel=0.05)
