"""Deadlines on the kernel's clock: bind time-outs, watches, write-back, sweeps.

The server asks `next_delay_s` how long it may sleep and calls `run_due` each turn. No thread, no
signal; a test moves its clock and calls `run_due`.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Final

from memosd.kernel.ports import Clock

__all__ = ["Timer", "Timers"]

_SWEEP_MIN: Final = 256


class Timer:
    """One deadline; `cancel` it when it no longer matters."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Idempotent; also after it went off."""
        self.action = None


class Timers:
    """All deadlines, earliest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()
        self._sweep_at = _SWEEP_MIN

    def after(self, delay_ns: int, action: Callable[[], None]) -> Timer:
        """Run `action` on the kernel thread once the delay has passed."""
        timer = Timer(action)
        due_ns = self._clock.monotonic_ns() + delay_ns
        heapq.heappush(self._heap, (due_ns, next(self._order), timer))
        if len(self._heap) > self._sweep_at:
            # Cancelled ones would stay until their time; callers that poll make many.
            self._heap = [entry for entry in self._heap if entry[2].action is not None]
            heapq.heapify(self._heap)
            self._sweep_at = max(_SWEEP_MIN, 2 * len(self._heap))
        return timer

    def every(self, period_ns: int, action: Callable[[], None]) -> None:
        """Run `action` each period, for ever."""

        def again() -> None:
            self.after(period_ns, again)
            action()

        self.after(period_ns, again)

    def next_delay_s(self) -> float | None:
        """Seconds until the next deadline, 0 when one is due, None without any."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
        if not heap:
            return None
        return max(0, heap[0][0] - self._clock.monotonic_ns()) / 1e9

    def run_due(self) -> None:
        now_ns = self._clock.monotonic_ns()
        while self._heap and self._heap[0][0] <= now_ns:
            timer = heapq.heappop(self._heap)[2]
            if timer.action is not None:
                timer.action()
