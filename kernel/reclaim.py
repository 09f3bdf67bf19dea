"""Reclaim: makes room in RAM, before it hurts where possible.

Above the high watermark a background task evicts down to the low one; on the way there what is
dirty among the next victims is written back ahead of its time. A charge that does not fit reclaims
by itself and waits (`make_room`): what is clean goes first then, though others may be worth less,
for a write-back takes long; a cache payload that the disk refuses is lost at last; and when nothing
more can go the charge fails with need and free bytes. Memory is charged until it is given back.
The policy says who; this module says how. Kernel thread only; the bytes move on other threads.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from libmem.abi.errors import MemError
from memosd.kernel import pricing
from memosd.kernel.control import Group
from memosd.kernel.diskspace import DiskSpace
from memosd.kernel.parts import Parts
from memosd.kernel.ports import Frame, PayloadKey
from memosd.kernel.residents import Resident
from memosd.kernel.wait import Completion, detach, first_done, spawn
from memosd.kernel.workingset import WorkingSet
from memosd.kernel.writeback import WriteBack

__all__ = ["Reclaim"]

_LOOK_AHEAD: Final = 16
"""So many dirty victims are passed over for a clean one, rather than wait."""
_STRETCH: Final = 32
"""Evicted, or looked at for dirty ones, before others have their turn."""
_LOOK_AGAIN_NS: Final = 1_000_000_000
"""Who waits for the disk looks after so long whether that hangs."""
_REST_NS: Final = 1_000_000_000
"""While nothing can be written, the background looks for clean ones again after so long."""
_UNWRITABLE: Final = "could not be written back while RAM was short"
_CHEAPER: Final = "is computed again in less time than it takes to store and load it"


class Whom(NamedTuple):
    """From whom to reclaim: see `TierAccount.reclaim_levels`."""

    root: Group | None
    charger: Group | None = None


class Reclaim:
    """Eviction over the residents."""

    def __init__(self, parts: Parts, writeback: WriteBack, disk_space: DiskSpace) -> None:
        self._parts = parts
        self._parameters = parts.parameters
        self._residents = parts.residents
        self._ram = parts.ram
        self._table = parts.table
        self._memory_io = parts.memory_io
        self._heat = parts.heat
        self._timers = parts.timers
        self._clock = parts.clock
        self._pressure = parts.pressure
        self._health = parts.disk_health
        self._disk_space = disk_space
        self.writeback = writeback
        writeback.on_release = self.release
        self.working_set = WorkingSet(parts.residents.account)
        self._freeing = parts.residents.account.leaving
        self._is_balancing = False
        self._rests_until_ns = 0
        """While nothing can be written: background reclaim found too little before."""
        self._cleaned_at_bytes = 0
        self.on_lose: Callable[[PayloadKey, str], None] = _nobody_loses
        """Set at assembly: remove the versions of a cache payload that is nowhere any more."""

    # -- direct --------------------------------------------------------------------------------

    async def make_room(self, group: Group, need_bytes: int) -> None:
        """Return when a charge of this size fits; charge it before the next await.

        Errors: ENOMEM, EDQUOT with need_bytes and free_bytes, after reclaim was tried.
        """
        account = self._residents.account
        stuck: set[PayloadKey] = set()
        while (shortage := account.shortage(group, need_bytes)) is not None:
            if not account.can_ever_fit(group, need_bytes):
                account.count_refusal(group, need_bytes)
                raise shortage  # nobody else's payload could help
            whom = Whom(account.full_group(group, need_bytes), group)
            lack_bytes = max(1, need_bytes - int(shortage.detail.get("free_bytes", need_bytes)))
            lack_bytes -= self.freeing_bytes(whom.root)
            if lack_bytes <= 0:
                await first_done(self._freeing)
            elif self._evict_clean(whom, lack_bytes, shortage):
                continue
            elif not await self._reclaim_dirty(whom, stuck):
                account.count_refusal(group, need_bytes)
                if whom.root is None:
                    shortage.detail["pinned_bytes"] = self._residents.held_bytes()
                raise shortage

    def _evict_clean(self, whom: Whom, lack_bytes: int, shortage: MemError) -> bool:
        chosen: list[Resident] = []
        passed = 0
        can_wait = not self._health.is_bypassed  # else dirty ones could only be lost
        for victim in self._residents.victims_by_level(*whom, chosen):
            if not victim.is_dirty:
                chosen.append(victim)
                lack_bytes -= victim.charged_bytes
            elif can_wait:
                passed += 1
            if lack_bytes <= 0 or passed == _LOOK_AHEAD:
                break
        for victim in chosen:
            self.evict(victim, "direct reclaim", **shortage.detail)
        return bool(chosen)

    async def _reclaim_dirty(self, whom: Whom, stuck: set[PayloadKey]) -> bool:
        """Have some written back, or lose one where that fails. False when nothing can go."""
        is_bypassed = self._health.is_bypassed
        dirty = [victim for victim in self._victims(whom) if victim.is_dirty]
        fresh = [victim for victim in dirty if victim.key not in stuck]
        if fresh and not is_bypassed:
            started = [
                spawn(self._clean(each, whom, stuck)) for each in fresh[: self.writeback.depth]
            ]
            with self._pressure.waiting("disk"):
                await self._wait(started)
            return True
        under_way = [*self.writeback.writing.values(), *self._freeing]
        if under_way and self._health.hanging() is None:
            await self._wait(under_way)
            return True
        for victim in dirty:
            if await self._lose(victim, whom, _UNWRITABLE):
                return True
        return False

    def _victims(self, whom: Whom) -> Iterator[Resident]:
        """As far as anybody looks."""
        return islice(self._residents.victims_by_level(*whom), 4 * _STRETCH)

    async def _clean(self, victim: Resident, whom: Whom, stuck: set[PayloadKey]) -> None:
        """Write it back, or lose it where that is quicker for whoever needs it again."""
        try:
            if pricing.is_worth_storing(self._parts, victim):
                await self.writeback.store(victim)
            elif not await self._lose(victim, whom, _CHEAPER):
                stuck.add(victim.key)
        except MemError:
            stuck.add(victim.key)

    async def _wait(self, completions: list[Completion[None]]) -> None:
        """For one of them, or until it is time to look whether the disk hangs."""
        tick = Completion[None]()
        timer = self._timers.after(_LOOK_AGAIN_NS, lambda: tick.resolve(None))
        await first_done([*completions, tick])
        timer.cancel()

    async def _lose(self, victim: Resident, whom: Whom, reason: str) -> bool:
        """A cache payload is lost at worst; that is now. False when not even that can be done."""
        if not self._is_evictable(victim):
            return True
        levels = self._residents.account.reclaim_levels(*whom)
        if not any(victim.group.number in groups for groups in levels):
            return False  # it is protected since others of its group went
        try:
            if victim.key in self._table.volatile:  # else its unlink is under way
                self.on_lose(victim.key, reason)
            # It goes with that commit. Should that fail, all is as it was before.
            await self._table.ledger.durable()
        except MemError:
            return False
        return True

    def _is_evictable(self, victim: Resident) -> bool:
        """Still there, and nobody's, after a wait."""
        return not victim.is_held and self._residents.find(victim.key) is victim

    def refuses(self, key: PayloadKey, group: Group, charge_bytes: int) -> bool:
        """Should an absent payload rather be used without a frame of its own?"""
        account = self._residents.account
        returned = self.working_set.returned(key, charge_bytes)
        if not (self.working_set.is_thrashing and returned.is_refault):
            return False
        shortage = account.shortage(group, charge_bytes)
        if shortage is None and account.used_bytes + charge_bytes <= self._mark(
            self._parameters.ram_high
        ):
            return False
        full = account.full_group(group, charge_bytes)
        victim = next(self._residents.victims_by_level(full, group), None)
        return victim is not None and self.working_set.is_worse(returned, victim)

    # -- in the background ---------------------------------------------------------------------

    def balance(self) -> None:
        """Start background reclaim when RAM is above the high watermark, and see to it that it
        will find clean payloads when RAM is on its way there."""
        used_bytes = self._residents.account.used_bytes
        high_bytes = self._mark(self._parameters.ram_high)
        if used_bytes > high_bytes:
            if not (self._is_balancing or self._is_resting()):
                self._is_balancing = True
                detach(self._balance())
        elif used_bytes > (low_bytes := self._mark(self._parameters.ram_low)):
            # Looked at as often as an eighth of the way is covered.
            step = int((used_bytes - low_bytes) * 8 / (high_bytes - low_bytes + 1))
            if step != self._cleaned_at_bytes:
                self._cleaned_at_bytes = step
                self._clean_ahead()

    def _is_resting(self) -> bool:
        # It asks the disk last: `balance` is called at every allocation.
        return self._clock.monotonic_ns() < self._rests_until_ns and self._health.is_bypassed

    def _mark(self, share: float) -> float:
        # Of the target: the budget itself is what is used, while that is too much.
        return share * self._residents.account.budget.target_bytes

    def _clean_ahead(self) -> None:
        if self._parameters.ram_high >= 1 or self._health.is_bypassed:
            return
        ahead = islice(self._residents.victims_by_level(None), _STRETCH)
        self.writeback.hasten([victim.key for victim in ahead if victim.is_dirty])

    async def _balance(self) -> None:
        account = self._residents.account

        def over_bytes() -> float:
            used_bytes = account.used_bytes - self.freeing_bytes(None)
            return used_bytes - self._mark(self._parameters.ram_low)

        try:
            await self._reclaim_while(over_bytes, None, "above the high watermark")
            if over_bytes() > 0 and self._health.is_bypassed:
                self._rests_until_ns = self._clock.monotonic_ns() + _REST_NS
        finally:
            self._is_balancing = False

    async def shrink(self, group: Group, to_bytes: int, reason: str) -> None:
        """Reclaim a control group's payloads until it takes no more than that, as far as they
        can go."""
        account = self._residents.account
        await self._reclaim_while(
            lambda: account.used_by(group) - self.freeing_bytes(group) - to_bytes, group, reason
        )

    async def _reclaim_while(
        self, over_bytes: Callable[[], float], root: Group | None, reason: str
    ) -> None:
        """Evict in order until no byte is over; `over_bytes`: without what is on its way back."""
        stuck: set[PayloadKey] = set()
        while over_bytes() > 0:
            if self._health.is_bypassed:
                await self._reclaim_clean(over_bytes, root, reason)
                return
            batch: list[Resident] = []
            for victim in self._residents.victims_by_level(root, None, batch):
                if victim.key not in stuck:
                    batch.append(victim)
                if len(batch) == _STRETCH:
                    break
            if not batch:
                return
            if not batch[0].is_dirty:
                self._evict_front(batch, over_bytes(), reason)
                if over_bytes() > 0:
                    await self._next_turn()
            else:
                await self._clean_front(batch, Whom(root), stuck)

    async def _reclaim_clean(
        self, over_bytes: Callable[[], float], root: Group | None, reason: str
    ) -> None:
        """Evict what is clean, wherever it stands in the order, which is walked only once."""
        left_bytes = over_bytes()
        chosen: list[Resident] = []
        for victim in self._residents.victims_by_level(root, None, chosen):
            if left_bytes <= 0:
                break
            if not victim.is_dirty:
                chosen.append(victim)
                left_bytes -= victim.charged_bytes
        for start in range(0, len(chosen), _STRETCH):
            batch = [each for each in chosen[start : start + _STRETCH] if self._is_evictable(each)]
            self._evict_front(batch, over_bytes(), reason)
            await self._next_turn()

    def _evict_front(self, batch: list[Resident], over_bytes: float, reason: str) -> None:
        for victim in batch:
            if victim.is_dirty or over_bytes <= 0:
                return
            over_bytes -= self.evict(victim, reason)

    async def _clean_front(self, batch: list[Resident], whom: Whom, stuck: set[PayloadKey]) -> None:
        """Write several back, and wait for the first in the order."""
        dirty = [victim for victim in batch if victim.is_dirty][: self.writeback.depth]
        started = [spawn(self._clean(victim, whom, stuck)) for victim in dirty]
        while not started[0].is_done and self._health.hanging() is None:
            await self._wait(started[:1])
        if not started[0].is_done:
            stuck.add(dirty[0].key)

    def _next_turn(self) -> Completion[None]:
        done = Completion[None]()
        self._timers.after(0, lambda: done.resolve(None))
        return done

    def notices(self) -> list[str]:
        """What people should know."""
        return [*self.writeback.notices(), *self.working_set.notices()]

    # -- how -----------------------------------------------------------------------------------

    def evict(self, victim: Resident, reason: str, **numbers: float | str) -> int:
        """Drop a clean, unheld resident; returns the bytes freed."""
        self._heat.count_eviction(victim.cube_id)
        account = self._residents.account
        self._heat.decide(
            victim.cube_id,
            "evict",
            reason,
            freed_bytes=victim.charged_bytes,
            used_bytes=account.used_bytes,
            budget_bytes=account.budget_bytes,
            **numbers,
        )
        self.working_set.note_eviction(victim)
        self._disk_space.touch(victim.key)
        self._discard(victim, is_reclaim=True)
        return victim.charged_bytes

    def discard(self, resident: Resident) -> None:
        """Drop a resident that is gone for good, and free its frame."""
        self.working_set.forget(resident.key)
        self._discard(resident, is_reclaim=False)

    def _discard(self, resident: Resident, *, is_reclaim: bool) -> None:
        self._residents.drop(resident, is_reclaim=is_reclaim)
        frame = self._ram.take(resident.key)
        self.free(resident.group, frame, resident.charged_bytes)

    def free(self, group: Group, frame: Frame, charged_bytes: int) -> None:
        """Give memory back that is under no key; it is charged until it is."""
        account = self._residents.account
        if charged_bytes <= self._parameters.free_at_once_bytes:
            self._ram.discard(frame)
            account.release(group, charged_bytes)
            return
        # The pages of a large memfd are freed one by one: milliseconds, so not on this thread.
        done = self._memory_io.run(self._ram.discard, frame)
        self._freeing[done] = group, charged_bytes

        def release() -> None:
            self._freeing.pop(done, None)
            account.release(group, charged_bytes)

        done.on_done(release)

    def freeing_bytes(self, root: Group | None) -> int:
        """Charged, but about to be given back; of a subtree, or (None) of all."""
        return sum(
            size_bytes
            for group, size_bytes in self._freeing.values()
            # By number: rows that come back make new objects.
            if root is None or any(each.number == root.number for each in group.lineage)
        )

    def release(self, resident: Resident, kind: str) -> None:
        """Let go of a hold (`pins`, `maps`, `busy`); the last one of an orphan frees it."""
        self._residents.let_go(resident, kind)
        if resident.is_orphan and not resident.is_held:
            self.discard(resident)


def _nobody_loses(key: PayloadKey, reason: str) -> None:
    raise RuntimeError(f"assembly left on_lose unset: {key.hex()} {reason}")
