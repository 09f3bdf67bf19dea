"""The working set: whether RAM holds what is used, and whom to refuse a frame where it cannot.

What is evicted leaves a shadow: how many bytes had been evicted by then, and when it was last used.
One that comes back before two tiers' worth was evicted since is a *refault*. Where most of what
comes in are refaults, the tier thrashes: every admission evicts what is needed next. Then a payload
that was just evicted is admitted only if it is expected back sooner than the one that would have to
go for it: each is expected as long after its last use as that was after the one before. Time is
counted in bytes used, so an idle hour changes nothing.
Source: mm/workingset.c of Linux (shadow entries, refault distance). Kernel thread only.
"""

from collections import OrderedDict
from typing import Final, NamedTuple

from memosd.kernel.accounts import TierAccount
from memosd.kernel.ports import PayloadKey
from memosd.kernel.residents import Resident

__all__ = ["Returned", "WorkingSet"]

_SHADOWS_MAX: Final = 1 << 16
_REACH: Final = 2.0
"""Tiers' worth of evictions after which nobody remembers a payload."""
_WINDOW: Final = 2.0
"""Tiers' worth of uses over which the share of refaults is an average."""
_THRASH_SHARE: Final = 0.5
_WELL_SHARE: Final = 0.15
_HIT_WEIGHT: Final = 1 / 2
"""Of a use that found its payload, against one that did not: thrashing ends with the faults."""
_OVERDUE: Final = 2.0
"""Who has not come back after so many times its interval is not expected any more."""


class _Shadow(NamedTuple):
    """What is remembered of an evicted payload."""

    evicted_bytes: int
    used_at: int


class Returned(NamedTuple):
    """An absent payload that is wanted."""

    interval_bytes: int
    """Bytes used since it was used before; 0: not known."""
    is_refault: bool


class WorkingSet:
    """Shadows, and the share of refaults."""

    def __init__(self, account: TierAccount) -> None:
        self._account = account
        self._shadows: OrderedDict[PayloadKey, _Shadow] = OrderedDict()
        """In order of eviction."""
        self._evicted_bytes = 0
        self._used_bytes = 0
        self.refault_share = 0.0
        """Of the bytes used lately, those that were found in RAM counting half."""
        self.is_thrashing = False
        self.refaults = 0
        self.refusals = 0

    def note_use(self, resident: Resident) -> None:
        """It was found in RAM, or has just come in."""
        self._used_bytes += resident.charged_bytes
        if resident.used_at:
            resident.interval_bytes = self._used_bytes - resident.used_at
            self._weigh(resident.charged_bytes * _HIT_WEIGHT, is_refault=False)
        resident.used_at = self._used_bytes

    def note_eviction(self, resident: Resident) -> None:
        """It went, and may come back."""
        self._evicted_bytes += resident.charged_bytes
        self._shadows[resident.key] = _Shadow(self._evicted_bytes, resident.used_at)
        self._shadows.move_to_end(resident.key)
        reach = _REACH * self._account.budget.target_bytes
        while self._shadows:
            oldest = next(iter(self._shadows.values()))
            is_old = self._evicted_bytes - oldest.evicted_bytes > reach
            if not is_old and len(self._shadows) <= _SHADOWS_MAX:
                return
            self._shadows.popitem(last=False)

    def returned(self, key: PayloadKey, charge_bytes: int) -> Returned:
        """What is remembered of an absent payload that is wanted."""
        shadow = self._shadows.get(key)
        if shadow is None:
            return Returned(0, is_refault=False)
        return Returned(self._used_bytes + charge_bytes - shadow.used_at, is_refault=True)

    def admit(self, resident: Resident, returned: Returned) -> None:
        """It comes in: its shadow goes."""
        self._weigh(resident.charged_bytes, is_refault=returned.is_refault)
        self.refaults += returned.is_refault
        self._shadows.pop(resident.key, None)
        resident.interval_bytes = returned.interval_bytes

    def refuse(self, key: PayloadKey, charge_bytes: int) -> None:
        """It was used without coming in."""
        self._weigh(charge_bytes, is_refault=True)
        self.refaults += 1
        self.refusals += 1
        self._used_bytes += charge_bytes
        shadow = self._shadows.get(key)
        if shadow is not None:
            self._shadows[key] = shadow._replace(used_at=self._used_bytes)

    def forget(self, key: PayloadKey) -> None:
        """It is gone for good."""
        self._shadows.pop(key, None)

    def is_worse(self, returned: Returned, victim: Resident) -> bool:
        """Is the victim expected back before the one that would take its place?"""
        if not (self.is_thrashing and returned.is_refault and victim.interval_bytes):
            return False
        idle_bytes = self._used_bytes - victim.used_at
        if idle_bytes > _OVERDUE * victim.interval_bytes:
            return False
        return victim.interval_bytes - idle_bytes <= returned.interval_bytes

    def _weigh(self, size_bytes: float, *, is_refault: bool) -> None:
        share = min(1.0, size_bytes / (_WINDOW * self._account.budget.target_bytes))
        self.refault_share += share * (is_refault - self.refault_share)
        if self.refault_share > _THRASH_SHARE:
            self.is_thrashing = True
        elif self.refault_share < _WELL_SHARE:
            self.is_thrashing = False

    def notices(self) -> list[str]:
        """For people."""
        if not self.is_thrashing:
            return []
        return [
            f"RAM thrashes: {self.refault_share:.0%} of what came in lately had just been evicted; "
            f"{self.refusals} such uses were served without a frame so far"
        ]
