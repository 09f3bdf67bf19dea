"""Room on the disk tier: cache payloads go when its budget, or a namespace's quota, is short.

A cache payload is a promise to try. Those that lie on disk are under a policy of their own, of the
same class as RAM's; above the high watermark they go in the background down to the low one, and a
write that does not fit makes its room before it is refused. Durable payloads never go, nor what is
held in RAM, or what others stand on as long as those are there. Whose go first is as limits have
it. The order is made when room is short for the first time: a store that never fills pays nothing
for it. Kernel thread only.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec

from libmem.abi.errors import MemError
from memosd.kernel.admission import Admission
from memosd.kernel.control import Group
from memosd.kernel.governance import Weight, weigh
from memosd.kernel.namespace import Namespace
from memosd.kernel.parts import Parts
from memosd.kernel.policies.guarded import make_guarded
from memosd.kernel.policies.policy import Candidate, Entry, Policy
from memosd.kernel.ports import PayloadKey
from memosd.kernel.protection import has_claims, levels
from memosd.kernel.residents import Resident
from memosd.kernel.rows import CubeRow, VersionRow
from memosd.kernel.wait import Completion, detach, first_done

__all__ = ["DiskSpace"]

_STRETCH: Final = 256
"""Rows that are read, or payloads that go, before others have their turn."""
_REST_NS: Final = 10_000_000_000
"""Where nothing can go, the background looks again after so long."""


class _Kept(NamedTuple):
    """A cache payload on disk, as its rows have it."""

    used_ns: int
    entry: Entry


class _Whom(NamedTuple):
    """From whom to reclaim: see `protection.levels`."""

    root: Group | None
    charger: Group | None
    spared: Collection[bytes | None]
    """Cubes that stay whatever they are worth."""


class DiskSpace:
    """Which cache payloads lie on disk, and who of them goes first."""

    def __init__(self, parts: Parts) -> None:
        self._parameters = parts.parameters
        self._table = parts.table
        self._pages = parts.pages
        self._namespaces = parts.namespaces
        self._residents = parts.residents
        self._prefixes = parts.prefixes
        self._heat = parts.heat
        self._timers = parts.timers
        self._clock = parts.clock
        self._policy_faults = parts.policy_faults
        self._policy: Policy | None = None
        """The order, once it was needed."""
        self._entries: dict[PayloadKey, Entry] = {}
        self._groups: Counter[int] = Counter()
        """Control groups by number, and how many payloads each has here."""
        self._making: Completion[None] | None = None
        self._is_remade = False
        """Is it made again, because something came in between?"""
        self._found: dict[PayloadKey, Entry] = {}
        """While it is made: what is not in it yet."""
        self._ages: list[tuple[int, PayloadKey]] = []
        """A heap of those, by when they were used last; some may be gone."""
        self._generation = 0
        self._is_balancing = False
        self._rest_ns = 0
        self.lost = 0
        """Payloads that went for want of room, since boot."""
        self.on_lose: Callable[[PayloadKey, str], None] = _nobody_loses
        """Set at assembly: remove the versions of a cache payload."""
        parts.table.ledger.on_rollback.append(lambda _error: self.start_anew())

    # -- what is told --------------------------------------------------------------------------

    def keep(self, resident: Resident) -> None:
        """A cache payload lies on disk now, and in RAM as well."""
        if self._policy is None and self._making is None:
            return
        kept = self._kept(resident.key, resident.cube_id)
        if kept is None:
            return
        if self._making is not None:
            self._find(kept)
        else:
            self._insert(kept.entry)

    def touch(self, key: PayloadKey) -> None:
        """It was in use until now."""
        if self._policy is not None:
            self._policy.touch(key)

    def move(self, key: PayloadKey, group: Group) -> None:
        """Its cube is in another control group now."""
        self._change(key, {"group": group.number})

    def reweigh(self, key: PayloadKey, weight: Weight) -> None:
        """The header of its cube changed."""
        self._change(key, weight._asdict())

    def _change(self, key: PayloadKey, fields: dict[str, Any]) -> None:
        if key in self._found:
            self._found[key] = msgspec.structs.replace(self._found[key], **fields)
        entry = self._entries.get(key)
        if entry is not None:
            changed = msgspec.structs.replace(entry, **fields)
            self._enter(changed)
            if self._policy is not None:
                self._policy.update(changed)

    def forget(self, key: PayloadKey) -> None:
        """It is gone for good."""
        self._found.pop(key, None)
        if key in self._entries:
            self._leave(key)
            if self._policy is not None:
                self._policy.remove(key)

    def _enter(self, entry: Entry) -> None:
        self._leave(entry.key)
        self._entries[entry.key] = entry
        self._groups[entry.group] += 1

    def _leave(self, key: PayloadKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._groups[entry.group] -= 1
            if not self._groups[entry.group]:
                del self._groups[entry.group]

    def _insert(self, entry: Entry) -> None:
        self._enter(entry)
        if self._policy is not None:
            self._policy.insert(entry)

    def start_anew(self) -> None:
        """The groups are others, or a commit failed: the order is made of the rows when needed."""
        self._policy = None
        self._entries.clear()
        self._groups.clear()
        self._found.clear()
        self._ages.clear()
        self._generation += 1

    async def may_regroup(self) -> None:
        """Return when the groups may become others. Who makes them so without pause waits, or the
        order would be made for ever."""
        if self._making is not None and self._is_remade:
            await first_done([self._making])
            await self._next_turn()  # those who waited for the order use it first

    # -- making room ---------------------------------------------------------------------------

    async def make_room(self, admission: Admission, need_bytes: int) -> bool:
        """Return when a write fits; True where that took a wait, over which the world went on.

        Neither the cube that is written gives way to it, nor what it stands on.
        Errors: EDQUOT, ENOSPC as `Namespaces.check_room`, after all went that may go.
        """
        space, name = admission.space, admission.name
        existing, base = admission.existing, admission.base
        spared = {
            existing.id if existing else None,
            self._prefixes.cube_of(base.key) if base else None,
        }
        has_waited = False
        while True:
            try:
                self._namespaces.check_room(space, name, need_bytes, 0 if existing else 1)
            except MemError as shortage:
                free_bytes = shortage.detail.get("free_bytes")
                if free_bytes is None or not self._can_ever_fit(space, name, need_bytes):
                    raise
                full = self._namespaces.full_group(space, name, need_bytes)
                group = self._namespaces.control.group_of(space, name)
                whom = _Whom(full, group, spared)
                reason = "room was needed on disk"
                if not await self._lose(whom, need_bytes - free_bytes, reason):
                    raise
                has_waited = True
            else:
                return has_waited

    def _can_ever_fit(self, space: Namespace, name: str, need_bytes: int) -> bool:
        lineage = self._namespaces.control.group_of(space, name).lineage
        ceilings = filter(None, (group.limits.disk.max_bytes for group in lineage))
        return need_bytes <= min([self._namespaces.budget_bytes, *ceilings])

    def balance(self) -> None:
        """Start background reclaim when the disk tier is above its high watermark."""
        if self._is_balancing or self._over(self._parameters.disk_high) <= 0:
            return
        if self._clock.monotonic_ns() >= self._rest_ns:
            self._is_balancing = True
            detach(self._balance())

    def _over(self, share: float) -> int:
        """Bytes above this share of the budget."""
        return self._namespaces.used_bytes - int(share * self._namespaces.budget_bytes)

    async def _balance(self) -> None:
        reason = "the disk tier is above its high watermark"
        try:
            while (over := self._over(self._parameters.disk_low)) > 0:
                if not await self._lose(_Whom(None, None, set()), over, reason):
                    self._rest_ns = self._clock.monotonic_ns() + _REST_NS
                    return
        finally:
            self._is_balancing = False

    async def _lose(self, whom: _Whom, lack_bytes: int, reason: str) -> bool:
        """Remove some for good. False where there is none, or that could not be recorded."""
        freed = tried = 0
        while freed < lack_bytes and tried < _STRETCH and (found := await self._victims(whom)):
            for key in found:
                if freed < lack_bytes:
                    freed += self._lose_one(key, reason)
            tried += len(found)
        if not freed:
            return False
        try:
            # They go with that commit. Should it fail, all is as it was before.
            await self._table.ledger.durable()
        except MemError:
            return False
        return True

    def _lose_one(self, key: PayloadKey, reason: str) -> int:
        """Bytes that it took; 0 where its rows are damaged, so that it stays."""
        self.forget(key)
        before_bytes = self._namespaces.used_bytes
        with suppress(MemError):
            self.on_lose(key, reason)
            self.lost += 1
        return before_bytes - self._namespaces.used_bytes

    async def _victims(self, whom: _Whom) -> list[PayloadKey]:
        """Those that may go, best first: a stretch, but one where limits protect anybody, for
        who is protected may be another without it."""
        policy = await self._order()
        sums = self._namespaces.disk_sums(self._groups)
        if not sums.groups:
            return []
        most = 1 if has_claims(sums) else _STRETCH
        for numbers in levels(sums, whom.root, whom.charger):
            orders = [policy.candidates(each) for each in numbers if each in self._groups]
            if victims := self._of_level(heapq.merge(*orders), whom.spared, most):
                return victims
        return []

    def _of_level(
        self, candidates: Iterable[Candidate], spared: Collection[bytes | None], most: int
    ) -> list[PayloadKey]:
        """Of those that are in RAM as well, none before the others."""
        found: list[PayloadKey] = []
        in_ram: list[PayloadKey] = []
        gone: list[PayloadKey] = []
        for candidate in candidates:
            if len(found) == most:
                break
            key = candidate.key
            resident = self._residents.find(key)
            if not self._table.is_kept(key):
                gone.append(key)
            elif self._prefixes.is_stood_on(key) or self._table.cache_owner(key) in spared:
                continue
            elif resident is None:
                found.append(key)
            elif not (resident.is_held or resident.is_dirty):
                in_ram.append(key)
        for key in gone:
            self.forget(key)
        return [*found, *in_ram][:most]

    # -- the order -----------------------------------------------------------------------------

    async def _order(self) -> Policy:
        """Make it, where there is none."""
        while self._policy is None or self._making is not None:
            if self._making is None:
                self._making = done = Completion[None]()
                try:
                    await self._make()
                except Exception as error:
                    self._making = None
                    done.fail(error)
                    raise
                self._making = None
                done.resolve(None)
            else:
                await self._making
        return self._policy

    async def _make(self) -> None:
        """A stretch a turn; from the start again where `start_anew` came in between."""
        self._is_remade = False
        while True:
            self.start_anew()
            generation = self._generation
            if await self._read(generation) and await self._sort(generation):
                return
            self._is_remade = True

    async def _read(self, generation: int) -> bool:
        """Find all that is kept. False where that is of no use any more."""
        start: PayloadKey | None = b""
        while start is not None:
            rows = list(islice(self._table.scan_kept(start), _STRETCH))
            for key, cube_id in rows:
                kept = self._kept(key, cube_id)
                if kept is not None:
                    self._find(kept)
            start = rows[-1][0] + b"\0" if len(rows) == _STRETCH else None
            await self._next_turn()
            if self._generation != generation:
                return False
        return True

    async def _sort(self, generation: int) -> bool:
        """Put what was found into an order. False where that is of no use any more."""
        clock = self._clock

        def now_s() -> float:
            return clock.monotonic_ns() / 1e9

        self._policy = make_guarded(self._parameters.policy, now_s, self._policy_faults, "disk")
        while self._ages:
            for _ in range(min(_STRETCH, len(self._ages))):
                _, key = heapq.heappop(self._ages)
                entry = self._found.pop(key, None)
                if entry is not None:
                    self._insert(entry)
            if self._ages:
                await self._next_turn()
                if self._generation != generation:
                    return False
        return True

    def _find(self, kept: _Kept) -> None:
        self._found[kept.entry.key] = kept.entry
        heapq.heappush(self._ages, (kept.used_ns, kept.entry.key))

    def _kept(self, key: PayloadKey, cube_id: bytes) -> _Kept | None:
        """Of a row of `kept`; None where what it names is gone or damaged."""
        with suppress(MemError):
            row = self._table.cube_row(cube_id)
            version = self._version(cube_id, row, key) if row is not None else None
            if row is None or version is None:
                return None
            used_ns = max(version.created_ns, self._heat.behaviour(cube_id).last_access_ns)
            entry = Entry(
                key=key,
                size_bytes=self._pages.charge_bytes(version),
                group=self._group(row).number,
                parent=self._prefixes.base_of(key),
                **weigh(row, self._clock)._asdict(),
            )
            return _Kept(used_ns, entry)
        return None

    def _group(self, row: CubeRow) -> Group:
        """Errors: ECORRUPT."""
        space = self._namespaces.by_id(row.namespace)
        return self._namespaces.control.group_of(space, row.name)

    def _version(self, cube_id: bytes, row: CubeRow, key: PayloadKey) -> VersionRow | None:
        if row.current.payload_id == key:
            return row.current
        older = self._table.older_versions(cube_id)
        return next((version for version in older if version.payload_id == key), None)

    def _next_turn(self) -> Completion[None]:
        done = Completion[None]()
        self._timers.after(0, lambda: done.resolve(None))
        return done


def _nobody_loses(key: PayloadKey, reason: str) -> None:
    raise RuntimeError(f"assembly left on_lose unset: {key.hex()} {reason}")
