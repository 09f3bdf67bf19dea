"""The governor: the RAM tier's budget falls while the machine is short of memory, and rises again.

What it goes by is a level: what is used, and what is available beyond the reserve. That is where
the budget would leave exactly the reserve, and it does not change while reclaim gives back, so a
slow reclaim is not taken for a need that grew. The budget falls to the level at once, and rises
towards it in small steps once all was calm for a while. Where Linux reports stalls although the
reserve is not used up yet, it falls by a share of what is used. It never falls below what is held
and a share of what was configured. Kernel thread only.
"""

from typing import Final

import structlog

from libmem.abi.errors import MemError
from libmem.abi.state import MachineStat
from memosd.kernel.machine import Bound, Machine, MachineMemory
from memosd.kernel.parts import Parts
from memosd.kernel.reclaim import Reclaim
from memosd.kernel.timers import Timer

__all__ = ["Governor"]

_log = structlog.get_logger("memosd.kernel")
_NS: Final = 1_000_000_000
_LOOK_NS: Final = _NS
_LOOK_SOON_NS: Final = _NS // 10
"""While it is short, or reclaim has to catch up."""
_CALM_NS: Final = 5 * _NS
"""So long after the last fall the budget does not rise."""
_FLOOR: Final = 1 / 16
"""Of what was configured: so much is left to work with beside what is held."""
_RISE: Final = 1 / 16
"""Of what was configured, for each look."""
_QUANTUM: Final = 1 / 64
"""Of what was configured: smaller moves are not worth a decision unless it is short."""
_GROUP_RESERVE: Final = 1 / 16
"""Of a cgroup's limit: its reserve is at most that."""
_STALL: Final = 0.10
"""Share of time stalled, above which Linux is believed to be short."""


class Governor:
    """Over the budget of the RAM tier."""

    def __init__(self, parts: Parts, reclaim: Reclaim, machine: Machine | None) -> None:
        self._parts = parts
        self._account = parts.residents.account
        self._reclaim = reclaim
        self._machine = machine
        self._reserve_bytes = parts.parameters.ram_reserve_bytes
        self._timer: Timer | None = None
        self._fell_ns = -_CALM_NS
        self._stalled: tuple[int, int] | None = None
        """From when on stalls are counted, and their sum by then: ns, us."""
        self._is_calm = True
        """False from the first fall until the budget is whole again."""
        self._reason = ""
        self._stat = MachineStat()
        self.problem = ""
        """Why the budget does not follow the machine, for people."""

    def start(self) -> None:
        """Look at once and from then on; nothing where no reserve was asked for."""
        if self._machine is not None and self._reserve_bytes:
            self._machine.on_pressure = self.look
            self.look()

    def look(self) -> None:
        """Read the machine, move the budget, and look again in time."""
        machine = self._machine
        assert machine is not None, "nobody looks without a machine"
        is_short = False
        try:
            memory = machine.read()
        except MemError as error:
            if not self.problem:
                _log.warning("the machine's memory cannot be read", error=str(error))
            self.problem = f"the RAM budget does not follow the machine's memory: {error.message}"
        else:
            self.problem = ""
            is_short = self._follow(memory, machine.is_triggered)
        if self._timer is not None:
            self._timer.cancel()
        is_behind = self._account.used_bytes > self._account.budget.target_bytes
        pause_ns = _LOOK_SOON_NS if is_short or is_behind else _LOOK_NS
        self._timer = self._parts.timers.after(pause_ns, self.look)

    def _follow(self, memory: MachineMemory, is_triggered: bool) -> bool:
        """Move the budget by what was read; is the reserve used into?"""
        tightest = min(memory.bounds, key=self._spare_bytes)
        spare_bytes = self._spare_bytes(tightest)
        self._stat = MachineStat(
            memory.total_bytes,
            tightest.available_bytes,
            self._reserve_of(tightest),
            tightest.name,
            memory.some_avg10,
            memory.full_avg10,
            is_triggered,
        )
        lowest = min(memory.bounds, key=self._level)
        level, reason = self._level(lowest), "the machine is short of memory"
        if lowest.ours_bytes is not None:
            reason = f"our cgroup is near its limit, {lowest.name}"
        stalled = self._stalled_share(memory)
        if stalled >= _STALL and spare_bytes < self._reserve_of(tightest):
            by_stalls = int(self._account.used_bytes * (1 - stalled / 2))
            if by_stalls < level:
                level, reason = by_stalls, "Linux reports stalls for want of memory"
        self._aim(level, reason, is_short=spare_bytes < 0 or stalled >= _STALL)
        return spare_bytes < 0

    def _reserve_of(self, bound: Bound) -> int:
        if bound.ours_bytes is None:
            return self._reserve_bytes
        return min(self._reserve_bytes, int(bound.limit_bytes * _GROUP_RESERVE))

    def _spare_bytes(self, bound: Bound) -> int:
        return bound.available_bytes - self._reserve_of(bound)

    def _level(self, bound: Bound) -> int:
        """Where the budget would leave the reserve there."""
        used_bytes, spare_bytes = self._account.used_bytes, self._spare_bytes(bound)
        if bound.ours_bytes is not None:
            # No more comes back to a cgroup than is charged to it: its clients fill memory as well.
            spare_bytes = max(spare_bytes, -bound.ours_bytes)
        return used_bytes + spare_bytes

    def _stalled_share(self, memory: MachineMemory) -> float:
        """Of the time since it was asked last, a second at least: looks come closer together, and
        the same stall counts once. Counters that run backwards count as none."""
        now_ns, total_us = self._parts.clock.monotonic_ns(), memory.some_total_us
        since_ns, before_us = self._stalled or (now_ns, total_us)
        share = (total_us - before_us) * 1000 / max(now_ns - since_ns, _LOOK_NS)
        share = max(0.0, min(1.0, share))
        if share >= _STALL or now_ns - since_ns >= _LOOK_NS or self._stalled is None:
            self._stalled = (now_ns, total_us)
        return share

    def _aim(self, level: int, reason: str, *, is_short: bool) -> None:
        budget = self._account.budget
        quantum = int(budget.configured_bytes * _QUANTUM)
        now_ns = self._parts.clock.monotonic_ns()
        old = budget.target_bytes
        if level < old - (0 if is_short else quantum):
            target = min(old, max(level, self._floor_bytes()))
            self._fell_ns = now_ns
        elif level > old + quantum and old < budget.configured_bytes:
            if now_ns - self._fell_ns < _CALM_NS:
                return
            reason = "the machine has memory again"
            step = int(budget.configured_bytes * _RISE)
            target = min(old + step, level - quantum, budget.configured_bytes)
            # What is left of the way and smaller than a step worth telling of.
            if budget.configured_bytes - target <= quantum < level - target:
                target = budget.configured_bytes
        else:
            return
        if target != old:
            self._move(target, reason)
        self._reclaim.balance()

    def _floor_bytes(self) -> int:
        """What is held cannot go, and something must be left to work with."""
        floor = int(self._account.budget.configured_bytes * _FLOOR)
        return self._parts.residents.held_bytes() + floor

    def _move(self, target_bytes: int, reason: str) -> None:
        account, budget = self._account, self._account.budget
        old = budget.target_bytes
        budget.aim(target_bytes, account.used_bytes)
        numbers = {
            "budget_bytes": target_bytes,
            "old_bytes": old,
            "configured_bytes": budget.configured_bytes,
            "used_bytes": account.used_bytes,
            "available_bytes": self._stat.available_bytes,
            "reserve_bytes": self._stat.reserve_bytes,
        }
        self._parts.heat.decide_for_all("budget", reason, **numbers)
        is_whole = target_bytes == budget.configured_bytes
        if self._is_calm and not is_whole:
            _log.warning("the RAM budget falls", reason=reason, **numbers)
        elif is_whole:
            _log.info("the RAM budget is whole again", **numbers)
        self._is_calm = is_whole
        self._reason = reason

    def stat(self) -> MachineStat:
        """As it was read last."""
        return self._stat

    def notice(self) -> str:
        """What to tell while the budget is not what was configured; empty when it is."""
        if self.problem:
            return self.problem
        budget, stat = self._account.budget, self._stat
        if budget.target_bytes == budget.configured_bytes:
            return ""
        text = (
            f"the RAM budget is {_mib(budget.target_bytes)} instead of "
            f"{_mib(budget.configured_bytes)}: {self._reason}; {_mib(stat.available_bytes)} "
            f"available, {_mib(stat.reserve_bytes)} kept in reserve"
        )
        if self._account.used_bytes > budget.target_bytes:
            text += f"; {_mib(self._account.used_bytes)} still used"
        return text


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"
