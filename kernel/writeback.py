"""Write-back: cache payloads on their way from RAM to disk, oldest first.

Each is due a while after it came, several go at a time, and never faster than a share of what the
disk was measured to do, so that faults find it free. Where RAM is short neither delay nor share
counts. What the disk refuses is tried again, ever more rarely; a disk that fails in a row is left
alone but for one try at a time (`tierhealth.py`), and once it takes a payload again so are all
others offered. Kernel thread only; the bytes move on I/O threads.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from libmem.abi import failpoints
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import StoredForm
from memosd.kernel import pricing
from memosd.kernel.diskspace import DiskSpace
from memosd.kernel.pagefiles import Stored
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.residents import Resident
from memosd.kernel.timers import Timer
from memosd.kernel.wait import Completion, detach

__all__ = ["WriteBack"]

_log = structlog.get_logger("memosd.kernel")
_NS: Final = 1_000_000_000
_RETRY_FIRST_NS: Final = _NS
"""A write-back that failed is tried again after this long, then after twice as long, and so on."""
_RETRY_MAX_NS: Final = 60 * _NS
_BURST_NS: Final = _NS
"""A disk that had nothing to do for so long may catch up on as much."""
_AT_ONCE: Final = 0
_RUNNING: Final = -1


class WriteBack:
    """All dirty payloads, and when each is to be stored."""

    def __init__(self, parts: Parts, disk_space: DiskSpace) -> None:
        self._parts = parts
        self._parameters = parts.parameters
        self._residents = parts.residents
        self._disk = parts.disk
        self._pages = parts.pages
        self._namespaces = parts.namespaces
        self._table = parts.table
        self._io = parts.io
        self._heat = parts.heat
        self._clock = parts.clock
        self._timers = parts.timers
        self._turns = parts.turns
        self._health = parts.disk_health
        self._disk_space = disk_space
        self.writing: dict[PayloadKey, Completion[None]] = {}
        self.storing: set[PayloadKey] = set()
        """Page files being written; no orphans though no row names them yet."""
        self._due: dict[PayloadKey, int] = {}
        """When each is to be stored, by the monotonic clock; or `_RUNNING`, or `_AT_ONCE`."""
        self._queue: list[tuple[int, int, PayloadKey]] = []
        """A heap of (due, order, payload); of no meaning where `_due` says otherwise by now."""
        self._order = itertools.count()
        self._pauses: dict[PayloadKey, int] = {}
        """Of those that failed: how long until the try after the next."""
        self._running = 0
        self._is_pumping = False
        self._free_ns = 0
        """When the disk will have done what was begun, had it its share only."""
        self._wake: tuple[int, Timer] | None = None
        self._was_failing = False
        self.on_release: Callable[[Resident, str], None] = _nobody_releases
        """Set by reclaim, which frees what was held by us only."""

    # -- when ----------------------------------------------------------------------------------

    def later(self, key: PayloadKey, delay_ns: int) -> None:
        """Store a cache payload on disk once the delay has passed, or as soon as that works."""
        if key not in self._due:
            self._schedule(key, self._clock.monotonic_ns() + delay_ns)
            self._pump()

    def hasten(self, keys: Iterable[PayloadKey]) -> None:
        """Their room will be needed: store them before all others, but those that failed."""
        for key in keys:
            if self._due.get(key, _RUNNING) > _AT_ONCE and key not in self._pauses:
                self._schedule(key, _AT_ONCE)
        self._pump()

    @property
    def depth(self) -> int:
        """How many are stored at a time: a thread is left to faults while there is room."""
        threads = self._parameters.io_threads
        return threads if self._is_ram_short else max(1, threads - 1)

    @property
    def _is_ram_short(self) -> bool:
        account = self._residents.account
        return account.used_bytes > self._parameters.ram_high * account.budget.target_bytes

    def _schedule(self, key: PayloadKey, due_ns: int) -> None:
        self._due[key] = due_ns
        heapq.heappush(self._queue, (due_ns, next(self._order), key))

    def _pump(self) -> None:
        """Begin what is due, as far as the disk should have it now."""
        if self._is_pumping:
            return  # one ended at once; the loop below goes on
        self._is_pumping = True
        self._begin_due()
        self._is_pumping = False

    def _begin_due(self) -> None:
        while self._queue:
            due_ns, _, key = self._queue[0]
            if self._due.get(key) != due_ns:
                heapq.heappop(self._queue)
                continue
            if self._running >= (1 if self._health.is_failing else self.depth):
                return  # the one that ends pumps
            start_ns = self._start_ns(due_ns)
            if start_ns > self._clock.monotonic_ns():
                self._wake_at(start_ns)
                return
            heapq.heappop(self._queue)
            self._due[key] = _RUNNING
            self._running += 1
            detach(self._store_due(key)).on_done(self._note_end)

    def _start_ns(self, due_ns: int) -> int:
        if self._health.is_failing:
            return max(due_ns, self._health.retry_ns)
        if due_ns == _AT_ONCE or self._is_ram_short:
            return due_ns
        return max(due_ns, self._free_ns)

    def _wake_at(self, start_ns: int) -> None:
        if self._wake is not None and self._wake[0] <= start_ns:
            return
        if self._wake is not None:
            self._wake[1].cancel()

        def wake() -> None:
            self._wake = None
            self._pump()

        delay_ns = start_ns - self._clock.monotonic_ns()
        self._wake = start_ns, self._timers.after(delay_ns, wake)

    def _spend(self, size_bytes: int) -> None:
        """Of the share of the disk that write-back may have."""
        bytes_per_s = self._parameters.writeback_share * self._health.store_bytes_per_s
        if bytes_per_s:
            begin_ns = max(self._free_ns, self._clock.monotonic_ns() - _BURST_NS)
            self._free_ns = begin_ns + int(size_bytes / bytes_per_s * _NS)

    def _note_end(self) -> None:
        self._running -= 1
        self._pump()

    async def _store_due(self, key: PayloadKey) -> None:
        resident = self._residents.find(key)
        try:
            if resident is None or resident.is_orphan or not resident.is_dirty:
                self._settle_clean(key)
            elif pricing.is_worth_storing(self._parts, resident):
                self._spend(resident.charged_bytes)
                await self.store(resident)
            else:  # the next estimate may be another
                self._schedule(key, self._clock.monotonic_ns() + _RETRY_MAX_NS)
                return
        except MemError as error:
            pause_ns = self._pauses.get(key, _RETRY_FIRST_NS)
            if key not in self._pauses:  # said once; each failure is among the decisions
                _log.warning("a write-back failed", payload=key.hex(), error=str(error))
            self._pauses[key] = min(2 * pause_ns, _RETRY_MAX_NS)
            self._schedule(key, self._clock.monotonic_ns() + pause_ns)
            return
        self._pauses.pop(key, None)
        self._due.pop(key, None)

    def _note_recovery(self) -> None:
        """The disk takes payloads again: whatever it refused is due now."""
        if self._was_failing and not self._health.is_failing:
            waiting = [key for key in self._pauses if self._due.get(key, _RUNNING) != _RUNNING]
            self._pauses.clear()
            for key in waiting:
                self._schedule(key, self._clock.monotonic_ns())
        self._was_failing = self._health.is_failing

    def notices(self) -> list[str]:
        """What people should know of the disk."""
        return self._health.notices(len(self._table.volatile))

    # -- how -----------------------------------------------------------------------------------

    async def store(self, resident: Resident) -> None:
        """Store a dirty resident on disk; concurrent calls share one. Errors: ENOSPC, EIO."""
        running = self.writing.get(resident.key)
        if running is not None:
            await running
            return
        manifest = resident.manifest
        if manifest is None:
            return
        done: Completion[None] = Completion()
        self.writing[resident.key] = done
        self._residents.hold(resident, "stores")
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
        self._note_recovery()
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
        self._table.set_kept(resident.key, resident.cube_id)
        more_bytes = self._disk.charge_bytes(form.size_bytes) - whole_bytes
        self._namespaces.charge(space, row.name, more_bytes)
        await self._table.ledger.durable()
        resident.manifest = None

    def _written(self, resident: Resident, stored: Stored | None, failure: MemError | None) -> None:
        key = resident.key
        del self.writing[key]
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
            self._disk_space.keep(resident)
            self._heat.decide(
                resident.cube_id,
                "write-back",
                "the cache payload is on disk now",
                size_bytes=resident.frame.size_bytes,
            )
        self.on_release(resident, "stores")

    def _settle(self, resident: Resident) -> None:
        """It is on disk now. Dirty again, should the commit that says so fail."""
        failpoints.hit("writeback.settle.before")
        manifest, resident.manifest = resident.manifest, None
        self._table.set_kept(resident.key, resident.cube_id)

        def restore(failure: MemError | None) -> None:
            if failure is not None:
                resident.manifest = manifest
                self.later(resident.key, _RETRY_FIRST_NS)

        ledger = self._table.ledger
        ledger.when_durable(ledger.pending_barrier(), restore)

    async def store_all(self) -> None:
        """Store every dirty resident. Errors: the last failure, after all were tried."""
        failure: MemError | None = None
        for resident in self._residents:
            if resident.is_orphan or self._residents.find(resident.key) is not resident:
                continue  # unlinked while another one was written
            try:
                await self.store(resident)
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
            self._table.set_kept(key, self._table.volatile[key])


def _nobody_releases(resident: Resident, kind: str) -> None:
    raise RuntimeError(f"assembly left on_release unset: {resident.key.hex()} {kind}")
