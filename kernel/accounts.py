"""Accounts: bytes and frames charged in one tier, to a control group and all that it is in.

Invariants: charged bytes never exceed the budget, nor any group's `max`; what a group is charged
is the sum of its own and of those below it. Kernel thread only.
"""

from collections.abc import Collection
from typing import NamedTuple

from libmem.abi.control import GroupTierStat
from libmem.abi.errors import Errno, MemError
from memosd.kernel.budget import Budget
from memosd.kernel.control import Group
from memosd.kernel.protection import Sums, levels
from memosd.kernel.wait import Completion

__all__ = ["TierAccount"]


class _Tally:
    """What the limits of a group did since boot."""

    __slots__ = ("reclaims", "refusals", "throttles")

    def __init__(self) -> None:
        self.reclaims = self.throttles = self.refusals = 0


class _Full(NamedTuple):
    """A group that has no room for a charge."""

    group: Group
    max_bytes: int


class TierAccount:
    """What is charged in a tier. Groups are known by their numbers."""

    def __init__(self, tier: str, budget_bytes: int, budget_frames: int = 0) -> None:
        """`budget_frames`: 0 for any number."""
        self.tier = tier
        self.budget = Budget(budget_bytes)
        self.budget_frames = budget_frames
        self.used_bytes = 0
        self.used_frames = 0
        self._groups: dict[int, Group] = {}
        """Those that are charged for anything themselves."""
        self._own: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._tallies: dict[int, _Tally] = {}
        self.leaving: dict[Completion[None], tuple[Group, int]] = {}
        """Memory on its way back: whose it was, and how much. It is charged until it is there."""

    @property
    def budget_bytes(self) -> int:
        return self.budget.bytes

    def own_by(self, group: Group) -> int:
        return self._own.get(group.number, 0)

    def used_by(self, group: Group) -> int:
        """Those below it included."""
        return self._used.get(group.number, 0)

    def groups(self) -> list[int]:
        """Groups that are charged for anything themselves."""
        return list(self._own)

    def reclaim_levels(
        self,
        root: Group | None,
        charger: Group | None = None,
        going: Collection[tuple[Group, int]] = (),
    ) -> list[list[int]]:
        """Whom to reclaim from, all of a level before any of the next.

        For a group that is at its ceiling, or for the tier's sake (None). What is within its
        `min` goes only for `charger`, if it is its own. `going`: what was taken already, and of
        whom; as what is leaving, it is no part of what a group could still give.
        """
        if not self._groups:
            return []
        own, used = self._without([*self.leaving.values(), *going])
        sums = Sums(self.tier, self.budget_bytes, self._groups, own, used)
        return levels(sums, root, charger)

    def _without(
        self, going: Collection[tuple[Group, int]]
    ) -> tuple[dict[int, int], dict[int, int]]:
        """Both sums when that is gone."""
        if not going:
            return self._own, self._used
        own, used = self._own.copy(), self._used.copy()
        for group, size_bytes in going:
            own[group.number] -= size_bytes
            for each in self._groups[group.number].lineage:
                used[each.number] -= size_bytes
        return own, used

    # -- charging ------------------------------------------------------------------------------

    def charge(self, group: Group, need_bytes: int) -> None:
        """The caller has made sure that it fits."""
        assert self.shortage(group, need_bytes) is None, "charged without room"
        self._book(group, need_bytes, 1)

    def release(self, group: Group, charged_bytes: int) -> None:
        self._book(group, -charged_bytes, -1)
        self.budget.follow(self.used_bytes)

    def shrink(self, group: Group, bytes_less: int) -> None:
        """A charged frame got smaller."""
        self._book(group, -bytes_less, 0)
        self.budget.follow(self.used_bytes)

    def move(self, old: Group, new: Group, charged_bytes: int) -> None:
        """Charge a frame to another group. Errors: EDQUOT; then nothing moved."""
        # Not given back: a budget that is to fall stays until it can fall for good.
        self._book(old, -charged_bytes, 0)
        full = self._full(new, charged_bytes)
        self._book(old if full else new, charged_bytes, 0)
        if full:
            raise self._refusal(full, charged_bytes)

    def rearrange(self) -> None:
        """The tree is another one: sum everything up again."""
        self._used = {}
        for number, own_bytes in self._own.items():
            for each in self._groups[number].lineage:
                self._used[each.number] = self._used.get(each.number, 0) + own_bytes

    def adopt(self, groups: dict[int, Group]) -> None:
        """Charge to these objects what is charged to others of their numbers."""
        for number in self._groups.keys() & groups.keys():
            self._groups[number] = groups[number]
        self.rearrange()

    def _book(self, group: Group, more_bytes: int, frames: int) -> None:
        self.used_bytes += more_bytes
        self.used_frames += frames
        # Rows that came back made new objects, whose lineage is the tree's.
        group = self._groups.get(group.number, group)
        own = self._own.get(group.number, 0) + more_bytes
        if own:
            self._own[group.number] = own
            self._groups[group.number] = group
        else:
            self._own.pop(group.number, None)
            self._groups.pop(group.number, None)
        for each in group.lineage:
            used = self._used.get(each.number, 0) + more_bytes
            if used:
                self._used[each.number] = used
            else:
                self._used.pop(each.number, None)

    # -- room ----------------------------------------------------------------------------------

    def can_ever_fit(self, group: Group, need_bytes: int) -> bool:
        """Were everything else out of the way."""
        ceilings = [each.of(self.tier).max_bytes for each in group.lineage]
        return need_bytes <= min([self.budget.target_bytes, *filter(None, ceilings)])

    def full_group(self, group: Group, need_bytes: int) -> Group | None:
        """The first group, from this one upwards, whose `max` a charge would exceed."""
        full = self._full(group, need_bytes)
        return full.group if full else None

    def over_high(self, group: Group) -> Group | None:
        """The first group, from this one upwards, that is above its `high`."""
        for each in group.lineage:
            high_bytes = each.of(self.tier).high_bytes
            if high_bytes and self.used_by(each) > high_bytes:
                return each
        return None

    def _full(self, group: Group, need_bytes: int) -> _Full | None:
        for each in group.lineage:
            max_bytes = each.of(self.tier).max_bytes
            if max_bytes and self.used_by(each) + need_bytes > max_bytes:
                return _Full(each, max_bytes)
        return None

    def _refusal(self, full: _Full, need_bytes: int) -> MemError:
        return MemError(
            Errno.EDQUOT,
            f"a control group holds as much {self.tier.upper()} as it may",
            group=full.group.path,
            need_bytes=need_bytes,
            free_bytes=max(0, full.max_bytes - self.used_by(full.group)),
        )

    def shortage(self, group: Group, need_bytes: int) -> MemError | None:
        """Why a charge would not fit now: EDQUOT or ENOMEM, or None when it fits."""
        full = self._full(group, need_bytes)
        if full is not None:
            return self._refusal(full, need_bytes)
        if self.used_bytes + need_bytes > self.budget_bytes:
            return MemError(
                Errno.ENOMEM,
                f"the {self.tier.upper()} tier's budget is exhausted",
                need_bytes=need_bytes,
                free_bytes=max(0, self.budget_bytes - self.used_bytes),
            )
        if self.budget_frames and self.used_frames >= self.budget_frames:
            return MemError(
                Errno.ENOMEM,
                f"the {self.tier.upper()} tier holds as many frames as it may",
                frames=self.used_frames,
            )
        return None

    # -- what was observed ---------------------------------------------------------------------

    def count_reclaim(self, group: Group) -> None:
        self._tally(group).reclaims += 1

    def count_throttle(self, group: Group) -> None:
        self._tally(group).throttles += 1

    def count_refusal(self, group: Group, need_bytes: int) -> None:
        """A charge to the group was given up for want of room."""
        full = self._full(group, need_bytes)
        if full is not None:
            self._tally(full.group).refusals += 1

    def stat(self, group: Group) -> GroupTierStat:
        tally = self._tallies.get(group.number) or _Tally()
        return GroupTierStat(
            self.tier,
            self.own_by(group),
            self.used_by(group),
            tally.reclaims,
            tally.throttles,
            tally.refusals,
        )

    def forget(self, number: int) -> None:
        """A group is gone; its number is not given again."""
        self._tallies.pop(number, None)

    def _tally(self, group: Group) -> _Tally:
        return self._tallies.setdefault(group.number, _Tally())
