"""Grants: what control groups are given, checked against each other, and put in force.

A limit is refused where it contradicts one above or below it, or promises more than there is. A
`max` below what is held is made true first, by reclaim, or refused. When a folder gets limits,
what lies in it is charged to its group: in RAM at once, on disk as a walk through its names adds
it up. Kernel thread only.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import islice, pairwise
from typing import Final

from libmem.abi.control import GroupStat, GroupTierStat, Limits, TierLimits
from libmem.abi.errors import Errno, MemError
from libmem.abi.names import namespace_of
from libmem.abi.structs import Quota
from memosd.kernel.accounts import TierAccount
from memosd.kernel.control import NO_LIMITS, Group, with_max
from memosd.kernel.cubes import Cubes
from memosd.kernel.namespace import Namespace
from memosd.kernel.pager import Pager
from memosd.kernel.parts import Parts
from memosd.kernel.wait import Completion, detach

__all__ = ["Grants"]

_TIERS: Final = ("ram", "device", "disk")
_STEPS: Final = ("min_bytes", "low_bytes", "high_bytes", "max_bytes")
_LIMIT_MAX: Final = 1 << 62
_STRETCH: Final = 128
"""Names added up before others have their turn."""


class Grants:
    """See the head of this file."""

    def __init__(
        self, parts: Parts, cubes: Cubes, pager: Pager, next_turn: Callable[[], Completion[None]]
    ) -> None:
        self._namespaces = parts.namespaces
        self._control = parts.namespaces.control
        self._table = parts.table
        self._ledger = parts.table.ledger
        self._cubes = cubes
        self._pager = pager
        self._next_turn = next_turn
        self._counting: set[int] = set()
        tiers = (
            (parts.residents, parts.on_device) if parts.parameters.device else (parts.residents,)
        )
        self.accounts: list[TierAccount] = [tier.account for tier in tiers]
        """Of the tiers whose payloads can be reclaimed."""
        self._on_regrouped: Callable[[], None] = _nobody_listens
        self._may_regroup: Callable[[], Coroutine[Completion[None], None, None]] = _nobody_objects
        self._ledger.on_rollback.append(self._on_rollback)

    def watch(
        self,
        on_regrouped: Callable[[], None],
        may_regroup: Callable[[], Coroutine[Completion[None], None, None]],
    ) -> None:
        """Once, at assembly: whoever keeps groups of his own finds others from each `on_regrouped`
        on; `may_regroup` returns when he can do with that."""
        self._on_regrouped = on_regrouped
        self._may_regroup = may_regroup

    def start(self) -> None:
        """Go on adding up what a stop interrupted."""
        for group in self._control.folders():
            if group.counted_to is not None and group.number not in self._counting:
                self._counting.add(group.number)
                detach(self._count(group))

    def place(self, path: str) -> Namespace | None:
        """The namespace of a path; None for `/`. Errors: ENOENT."""
        return None if path == "/" else self._namespaces.find(namespace_of(path))

    # -- setting -------------------------------------------------------------------------------

    async def set(self, path: str, limits: Limits) -> Group:
        """Put limits in force. Errors: EINVAL, ENOENT, EDQUOT, EBUSY; then all is as it was."""
        space = self.place(path)
        self._check(path, space, limits)
        if space is not None and (self._find(path, space) is None) != (limits == NO_LIMITS):
            await self._may_regroup()
            space = self.place(path)
            self._check(path, space, limits)
        made: Group | None = None
        if space is not None and self._find(path, space) is None and limits != NO_LIMITS:
            made = self._make_folder(space, path, with_max(limits, "ram", 0))
        granted = made.limits if made is not None else None
        before = self._find(path, space)
        try:
            await self._make_true(path, limits.ram)
            space = self.place(path)  # after a wait: it may be another one, or none
            if self._find(path, space) is not before:
                raise MemError(Errno.EBUSY, "somebody else took its limits away", group=path)
            self._check(path, space, limits)
            group = self._commit(path, space, limits)
        except MemError:
            # Not if somebody else has set others meanwhile.
            if made is not None and self._control.is_live(made) and made.limits is granted:
                self._remove_folder(made)
            raise
        self._pager.throttle.start(group)
        return group

    def _find(self, path: str, space: Namespace | None) -> Group | None:
        with suppress(MemError):
            return self._control.find(path, space)
        return None

    async def _make_true(self, path: str, wanted: TierLimits) -> None:
        """Reclaim what a group holds above its `max`. Errors: EDQUOT."""
        group = self._find(path, self.place(path))
        if group is None or not wanted.max_bytes:
            return
        account = self.accounts[0]
        await self._pager.reclaim.shrink(group, wanted.max_bytes, "above a new max")
        if account.used_by(group) > wanted.max_bytes:
            raise MemError(
                Errno.EDQUOT,
                "it holds more RAM that cannot be reclaimed now",
                group=path,
                need_bytes=account.used_by(group),
                free_bytes=wanted.max_bytes,
            )

    def _commit(self, path: str, space: Namespace | None, limits: Limits) -> Group:
        control = self._control
        if space is None:
            control.set_stored(control.root, limits)
            control.root.limits = limits
            return control.root
        if path == space.row.name:
            self._namespaces.grant(space, limits, self.accounts[0].used_by(space.group))
            return space.group
        group = self._find(path, space)
        if limits == NO_LIMITS:
            return self._remove_folder(group) if group is not None else space.group
        return self._make_folder(space, path, limits)

    def _make_folder(self, space: Namespace, path: str, limits: Limits) -> Group:
        """Give a folder limits, and a group where it has none. Errors: EDQUOT."""
        group = self._find(path, space)
        if group is not None:
            return self._control.set_folder(space, path, limits, group.number)
        group = self._control.set_folder(space, path, limits, self._namespaces.next_number())
        self._seat()
        self.start()
        return group

    def _remove_folder(self, group: Group) -> Group:
        """Returns the group that it is part of now."""
        space = self._namespaces.by_id(group.space)
        self._control.remove_folder(space, group)
        self._seat()
        for account in self.accounts:
            account.forget(group.number)
        above = group.parent
        assert above is not None, "a folder lies in a namespace"
        return above

    # -- checking ------------------------------------------------------------------------------

    def _check(self, path: str, space: Namespace | None, limits: Limits) -> None:
        """Errors: EINVAL, EDQUOT."""
        if not 1 <= limits.io_weight <= 10_000:
            raise MemError(Errno.EINVAL, "io_weight is within 1..10000")
        group = self._find(path, space)
        for tier in _TIERS:
            wanted: TierLimits = getattr(limits, tier)
            check_order(tier, wanted)
            if path == "/" and (wanted.min_bytes or wanted.low_bytes):
                raise MemError(Errno.EINVAL, "'/' has nobody to be protected from")
            self._check_nesting(path, space, tier, wanted)
            if space is not None and path == space.row.name:
                self._check_budget(space, tier, wanted)
        if group is not None and group.is_folder and group.counted_to is None:
            check_held(path, group.disk_bytes + group.reserved_bytes, limits.disk.max_bytes)

    def check_quota(self, space: Namespace, quota: Quota) -> None:
        """A quota is its group's `max`. Errors: EINVAL."""
        limits = with_max(space.group.limits, "ram", quota.ram_bytes)
        limits = with_max(limits, "disk", quota.disk_bytes)
        for tier in ("ram", "disk"):
            check_order(tier, getattr(limits, tier))
            self._check_nesting(space.row.name, space, tier, getattr(limits, tier))

    def _check_nesting(
        self, path: str, space: Namespace | None, tier: str, wanted: TierLimits
    ) -> None:
        """A `min` is within every `max` above it. Errors: EINVAL."""
        group = self._find(path, space)
        below = list(group.subtree())[1:] if group is not None else []
        if group is None and space is not None:
            below = [each for each in space.group.subtree() if each.path.startswith(path + "/")]
        for each in below:
            if wanted.max_bytes and each.of(tier).min_bytes > wanted.max_bytes:
                raise MemError(
                    Errno.EINVAL, f"{tier} max is below the min of {each.path}", group=path
                )
        if space is None:
            return
        above = (
            self._control.group_of(space, path) if path != space.row.name else self._control.root
        )
        for each in above.lineage:
            max_bytes = each.of(tier).max_bytes
            if max_bytes and wanted.min_bytes > max_bytes:
                raise MemError(
                    Errno.EINVAL, f"{tier} min is above the max of {each.path}", group=path
                )

    def _check_budget(self, space: Namespace, tier: str, wanted: TierLimits) -> None:
        """What is promised to all namespaces is there. Errors: EDQUOT."""
        budgets = {account.tier: account.budget.configured_bytes for account in self.accounts}
        budgets["disk"] = self._namespaces.budget_bytes
        if not wanted.min_bytes or tier not in budgets:
            return
        others = sum(
            each.group.of(tier).min_bytes for each in self._namespaces if each is not space
        )
        if others + wanted.min_bytes > budgets[tier]:
            raise MemError(
                Errno.EDQUOT,
                f"more {tier} would be promised than there is",
                group=space.row.name,
                need_bytes=wanted.min_bytes,
                free_bytes=max(0, budgets[tier] - others),
            )

    # -- who is charged ------------------------------------------------------------------------

    def _seat(self) -> None:
        """The tree changed: charge what is in RAM to the groups it is in now."""
        for account in self.accounts:
            account.rearrange()
        for key, cube_id, group in self._pager.places():
            seat = self._seat_of(cube_id, group)
            if seat.number != group.number:
                # Where there is no room for it by now, it stays where it is charged.
                with suppress(MemError):
                    self._pager.move(key, seat)
        self._on_regrouped()

    def _seat_of(self, cube_id: bytes, group: Group) -> Group:
        """The group that a cube is in; `group` where nothing tells."""
        with suppress(MemError):
            row = self._table.cube_row(cube_id)
            if row is not None:
                return self._control.group_of(self._namespaces.by_id(row.namespace), row.name)
        return group

    def _on_rollback(self, _error: MemError) -> None:
        groups = {each.number: each for each in self._control.root.subtree()}
        for account in self.accounts:
            account.adopt(groups)
        self._seat()
        self.start()

    # -- what folders hold on disk ---------------------------------------------------------------

    async def _count(self, group: Group) -> None:
        """Add up what a folder held when it got its first limits."""
        prefix = group.path.encode() + b"/"
        try:
            # Where it goes on is asked of the group each time: a rollback starts it anew.
            while self._control.is_live(group) and group.counted_to is not None:
                start = group.counted_to.encode() or prefix
                names = list(islice(self._ledger.scan("names", start, prefix), _STRETCH))
                held_bytes = sum(self._charge_of(key.decode(), value) for key, value in names)
                is_last = len(names) < _STRETCH
                counted_to = None if is_last else names[-1][0].decode() + "\0"
                self._control.count_on(group, held_bytes, counted_to)
                await self._next_turn()
        finally:
            self._counting.discard(group.number)

    def _charge_of(self, name: str, value: bytes) -> int:
        """What a cube is charged on disk; 0 where its rows are damaged."""
        with suppress(MemError):
            cube_id = self._table.opened_id(name, value)
            row = self._table.cube_row(cube_id)
            if row is not None:
                versions = [*self._table.older_versions(cube_id), row.current]
                return self._cubes.charge_of_versions(versions)
        return 0

    # -- showing -------------------------------------------------------------------------------

    def stat(self, group: Group) -> GroupStat:
        self._ledger.get("control", group.path.encode())  # the answer waits for what it shows
        tiers = [account.stat(group) for account in self.accounts]
        disk_bytes = self._disk_bytes(group)
        own = disk_bytes - sum(self._disk_bytes(child) for child in group.children.values())
        refusals = self._namespaces.refusals[group.number]
        tiers.append(GroupTierStat("disk", own, disk_bytes, refusals=refusals))
        return GroupStat(
            group.path, group.number, group.limits, tuple(tiers), group.counted_to is None
        )

    def _disk_bytes(self, group: Group) -> int:
        return self._namespaces.disk_held(group)


def check_order(tier: str, wanted: TierLimits) -> None:
    """min <= low <= high <= max, where set. Errors: EINVAL."""
    steps = [(step.removesuffix("_bytes"), getattr(wanted, step)) for step in _STEPS]
    for name, size in steps:
        if not 0 <= size < _LIMIT_MAX:
            raise MemError(Errno.EINVAL, f"{tier} {name} is not a number of bytes")
    given = [(name, size) for name, size in steps if size]
    for (lower, less), (upper, more) in pairwise(given):
        if less > more:
            raise MemError(
                Errno.EINVAL,
                f"min <= low <= high <= max: {tier} {lower} {less} is above {upper} {more}",
            )


def check_held(path: str, held_bytes: int, max_bytes: int) -> None:
    """Errors: EDQUOT."""
    if max_bytes and held_bytes > max_bytes:
        raise MemError(
            Errno.EDQUOT, "it holds more on disk already", group=path, need_bytes=held_bytes,
            free_bytes=max_bytes,
        )  # fmt: skip


async def _nobody_objects() -> None:
    pass


def _nobody_listens() -> None:
    """Until all is assembled."""
