"""Reclaim: makes room in RAM, before it hurts where possible.

Above the high watermark a background task evicts down to the low one. A charge that does not fit
reclaims by itself and waits (`make_room`); when nothing more can go it fails with need and free
bytes. Dirty payloads are written back before they go. The policy says who; this module says how.
Kernel thread only; the bytes move on I/O threads.
"""

from collections.abc import Callable

from libmem.abi.errors import Errno, MemError
from memosd.kernel.namespace import Namespace
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.residents import Resident
from memosd.kernel.wait import Completion, detach

__all__ = ["Reclaim"]


class Reclaim:
    """Eviction and write-back over the residents."""

    def __init__(self, parts: Parts) -> None:
        self._parameters = parts.parameters
        self._residents = parts.residents
        self._ram = parts.ram
        self._disk = parts.disk
        self._table = parts.table
        self._io = parts.io
        self._heat = parts.heat
        self._writing: dict[PayloadKey, Completion[None]] = {}
        self.storing: set[PayloadKey] = set()
        """Page files being written; no orphans though no row names them yet."""
        self._is_balancing = False
        self.on_lose: Callable[[PayloadKey, str], None] = _nobody_loses
        """Set at assembly: remove the versions of a cache payload that is nowhere any more."""

    async def make_room(self, space: Namespace, need_bytes: int) -> None:
        """Return when a charge of this size fits; charge it before the next await.

        Errors: ENOMEM, EDQUOT with need_bytes and free_bytes, after reclaim was tried.
        """
        account = self._residents.account
        while (shortage := account.shortage(space, need_bytes)) is not None:
            only = space if shortage.errno is Errno.EDQUOT else None
            victim = next(self._residents.victims(only), None)
            if victim is not None:
                await self._take(victim, "direct reclaim", shortage)
            elif self._writing:
                await _quietly(next(iter(self._writing.values())))
            else:
                raise shortage

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
        try:
            while account.used_bytes > low_bytes:
                victim = next(self._residents.victims(None), None)
                if victim is None:
                    return
                await self._take(victim, "above the high watermark", None)
        finally:
            self._is_balancing = False

    async def _take(self, victim: Resident, reason: str, shortage: MemError | None) -> None:
        if victim.is_dirty:
            try:
                await self.write_back(victim)
            except MemError:
                # It could not be kept on disk. A cache payload is lost at worst; that is now.
                if not victim.is_held and self._residents.find(victim.key) is victim:
                    self.on_lose(victim.key, "could not be written back while RAM was short")
                return
            if victim.is_held or self._residents.find(victim.key) is not victim:
                return
        numbers = dict(shortage.detail) if shortage else {}
        self.evict(victim, reason, **numbers)

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
        self.discard(victim)
        return victim.charged_bytes

    def discard(self, resident: Resident) -> None:
        """Drop a resident and free its frame."""
        self._residents.drop(resident)
        # Closing a large memfd frees its pages one by one: milliseconds, so not on this thread.
        self._io.run(self._ram.discard, self._ram.take(resident.key))

    def release(self, resident: Resident, kind: str) -> None:
        """Let go of a hold (`pins`, `maps`, `busy`); the last one of an orphan frees it."""
        self._residents.let_go(resident, kind)
        if resident.is_orphan and not resident.is_held:
            self.discard(resident)

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
        try:
            await self._io.run(self._disk.store, resident.key, resident.frame.fd, manifest)
        except MemError as error:
            failure = error
        self._written(resident, failure)
        if failure is None:
            done.resolve(None)
            return
        done.fail(failure)
        raise failure

    def _written(self, resident: Resident, failure: MemError | None) -> None:
        key = resident.key
        del self._writing[key]
        self.storing.discard(key)
        if failure is not None:
            self._heat.decide(resident.cube_id, "write-back failed", str(failure))
        elif resident.is_orphan:
            self._io.run(self._disk.free, key)
        else:
            resident.manifest = None
            self._table.set_settled(key)
            self._heat.decide(
                resident.cube_id,
                "write-back",
                "the cache payload is on disk now",
                size_bytes=resident.frame.size_bytes,
            )
        self.release(resident, "busy")

    async def write_back_all(self) -> None:
        """Store every dirty resident. Errors: the last failure, after all were tried."""
        failure: MemError | None = None
        for resident in self._residents:
            try:
                await self.write_back(resident)
            except MemError as error:
                failure = error
        if failure is not None:
            raise failure


def _nobody_loses(key: PayloadKey, reason: str) -> None:
    raise RuntimeError(f"assembly left on_lose unset: {key.hex()} {reason}")


async def _quietly(completion: Completion[None]) -> None:
    """Wait for somebody else's work; its failure is theirs to handle."""
    try:
        await completion
    except MemError:
        return
