"""Pressure: the share of time in which calls stall for want of a tier, as Linux's PSI counts it.

`some` of a tier: at least one call waits for its memory (reclaim, in RAM) or its I/O (page files
read or written while a call waits for them). `full`: so it is, and the kernel thread serves no call
either: a call on that thread is what a running task is to Linux. Time is added up exactly, at each
change; averages over 10, 60 and 300 s follow every two seconds. Commits of the table are no stall:
they are what a durable write is made of. Kernel thread only.

Source: psi.c of Linux (update_averages, calc_avgs); docs/design/0008-scheduler.md, 5.
"""

import math
from types import TracebackType
from typing import Final

from libmem.abi.state import StallStat
from memosd.kernel.ports import Clock
from memosd.kernel.timers import Timers

__all__ = ["Pressure", "Share", "Stall"]

_PERIOD_NS: Final = 2_000_000_000
"""As in psi.c (PSI_FREQ)."""
_WINDOWS_S: Final = (10, 60, 300)
_DECAYS: Final = tuple(math.exp(-_PERIOD_NS / 1e9 / window_s) for window_s in _WINDOWS_S)


class Share:
    """How much of the time something was so: in all, and as averages that decay."""

    __slots__ = ("_averages", "_sampled_ns", "_since_ns", "total_ns")

    def __init__(self) -> None:
        self.total_ns = 0
        self._since_ns: int | None = None
        """Since when it is so; None while it is not."""
        self._sampled_ns = 0
        """Of the total, what the averages know."""
        self._averages = [0.0, 0.0, 0.0]

    def set(self, is_so: bool, now_ns: int) -> None:
        """Whether it is so from now on."""
        self.settle(now_ns)
        self._since_ns = now_ns if is_so else None

    def settle(self, now_ns: int) -> None:
        """Bring the total up to now."""
        if self._since_ns is not None:
            self.total_ns += now_ns - self._since_ns
            self._since_ns = now_ns

    def sample(self, period_ns: int, missed: int) -> bool:
        """A period has ended, after so many in which nothing was; was there anything in it?"""
        sample_ns = self.total_ns - self._sampled_ns
        self._sampled_ns = self.total_ns
        percent = 100.0 * min(sample_ns, period_ns) / period_ns
        for place, decay in enumerate(_DECAYS):
            average = self._averages[place] * decay**missed
            self._averages[place] = average * decay + percent * (1.0 - decay)
        return sample_ns > 0

    def stat(self) -> StallStat:
        avg10, avg60, avg300 = (round(average, 2) for average in self._averages)
        return StallStat(avg10, avg60, avg300, self.total_ns // 1000)


class Stall:
    """One tier's stalls. A context: whoever is in it waits for that tier."""

    def __init__(self, pressure: "Pressure") -> None:
        self._pressure = pressure
        self.some = Share()
        self.full = Share()
        self.waiting = 0

    def __enter__(self) -> None:
        self.waiting += 1
        if self.waiting == 1:
            self._pressure.changed(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.waiting -= 1
        if self.waiting == 0:
            self._pressure.changed(self)


class Pressure:
    """All tiers'."""

    def __init__(self, clock: Clock, timers: Timers) -> None:
        self._clock = clock
        self._timers = timers
        self._tiers: dict[str, Stall] = {}
        self.stalled = 0
        """Tiers that any call waits for just now."""
        self._running = 0
        self._sampled_at_ns = clock.monotonic_ns()
        self._is_sampling = False

    def waiting(self, tier: str) -> Stall:
        """`with pressure.waiting("ram"):` around what a call waits in; may nest."""
        stall = self._tiers.get(tier)
        if stall is None:
            stall = self._tiers[tier] = Stall(self)
        return stall

    def begin_run(self) -> None:
        """The kernel thread serves a call, until `end_run`."""
        self._running += 1
        self._update()

    def end_run(self) -> None:
        self._running -= 1
        self._update()

    def _update(self) -> None:
        now_ns = self._clock.monotonic_ns()
        for stall in self._tiers.values():
            stall.full.set(stall.waiting > 0 and not self._running, now_ns)

    def changed(self, stall: Stall) -> None:
        """The first one waits for a tier, or the last one no more."""
        now_ns = self._clock.monotonic_ns()
        self._catch_up(now_ns)
        is_waiting = stall.waiting > 0
        self.stalled += 1 if is_waiting else -1
        stall.some.set(is_waiting, now_ns)
        stall.full.set(is_waiting and not self._running, now_ns)
        if not self._is_sampling:
            self._is_sampling = True
            self._timers.after(_PERIOD_NS, self._sample)

    def _sample(self) -> None:
        """Each period, for as long as there is anything to average."""
        if self._catch_up(self._clock.monotonic_ns()) or self.stalled:
            self._timers.after(_PERIOD_NS, self._sample)
        else:
            self._is_sampling = False

    def _catch_up(self, now_ns: int) -> bool:
        """Average what periods have passed; was there anything in them?"""
        passed_ns = now_ns - self._sampled_at_ns
        if passed_ns < _PERIOD_NS:
            return True
        self._sampled_at_ns = now_ns
        # As psi.c: what was seen is taken to be of the last period, those before were empty.
        missed = passed_ns // _PERIOD_NS - 1
        period_ns = passed_ns - missed * _PERIOD_NS
        was_any = False
        for stall in self._tiers.values():
            for share in (stall.some, stall.full):
                share.settle(now_ns)
                was_any |= share.sample(period_ns, missed)
        return was_any

    def stat(self, tier: str) -> tuple[StallStat, StallStat]:
        """`some` and `full` of a tier."""
        now_ns = self._clock.monotonic_ns()
        self._catch_up(now_ns)
        stall = self.waiting(tier)
        stall.some.settle(now_ns)
        stall.full.settle(now_ns)
        return stall.some.stat(), stall.full.stat()
