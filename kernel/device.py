"""The device tier: payloads copied into an accelerator's memory, which a worker process owns.

The account, the policy and the residents are kept here as they are for RAM, by the same classes;
the worker copies frames in and drops them. What is here is also in RAM or on disk, so a frame is
always clean: it goes without being written, and when the worker dies all of them are gone, held or
not, and whoever asks next has them copied again. A device of the host (`cpu`) has its frames in
sealed memory of this process, which the worker fills; any other has them in the worker, and clients
open them by what it tells. Kernel thread only.
"""

from typing import Final

import msgspec
import structlog

from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import DropRequest, JobClass, LoadRequest, LoadResult
from libmem.abi.state import TierStat
from memosd.kernel.control import Group
from memosd.kernel.costs import COPY
from memosd.kernel.governance import weight_of
from memosd.kernel.jobs import Job, Jobs
from memosd.kernel.namespace import Namespace
from memosd.kernel.pager import Pager
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.ports import Frame, PayloadKey
from memosd.kernel.residents import Resident
from memosd.kernel.wait import Completion, first_done

__all__ = ["HOST", "Device", "DeviceFrame"]

_log = structlog.get_logger("memosd.kernel")
HOST: Final = "cpu"
"""The device whose frames are this machine's own memory."""


class _Transfer:
    """A copy under way: what its worker may map."""

    __slots__ = ("charged_bytes", "done", "group", "source", "target")

    def __init__(self, group: Group) -> None:
        self.done: Completion[None] = Completion()
        self.group = group
        """Whom it is charged to; a rename changes that."""
        self.charged_bytes: int | None = None
        """None before room was made for it."""
        self.source: Frame | None = None
        self.target: Frame | None = None
        """Set where the frame is the host's memory."""


class DeviceFrame:
    """Memory that is a worker's."""

    __slots__ = ("fd", "is_sealed", "opening", "pid", "size_bytes")

    def __init__(self, size_bytes: int, opening: bytes, pid: int) -> None:
        self.fd = -1
        self.is_sealed = True
        self.size_bytes = size_bytes
        self.opening = opening
        """What clients open it with."""
        self.pid = pid


class Device:
    """See the head of this file."""

    def __init__(self, parts: Parts, pager: Pager, jobs: Jobs) -> None:
        self.name = parts.parameters.device
        self.residents = parts.on_device
        self._ram = parts.ram
        self._table = parts.table
        self._clock = parts.clock
        self._control = parts.namespaces.control
        self._memory_io = parts.memory_io
        self._free_at_once_bytes = parts.parameters.free_at_once_bytes
        self._freeing: set[Completion[None]] = set()
        """The host's memory on its way back."""
        self._heat = parts.heat
        self._costs = parts.costs
        self._pressure = parts.pressure
        self._pager = pager
        self.jobs = jobs
        self._transfers: dict[PayloadKey, _Transfer] = {}
        self._unsent: list[PayloadKey] = []
        """Frames that the worker was not told to drop yet."""
        jobs.on_worker_lost.append(self._worker_lost)
        pager.above.append(self)

    # -- bringing in ---------------------------------------------------------------------------

    async def fault(self, cube: Cube, space: Namespace) -> Resident:
        """The resident of this payload, copied there where absent. Hold it before the next await.

        Errors: EOPNOTSUPP (there is no device, or no worker for it), ENOMEM, EDQUOT, EAGAIN, EIO,
        and those of a fault in RAM.
        """
        if not self.jobs.is_possible:
            raise MemError(Errno.EOPNOTSUPP, self.jobs.problem)
        while (resident := self.residents.find(cube.key)) is None:
            running = self._transfers.get(cube.key)
            # Then look again: whoever waited for it before us may have evicted it.
            if running is None:
                await self._transfer(cube, space)
            else:
                await running.done
        self.residents.policy.touch(cube.key)
        return resident

    async def _transfer(self, cube: Cube, space: Namespace) -> None:
        group = self._control.group_of(space, cube.row.name)
        transfer = self._transfers[cube.key] = _Transfer(group)
        try:
            await self._bring_in(cube, space, transfer)
        except BaseException as error:
            del self._transfers[cube.key]
            transfer.done.fail(error)
            raise
        del self._transfers[cube.key]
        transfer.done.resolve(None)

    async def _bring_in(self, cube: Cube, space: Namespace, transfer: _Transfer) -> None:
        source = await self._pager.fault(cube, space)
        self._pager.residents.hold(source, "busy")
        try:
            transfer.source = source.frame
            with self._pressure.waiting("device"):
                await self._copy(cube, transfer)
        finally:
            transfer.source = None
            self._pager.reclaim.release(source, "busy")

    async def _copy(self, cube: Cube, transfer: _Transfer) -> None:
        """Reserve, copy, look at the world again, and let it in."""
        size_bytes = cube.version.size_bytes
        charge_bytes = self._ram.charge_bytes(size_bytes)
        await self._make_room(transfer, charge_bytes)
        self.residents.account.charge(transfer.group, charge_bytes)
        transfer.charged_bytes = charge_bytes
        try:
            if self.is_host:
                transfer.target = self._ram.allocate(size_bytes)
            self._send_drops()  # the worker does these first
            request = LoadRequest(cube.key, size_bytes)
            job = self.jobs.submit(JobClass.LOAD, cube.row.namespace, request)
            opening = _opening(await job.done)
            self._costs.observe(COPY, size_bytes, job.took_ns / 1e9)
            self._check_after(cube, job)
            frame = self._sealed(transfer, DeviceFrame(size_bytes, opening, job.pid))
        except BaseException:
            if transfer.target is not None:
                self._free(transfer.target, transfer.group, charge_bytes)
            else:
                self.residents.account.release(transfer.group, charge_bytes)
                if not self.is_host:
                    self._drop_there(cube.key)
            raise
        resident = Resident(cube.id, cube.key, frame, transfer.group)
        resident.charged_bytes = charge_bytes
        resident.weight = weight_of(self._table, self._clock, cube.id)
        resident.restore_s = self._costs.transfer(COPY, size_bytes).seconds
        resident.parent = self._pager.base_of(cube.key)
        self.residents.add(resident)
        self._decide(resident, "promote", f"copied to {self.name}")

    @property
    def is_host(self) -> bool:
        """Are its frames this machine's own memory?"""
        return self.name == HOST

    def _check_after(self, cube: Cube, job: Job) -> None:
        """Errors: ENOENT (unlinked during the copy), EIO (the worker is gone, and so is it)."""
        if not self._table.has_payload(cube.key):
            raise MemError(Errno.ENOENT, "unlinked while it was copied", cube=cube.row.name)
        if not self.jobs.crew.is_member(job.pid):
            raise MemError(Errno.EIO, "the device's worker ended", cube=cube.row.name)

    def _sealed(self, transfer: _Transfer, frame: Frame) -> Frame:
        """The host's memory, which nobody writes into any more; else the worker's frame."""
        if transfer.target is None:
            return frame
        self._ram.seal(transfer.target, transfer.target.size_bytes)
        return transfer.target

    async def _make_room(self, transfer: _Transfer, need_bytes: int) -> None:
        """Nothing has to be written; only for the host's memory to be given back one waits.
        Charge it before the next await. Errors: ENOMEM, EDQUOT."""
        account = self.residents.account
        while (shortage := account.shortage(transfer.group, need_bytes)) is not None:
            if self._freeing:
                await first_done(self._freeing)
                continue
            group, victim = transfer.group, None
            if account.can_ever_fit(group, need_bytes):
                full = account.full_group(group, need_bytes)
                victim = self._victim(account.reclaim_levels(full, group))
            if victim is None:
                account.count_refusal(group, need_bytes)
                raise shortage
            self.evict(victim, "room on the device", **shortage.detail)

    def _victim(self, levels: list[list[int]]) -> Resident | None:
        found = (next(self.residents.victims(groups), None) for groups in levels)
        return next((victim for victim in found if victim is not None), None)

    def frames_for(self, pid: int, key: PayloadKey) -> list[int]:
        """Descriptors for the worker that copies: what to read, and on the host where to write.

        Errors: EBADF.
        """
        transfer = self._transfers.get(key)
        if transfer is None or transfer.source is None or not self.jobs.crew.is_member(pid):
            raise MemError(Errno.EBADF, "no such copy is under way")
        target = [transfer.target.fd] if transfer.target is not None else []
        return [transfer.source.fd, *target]

    # -- holding and letting go ----------------------------------------------------------------

    def hold(self, resident: Resident, kind: str) -> None:
        """`kind`: pins or maps."""
        self.residents.hold(resident, kind)

    def release(self, resident: Resident, kind: str) -> None:
        """Let go of a hold; the last one of what was set apart frees its memory."""
        self.residents.let_go(resident, kind)
        if resident.is_orphan and not resident.is_held:
            self._release(resident)

    def evict(self, resident: Resident, reason: str, **numbers: float | str) -> int:
        """Drop an unheld resident; returns the bytes freed."""
        self._decide(resident, "demote", reason, **numbers)
        self.residents.drop(resident, is_reclaim=True)
        self._release(resident)
        return resident.charged_bytes

    def _decide(self, resident: Resident, action: str, reason: str, **numbers: float | str) -> None:
        account = self.residents.account
        self._heat.decide(
            resident.cube_id, action, reason, size_bytes=resident.frame.size_bytes,
            used_bytes=account.used_bytes, budget_bytes=account.budget_bytes, **numbers,
        )  # fmt: skip

    def _release(self, resident: Resident) -> None:
        """Free its memory, and what it was charged."""
        frame = resident.frame
        if self.is_host:
            self._free(frame, resident.group, resident.charged_bytes)
            return
        self.residents.account.release(resident.group, resident.charged_bytes)
        if isinstance(frame, DeviceFrame) and self.jobs.crew.is_member(frame.pid):
            self._drop_there(resident.key)

    def _free(self, frame: Frame, group: Group, charged_bytes: int) -> None:
        """Give the host's memory back; as in RAM it is charged until it is (`Reclaim.free`)."""
        account = self.residents.account
        if charged_bytes <= self._free_at_once_bytes:
            self._ram.discard(frame)
            account.release(group, charged_bytes)
            return
        done = self._memory_io.run(self._ram.discard, frame)
        self._freeing.add(done)

        def release() -> None:
            self._freeing.discard(done)
            account.release(group, charged_bytes)

        done.on_done(release)

    def _drop_there(self, key: PayloadKey) -> None:
        self._unsent.append(key)
        self._send_drops()

    def _send_drops(self) -> None:
        """Have the worker drop frames; what it cannot be told now, before its next copy."""
        if not self._unsent:
            return
        try:
            self.jobs.submit(JobClass.DROP, 0, DropRequest(tuple(self._unsent)))
        except MemError as error:
            _log.warning("frames stay on the device", frames=len(self._unsent), error=str(error))
        else:
            self._unsent.clear()

    # -- what happens elsewhere ----------------------------------------------------------------

    def forget(self, key: PayloadKey) -> None:
        """The payload is gone for good: free it now, or with its last holder."""
        resident = self.residents.find(key)
        if resident is not None:
            self._let_fall(resident)

    def _let_fall(self, resident: Resident) -> None:
        """It is found no more; while somebody holds it, it stays charged."""
        if resident.is_held:
            self.residents.set_apart(resident)
        else:
            self.residents.drop(resident, is_reclaim=False)
            self._release(resident)

    def move(self, key: PayloadKey, group: Group) -> None:
        """Charge it to another control group; where that has no room, the copy is no more."""
        transfer = self._transfers.get(key)
        if transfer is not None:
            self._move_transfer(transfer, group)
            return
        try:
            self.residents.move(key, group)
        except MemError:
            self.forget(key)

    def _move_transfer(self, transfer: _Transfer, group: Group) -> None:
        """Without room there it stays charged where it is; it is found there when it arrives."""
        try:
            if transfer.charged_bytes is not None:
                self.residents.account.move(transfer.group, group, transfer.charged_bytes)
        except MemError:
            return
        transfer.group = group

    def _worker_lost(self, _pid: int) -> None:
        self._unsent.clear()
        for resident in self.residents:
            self._decide(resident, "demote", "the device's worker ended")
            self._let_fall(resident)

    def stat(self) -> TierStat:
        """For `info`."""
        account = self.residents.account
        some, full = self._pressure.stat("device")
        return TierStat(
            name="device",
            budget_bytes=account.budget_bytes,
            used_bytes=account.used_bytes,
            cubes=len(self.residents),
            pinned_bytes=self.residents.held_bytes(),
            configured_bytes=account.budget.configured_bytes,
            some=some,
            full=full,
        )


def _opening(body: bytes) -> bytes:
    """How to open what a worker copied. Errors: EIO, it returned something else."""
    try:
        return msgspec.msgpack.decode(body, type=LoadResult).opening
    except msgspec.DecodeError as error:
        raise MemError(Errno.EIO, f"a worker returned no frame: {error}") from None
