"""The reclaim policy in charge of RAM: how it does, and how another one takes its place.

The device has one of the same name, replaced with it; the disk's order stays as it is configured.
The change lasts until the daemon stops: at boot the configuration decides. Kernel thread only.
"""

import structlog

from libmem.abi.calls import PolicyStat
from memosd.kernel.parts import Parts
from memosd.kernel.policies.guarded import make_guarded
from memosd.kernel.policies.table import POLICIES

__all__ = ["Incumbent"]

_log = structlog.get_logger("memosd.kernel")


class Incumbent:
    """See the head of this file."""

    def __init__(self, parts: Parts) -> None:
        self._residents = parts.residents
        self._on_device = parts.on_device
        self._heat = parts.heat
        self._clock = parts.clock
        self._configured = parts.parameters.policy
        self._faults = parts.policy_faults
        self._since_ns = parts.clock.wall_ns()
        self._before = self._counters()

    def _counters(self) -> tuple[int, int, int]:
        return self._residents.hits, self._heat.faults, self._heat.evictions

    def stat(self) -> PolicyStat:
        """As `info` shows it."""
        now, before = self._counters(), self._before
        hits, faults, evictions = (now[each] - before[each] for each in range(3))
        return PolicyStat(
            name=self._residents.policy.name,
            known=tuple(POLICIES),
            configured=self._configured,
            since_ns=self._since_ns,
            hits=hits,
            faults=faults,
            evictions=evictions,
        )

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def replace(self, name: str) -> PolicyStat:
        """Put another policy in charge, with all residents in their old order. Errors: EINVAL.

        The same name again starts it anew, with its history forgotten.
        """
        policy = make_guarded(name, self._now_s, self._faults, "ram")
        for_device = make_guarded(name, self._now_s, self._faults, "device")
        self._faults.pop("ram", None)
        self._faults.pop("device", None)
        old = self.stat()
        self._residents.switch(policy)
        self._on_device.switch(for_device)
        self._since_ns = self._clock.wall_ns()
        self._before = self._counters()
        numbers = {"hits": old.hits, "faults": old.faults, "evictions": old.evictions}
        self._heat.decide_for_all(
            "policy", f"{policy.name} took the place of {old.name}", **numbers
        )
        _log.info("another reclaim policy", policy=policy.name, before=old.name, **numbers)
        return self.stat()
