"""Reclaim: makes room in RAM, before it hurts where possible.

Above the high watermark a background task evicts down to the low one. A charge that does not fit
reclaims by itself and waits (`make_room`); when nothing more can go it fails with need and free
bytes. Dirty payloads are written back before they go, and otherwise a while after they came; what
the disk refuses is tried again, ever more rarely. The policy says who; this module says how.
Kernel thread only; the bytes move on I/O threads.
"""

from collections.abc import Callable
from typing import Final

import structlog

from libmem.abi import failpoints
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import StoredForm
from memosd.kernel.control import Group
from memosd.kernel.pagefiles import Stored
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.residents import Resident
from memosd.kernel.wait import Completion, detach

__all__ = ["Reclaim"]

_log = structlog.get_logger("memosd.kernel")
_RETRY_FIRST_NS: Final = 1_000_000_000
"""A write-back that failed is tried again after this long, then after twice as long, and so on."""
_RETRY_MAX_NS: Final = 60_000_000_000
"""A full disk has room again when somebody makes some: within a minute that is seen."""


class Reclaim:
    """Eviction and write-back over the residents."""

    def __init__(self, parts: Parts) -> None:
        self._parameters = parts.parameters
        self._residents = parts.residents
        self._ram = parts.ram
        self._disk = parts.disk
        self._pages = parts.pages
        self._namespaces = parts.namespaces
        self._table = parts.table
        self._io = parts.io
        self._heat = parts.heat
        self._timers = parts.timers
        self._turns = parts.turns
        self._writing: dict[PayloadKey, Completion[None]] = {}
        self._due: set[PayloadKey] = set()
        """Payloads that will be written back in time."""
        self.storing: set[PayloadKey] = set()
        """Page files being written; no orphans though no row names them yet."""
        self._is_balancing = False
        self.on_lose: Callable[[PayloadKey, str], None] = _nobody_loses
        """Set at assembly: remove the versions of a cache payload that is nowhere any more."""

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
            full = account.full_group(group, need_bytes)
            victim = self._victim(account.reclaim_levels(full, group), stuck)
            if victim is not None:
                if not await self._take(victim, "direct reclaim", shortage):
                    stuck.add(victim.key)
            elif self._writing:
                await _quietly(next(iter(self._writing.values())))
            else:
                account.count_refusal(group, need_bytes)
                raise shortage

    async def shrink(self, group: Group, to_bytes: int, reason: str) -> None:
        """Reclaim a control group's payloads until it takes no more than that, as far as they
        can go."""
        account = self._residents.account
        stuck: set[PayloadKey] = set()
        while account.used_by(group) > to_bytes:
            victim = self._victim(account.reclaim_levels(group), stuck)
            if victim is None:
                return
            if not await self._take(victim, reason, None):
                stuck.add(victim.key)

    def _victim(self, levels: list[list[int]], stuck: set[PayloadKey]) -> Resident | None:
        for groups in levels:
            victims = self._residents.victims(groups)
            for victim in victims:
                if victim.key not in stuck:
                    return victim
        return None

    def balance(self) -> None:
        """Start background reclaim when RAM is above the high watermark."""
        account = self._residents.account
        if not self._is_balancing and account.used_bytes > self._high_bytes:
            self._is_balancing = True
            detach(self._balance())

    @property
    def _high_bytes(self) -> float:
        return self._parameters.ram_high * self._residents.account.budget_bytes

    async def _balance(self) -> None:
        account = self._residents.account
        low_bytes = self._parameters.ram_low * account.budget_bytes
        stuck: set[PayloadKey] = set()
        try:
            while account.used_bytes > low_bytes:
                victim = self._victim(account.reclaim_levels(None), stuck)
                if victim is None:
                    return
                if not await self._take(victim, "above the high watermark", None):
                    stuck.add(victim.key)
        finally:
            self._is_balancing = False

    async def _take(self, victim: Resident, reason: str, shortage: MemError | None) -> bool:
        """Evict it; False when it has to stay, so that another one must go."""
        if victim.is_dirty:
            try:
                await self.write_back(victim)
            except MemError:
                # It cannot be kept on disk, and that is not yet worth its loss.
                return False if shortage is None else await self._lose(victim)
            if not self._is_evictable(victim):
                return True
        numbers = dict(shortage.detail) if shortage else {}
        self.evict(victim, reason, **numbers)
        return True

    def _is_evictable(self, victim: Resident) -> bool:
        """Still there, and nobody's, after a wait."""
        return not victim.is_held and self._residents.find(victim.key) is victim

    async def _lose(self, victim: Resident) -> bool:
        """A cache payload is lost at worst; that is now. False when not even that can be done."""
        if not self._is_evictable(victim):
            return True
        try:
            if victim.key in self._table.volatile:  # else its unlink is under way
                self.on_lose(victim.key, "could not be written back while RAM was short")
            # It goes with that commit. Should that fail, all is as it was before.
            await self._table.ledger.durable()
        except MemError:
            return False
        return True

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
        self._discard(victim, is_reclaim=True)
        return victim.charged_bytes

    def discard(self, resident: Resident) -> None:
        """Drop a resident that is gone for good, and free its frame."""
        self._discard(resident, is_reclaim=False)

    def _discard(self, resident: Resident, *, is_reclaim: bool) -> None:
        self._residents.drop(resident, is_reclaim=is_reclaim)
        # Closing a large memfd frees its pages one by one: milliseconds, so not on this thread.
        self._io.run(self._ram.discard, self._ram.take(resident.key))

    def release(self, resident: Resident, kind: str) -> None:
        """Let go of a hold (`pins`, `maps`, `busy`); the last one of an orphan frees it."""
        self._residents.let_go(resident, kind)
        if resident.is_orphan and not resident.is_held:
            self.discard(resident)

    def write_back_later(self, key: PayloadKey, delay_ns: int) -> None:
        """Store a cache payload on disk once the delay has passed, or as soon as that works."""
        if key not in self._due:
            self._due.add(key)
            self._retry_after(delay_ns, key, _RETRY_FIRST_NS)

    def _retry_after(self, delay_ns: int, key: PayloadKey, pause_ns: int) -> None:
        def start() -> None:
            detach(self._write_back_due(key, pause_ns))

        self._timers.after(delay_ns, start)

    async def _write_back_due(self, key: PayloadKey, pause_ns: int) -> None:
        resident = self._residents.find(key)
        try:
            if resident is None or resident.is_orphan or not resident.is_dirty:
                self._settle_clean(key)
            else:
                await self.write_back(resident)
        except MemError as error:
            if pause_ns == _RETRY_FIRST_NS:  # said once; each failure is among the decisions
                _log.warning("a write-back failed", payload=key.hex(), error=str(error))
            self._retry_after(pause_ns, key, min(2 * pause_ns, _RETRY_MAX_NS))
            return
        self._due.discard(key)

    async def write_back(self, resident: Resident) -> None:
        """Store a dirty resident on disk; concurrent calls share one. Errors: ENOSPC, EIO."""
        running = self._writing.get(resident.key)
        if running is not None:
            await running
            return
        manifest = resident.manifest
        if manifest is None:
            return
        done: Completion[None] = Completion()
        self._writing[resident.key] = done
        self._residents.hold(resident, "busy")
        self.storing.add(resident.key)
        failure: MemError | None = None
        stored: Stored | None = None
        try:
            frame, coding = resident.frame, resident.coding
            await self._turns.enter(resident.group, frame.size_bytes)
            try:
                stored = await self._pages.store(resident.key, frame, manifest, coding)
            finally:
                self._turns.leave()
            if stored is not None and stored.form is not None:
                await self._record(resident, stored.form)
        except MemError as error:
            failure = error
        self._written(resident, stored, failure)
        if failure is None:
            done.resolve(None)
            return
        done.fail(failure)
        raise failure

    async def _record(self, resident: Resident, form: StoredForm) -> None:
        """Say in the table what the file holds. Errors: ENOSPC, EIO, ECORRUPT.

        Dirty until that is durable: should it fail, nothing would tell what lies in the file.
        """
        if not self._table.has_payload(resident.key):
            # Its unlink is under way: either it is an orphan afterwards, or that failed and so
            # does this. No row of it may come back by us.
            await self._table.ledger.durable()
            return
        row = self._table.cube_row(resident.cube_id)
        if row is None:
            raise MemError(Errno.ECORRUPT, "the cube of a payload in RAM is missing")
        space = self._namespaces.by_id(row.namespace)
        whole_bytes = self._disk.charge_bytes(resident.frame.size_bytes)
        failpoints.hit("writeback.form.before")
        self._table.put_page_file(resident.key, resident.cube_id, form)
        self._table.set_settled(resident.key)
        more_bytes = self._disk.charge_bytes(form.size_bytes) - whole_bytes
        self._namespaces.charge(space, row.name, more_bytes)
        await self._table.ledger.durable()
        resident.manifest = None

    def _written(self, resident: Resident, stored: Stored | None, failure: MemError | None) -> None:
        key = resident.key
        del self._writing[key]
        self.storing.discard(key)
        if failure is not None:
            self._heat.decide(resident.cube_id, "write-back failed", str(failure))
        elif resident.is_orphan:
            self._io.run(self._disk.free, key)
        else:
            if stored is not None:
                self._heat.decide(resident.cube_id, "encode", stored.reason)
            if resident.is_dirty:
                self._settle(resident)
            self._heat.decide(
                resident.cube_id,
                "write-back",
                "the cache payload is on disk now",
                size_bytes=resident.frame.size_bytes,
            )
        self.release(resident, "busy")

    def _settle(self, resident: Resident) -> None:
        """It is on disk now. Dirty again, should the commit that says so fail."""
        failpoints.hit("writeback.settle.before")
        manifest, resident.manifest = resident.manifest, None
        self._table.set_settled(resident.key)

        def restore(failure: MemError | None) -> None:
            if failure is not None:
                resident.manifest = manifest
                self.write_back_later(resident.key, _RETRY_FIRST_NS)

        ledger = self._table.ledger
        ledger.when_durable(ledger.pending_barrier(), restore)

    async def write_back_all(self) -> None:
        """Store every dirty resident. Errors: the last failure, after all were tried."""
        failure: MemError | None = None
        for resident in self._residents:
            if resident.is_orphan or self._residents.find(resident.key) is not resident:
                continue  # unlinked while another one was written
            try:
                await self.write_back(resident)
            except MemError as error:
                failure = error
        for key in list(self._table.volatile):
            self._settle_clean(key)
        if failure is not None:
            raise failure

    def _settle_clean(self, key: PayloadKey) -> None:
        """Of a payload that went from RAM: say again that it is on disk, should that commit have
        failed."""
        resident = self._residents.find(key)
        if key in self._table.volatile and (resident is None or not resident.is_dirty):
            self._table.set_settled(key)


def _nobody_loses(key: PayloadKey, reason: str) -> None:
    raise RuntimeError(f"assembly left on_lose unset: {key.hex()} {reason}")


async def _quietly(completion: Completion[None]) -> None:
    """Wait for somebody else's work; its failure is theirs to handle."""
    try:
        await completion
    except MemError:
        return
