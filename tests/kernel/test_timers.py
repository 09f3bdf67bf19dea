"""Timers: what is due runs in the order of its time, what is cancelled never."""

from hypothesis import given
from hypothesis import strategies as st

from memosd.kernel.timers import Timers
from tests.kernel.fakes import SECOND_NS, FakeClock


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=20), st.integers(0, 25))
def test_what_is_due_runs_in_order_of_its_time(
    plans: list[tuple[int, bool]], passes_ns: int
) -> None:
    clock = FakeClock()
    timers = Timers(clock)
    ran: list[int] = []
    for place, (delay_ns, is_cancelled) in enumerate(plans):
        timer = timers.after(delay_ns, lambda place=place: ran.append(place))  # type: ignore[misc]
        if is_cancelled:
            timer.cancel()
    clock.advance(passes_ns)
    timers.run_due()
    due = [place for place, (ns, gone) in enumerate(plans) if ns <= passes_ns and not gone]
    assert ran == sorted(due, key=lambda place: plans[place][0])


def test_the_next_deadline_is_known() -> None:
    clock = FakeClock()
    timers = Timers(clock)
    assert timers.next_delay_s() is None
    first = timers.after(2 * SECOND_NS, lambda: None)
    timers.after(5 * SECOND_NS, lambda: None)
    assert timers.next_delay_s() == 2.0
    first.cancel()
    assert timers.next_delay_s() == 5.0
    clock.advance(7 * SECOND_NS)
    assert timers.next_delay_s() == 0
    timers.run_due()
    assert timers.next_delay_s() is None


def test_a_period_comes_again_and_again() -> None:
    clock = FakeClock()
    timers = Timers(clock)
    ran: list[int] = []
    timers.every(SECOND_NS, lambda: ran.append(clock.monotonic_ns()))
    for _ in range(3):
        clock.advance(SECOND_NS)
        timers.run_due()
    assert len(ran) == 3
    clock.advance(10 * SECOND_NS)
    timers.run_due()
    assert len(ran) == 4, "what was missed is not made up for"


def test_cancelled_deadlines_do_not_pile_up() -> None:
    timers = Timers(FakeClock())
    for _ in range(5000):
        timers.after(SECOND_NS, lambda: None).cancel()
    kept = timers.after(SECOND_NS, lambda: None)
    assert len(timers._heap) < 1000
    assert timers.next_delay_s() == 1.0
    kept.cancel()
