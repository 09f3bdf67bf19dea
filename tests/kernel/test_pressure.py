"""Pressure: stall times add up exactly, and averages follow as Linux's do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.structs import CubeType, Durability
from memosd.kernel.pressure import Pressure
from memosd.kernel.timers import Timers
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import FakeClock
from tests.kernel.world import PAGED

SECOND_NS = 1_000_000_000
MS_NS = 1_000_000


class Bench:
    """Pressure over a clock of its own, timers run as time passes."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers = Timers(self.clock)
        self.pressure = Pressure(self.clock, self.timers)

    def pass_ms(self, by_ms: int) -> None:
        for _ in range(by_ms // 10):
            self.clock.advance(10 * MS_NS)
            self.timers.run_due()
        self.clock.advance(by_ms % 10 * MS_NS)
        self.timers.run_due()


def test_some_is_time_in_which_at_least_one_waits() -> None:
    bench = Bench()
    waiting = bench.pressure.waiting
    with waiting("ram"):
        bench.pass_ms(30)
        with waiting("ram"):
            bench.pass_ms(40)
        bench.pass_ms(5)
    bench.pass_ms(1000)
    some, full = bench.pressure.stat("ram")
    assert (some.total_us, full.total_us) == (75_000, 75_000)
    assert bench.pressure.stat("disk")[0].total_us == 0


def test_full_leaves_out_time_in_which_a_call_is_served() -> None:
    bench = Bench()
    pressure = bench.pressure
    with pressure.waiting("ram"), pressure.waiting("disk"):
        bench.pass_ms(10)
        pressure.begin_run()
        bench.pass_ms(20)
        pressure.end_run()
        bench.pass_ms(30)
    for tier in ("ram", "disk"):
        some, full = pressure.stat(tier)
        assert (some.total_us, full.total_us) == (60_000, 40_000)


def test_a_stall_under_way_counts_already() -> None:
    bench = Bench()
    with bench.pressure.waiting("disk"):
        bench.pass_ms(15)
        assert bench.pressure.stat("disk")[0].total_us == 15_000
        bench.pass_ms(15)
    assert bench.pressure.stat("disk")[0].total_us == 30_000


def test_averages_rise_and_decay_as_in_linux() -> None:
    bench = Bench()
    with bench.pressure.waiting("ram"):
        bench.pass_ms(10_000)
    some, _ = bench.pressure.stat("ram")
    for average, window_s in ((some.avg10, 10), (some.avg60, 60), (some.avg300, 300)):
        assert average == pytest.approx(100 * (1 - math.exp(-10 / window_s)), rel=0.01)
    bench.clock.advance(20 * SECOND_NS)  # nobody looked meanwhile: those periods were empty
    later, _ = bench.pressure.stat("ram")
    assert later.avg10 == pytest.approx(some.avg10 * math.exp(-20 / 10), rel=0.01)
    assert later.avg300 == pytest.approx(some.avg300 * math.exp(-20 / 300), rel=0.01)
    assert later.total_us == some.total_us == 10_000_000


def test_averages_follow_though_nobody_asks() -> None:
    """A long stall, not looked at, is not taken for one of the last two seconds."""
    bench = Bench()
    with bench.pressure.waiting("ram"):
        bench.pass_ms(60_000)
    assert bench.pressure.stat("ram")[0].avg60 == pytest.approx(100 * (1 - math.exp(-1)), rel=0.02)


def test_no_timer_is_left_when_all_is_calm() -> None:
    bench = Bench()
    with bench.pressure.waiting("ram"):
        bench.pass_ms(100)
    bench.pass_ms(10_000)
    assert bench.timers.next_delay_s() is None


def test_an_error_ends_the_wait() -> None:
    bench = Bench()
    with pytest.raises(OSError, match="no"), bench.pressure.waiting("ram"):
        raise OSError("no")
    bench.pass_ms(500)
    assert bench.pressure.stat("ram")[0].total_us == 0
    assert bench.pressure.stalled == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["ram", "disk", "run", "stat"]), st.integers(0, 5000)),
        max_size=40,
    )
)
def test_sums_are_those_of_a_plain_count(steps: list[tuple[str, int]]) -> None:
    """Each step begins or ends something, then time passes."""
    bench = Bench()
    on = {"ram": False, "disk": False, "run": False}
    expected = {("ram", 0): 0, ("ram", 1): 0, ("disk", 0): 0, ("disk", 1): 0}
    for what, ms in steps:
        if what == "stat":
            bench.pressure.stat("ram")
        elif what == "run":
            (bench.pressure.end_run if on["run"] else bench.pressure.begin_run)()
        elif on[what]:
            bench.pressure.waiting(what).__exit__(None, None, None)
        else:
            bench.pressure.waiting(what).__enter__()
        if what != "stat":
            on[what] = not on[what]
        bench.pass_ms(ms)
        for tier in ("ram", "disk"):
            expected[tier, 0] += 1000 * ms * on[tier]
            expected[tier, 1] += 1000 * ms * (on[tier] and not on["run"])
    for tier in ("ram", "disk"):
        stats = bench.pressure.stat(tier)
        assert tuple(stat.total_us for stat in stats) == (expected[tier, 0], expected[tier, 1])
        some, full = stats
        assert 0 <= full.avg10 <= some.avg10 + 0.01 <= 100.01


# -- in the kernel -------------------------------------------------------------------------------


def test_a_fault_stalls_on_disk_and_a_shortage_on_ram(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 * PAGED)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    totals = [stat.some.total_us for stat in user.call(c.Info()).tiers]
    fault = user.start(c.MmapCube(name="/n/a"))
    world.clock.advance(7 * MS_NS)
    world.settle()
    handle = fault.result().handle
    after = [stat.some.total_us for stat in user.call(c.Info()).tiers]
    assert after[0] == totals[0]
    assert after[1] - totals[1] >= 7000
    user.call(c.MunmapCube(handle=handle))
    world.gate.close(user.session.number, handle)
    for name in "bcd":
        user.blob(f"/n/{name}", bytes(PAGED), durability=Durability.CACHE)
    totals = [stat.some.total_us for stat in user.call(c.Info()).tiers]
    request = c.WriteCube(name="/n/e", payload=bytes(2 * PAGED), type=CubeType.BLOB)
    write = user.start(request)
    assert set(world.io.names()) == {"store"}, "a dirty victim is written back first"
    world.clock.advance(9 * MS_NS)
    world.settle()
    write.result()
    after = [stat.some.total_us for stat in user.call(c.Info()).tiers]
    assert after[0] - totals[0] >= 9000
    assert after[1] - totals[1] >= 9000
    assert world.kernel.parts.pressure.stalled == 0
