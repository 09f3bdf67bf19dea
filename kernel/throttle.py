"""Throttle: slows down who takes more than its group's `high`, while the group is reclaimed.

A group above its `high` is reclaimed down to it at once, in the background. Whoever charged it
waits for that, a little longer each time as long as it does not help, never for long: a limit that
cannot be held (all is pinned, the disk fails) makes a group slow, not stuck. Kernel thread only.
Source: Linux, mm/memcontrol.c, mem_cgroup_handle_over_high().
"""

from typing import Final

from memosd.kernel.control import Group
from memosd.kernel.parts import Parts
from memosd.kernel.reclaim import Reclaim
from memosd.kernel.wait import Completion, detach

__all__ = ["Throttle"]

_DELAY_FIRST_NS: Final = 1_000_000
_DELAY_MAX_NS: Final = 100_000_000
_DOUBLINGS_MAX: Final = 7


class Throttle:
    """What `high` does in RAM."""

    def __init__(self, parts: Parts, reclaim: Reclaim) -> None:
        self._account = parts.residents.account
        self._timers = parts.timers
        self._reclaim = reclaim
        self._shrinking: dict[int, Completion[None]] = {}
        self._streaks: dict[int, int] = {}
        """Group -> calls that had to wait since it was last within its `high`."""

    async def pause(self, group: Group) -> None:
        """After a charge: wait for the group's reclaim, where it, or what it is in, needs that."""
        over = self.start(group)
        if over is None:
            return
        self._account.count_throttle(over)
        streak = self._streaks.get(over.number, 0)
        self._streaks[over.number] = min(streak + 1, _DOUBLINGS_MAX)
        done = Completion[None]()

        def end() -> None:
            if not done.is_done:
                done.resolve(None)

        def look() -> None:
            if self._account.over_high(group) is None:
                end()

        timer = self._timers.after(min(_DELAY_MAX_NS, _DELAY_FIRST_NS << streak), end)
        shrinking = self._shrinking.get(over.number)
        if shrinking is not None:
            shrinking.on_done(look)
        await done
        timer.cancel()

    def start(self, group: Group) -> Group | None:
        """Reclaim what is above its `high`, the group or what it is in; None where nothing is, or
        that was done at once."""
        over = self._account.over_high(group)
        if over is None or over.number in self._shrinking:
            return over
        done = detach(self._shrink(over))
        if not done.is_done:
            self._shrinking[over.number] = done
            done.on_done(lambda: self._ended(over))
        return self._account.over_high(group)

    def _ended(self, group: Group) -> None:
        del self._shrinking[group.number]

    async def _shrink(self, group: Group) -> None:
        high_bytes = group.of(self._account.tier).high_bytes
        await self._reclaim.shrink(group, high_bytes, "above the high of its group")
        if self._account.used_by(group) <= high_bytes:
            self._streaks.pop(group.number, None)
