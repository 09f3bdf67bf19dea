"""Fills: payloads that arrive in memory rather than by value, and how they become versions.

A fill is a charged frame that a client writes into. `freeze` seals it, which the operating
system refuses while a writable mapping is left anywhere; only then the kernel hashes what will
never change again, has the driver validate it, stores it where it must be durable, checks the
write against the table once more and commits. Whatever goes wrong gives everything back.
"""

import os

from libmem.abi.calls import CreateCube, WriteCube, WriteReply
from libmem.abi.digest import Manifest
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Durability
from memosd.kernel.access import Identity
from memosd.kernel.admission import Admission, Content
from memosd.kernel.control import Group
from memosd.kernel.cubes import Cubes
from memosd.kernel.diskspace import DiskSpace
from memosd.kernel.lineage import Source
from memosd.kernel.pagefiles import Stored
from memosd.kernel.pager import Pager
from memosd.kernel.parts import Parts
from memosd.kernel.ports import Base, Frame, PayloadKey, Prefix
from memosd.kernel.removal import Removal
from memosd.kernel.residents import Resident

__all__ = ["Fill", "Fills"]


class Fill:
    """Memory being filled for a draft. Charged to `group` until it is committed or given back."""

    __slots__ = ("draft", "frame", "group", "sources")

    def __init__(
        self,
        draft: CreateCube | WriteCube,
        group: Group,
        frame: Frame,
        sources: tuple[Source, ...] = (),
    ) -> None:
        """`sources`: what the payload is made from, as that was when the fill began."""
        self.draft = draft
        self.group = group
        self.frame = frame
        self.sources = sources


class Fills:
    """From a filled frame to a committed version."""

    def __init__(
        self, parts: Parts, cubes: Cubes, pager: Pager, removal: Removal, disk_space: DiskSpace
    ) -> None:
        self._parts = parts
        self._disk_space = disk_space
        self._cubes = cubes
        self._pager = pager
        self._removal = removal

    async def write(self, who: Identity, draft: WriteCube, admission: Admission) -> WriteReply:
        """A payload that came by value but is too large for the table."""
        group = self._pager.control.group_of(admission.space, admission.name)
        frame = await self._pager.allocate(group, len(draft.payload))
        fill = Fill(draft, group, frame, admission.sources)
        try:
            await self._parts.memory_io.run(self._parts.ram.fill, frame, draft.payload)
            self._parts.ram.seal(frame, frame.size_bytes)
        except MemError:
            self._pager.give_back(fill.group, frame)
            raise
        return await self.commit(who, fill)

    def freeze(self, fill: Fill, size_bytes: int) -> None:
        """Seal the frame, at its final size. Errors: EBUSY, EINVAL; then nothing changed."""
        before = self._parts.ram.charge_bytes(fill.frame.size_bytes)
        self._parts.ram.seal(fill.frame, size_bytes)
        after = self._parts.ram.charge_bytes(size_bytes)
        self._parts.residents.account.shrink(fill.group, before - after)

    async def commit(self, who: Identity, fill: Fill) -> WriteReply:
        """Commit a sealed fill. Takes the frame over: on an error it is given back."""
        try:
            manifest = await self._parts.memory_io.run(self._parts.ram.hash, fill.frame)
            if fill.frame.size_bytes <= self._parts.parameters.inline_limit_bytes:
                return await self._commit_inline(who, fill, manifest)
            return await self._commit_pages(who, fill, manifest)
        except BaseException:
            # Nothing raises once the frame is resident, so it is still ours.
            self._pager.give_back(fill.group, fill.frame)
            raise

    def _admit(self, who: Identity, fill: Fill, base: Base | None = None) -> Admission:
        """Check the write against the table as it is.

        Errors: as `Cubes.admit`; ENOENT, EDQUOT, EOUTDATED.

        `base`: what the payload was found to continue, before a wait.
        """
        admission = self._cubes.admit(who, fill.draft)
        if base is not None and (admission.base is None or admission.base.key != base.key):
            raise MemError(Errno.ENOENT, "the first parent is another one by now")
        if admission.sources != fill.sources:
            raise MemError(Errno.EOUTDATED, "a source was changed meanwhile", cube=admission.name)
        if admission.space.id != fill.group.space:
            # Removed and made anew: the memory is charged to the one that went.
            name = admission.space.row.name
            raise MemError(Errno.ENOENT, "the namespace is another one by now", namespace=name)
        group = self._pager.control.group_of(admission.space, admission.name)
        if group.number != fill.group.number:
            # Its folder was given limits meanwhile, or rid of them.
            charged = self._parts.ram.charge_bytes(fill.frame.size_bytes)
            self._parts.residents.account.move(fill.group, group, charged)
            fill.group = group
        return admission

    def check_payload(
        self, admission: Admission, draft: CreateCube | WriteCube, payload: memoryview | bytes
    ) -> Prefix | None:
        """Is it what its header promises? Any thread. Errors: the driver's."""
        admission.driver.check_payload(payload, draft.descriptive, draft.attributes)
        return self._cubes.prefix_of(admission, payload, draft.attributes)

    async def _commit_inline(self, who: Identity, fill: Fill, manifest: Manifest) -> WriteReply:
        frame, draft = fill.frame, fill.draft
        payload = await self._parts.memory_io.run(os.pread, frame.fd, frame.size_bytes, 0)
        admission = self._admit(who, fill)
        prefix = self.check_payload(admission, draft, payload)
        charge = self._cubes.charge_of(draft, manifest.size_bytes, is_inline=True)
        if await self._disk_space.make_room(admission, charge):
            admission = self._admit(who, fill)
        self._cubes.check_room(admission, charge)
        content = Content(manifest.size_bytes, manifest.digest, payload, charge, prefix)
        reply = self._cubes.commit(who, draft, admission, self._cubes.new_key(), content)
        self._pager.give_back(fill.group, frame)
        return reply

    async def _commit_pages(self, who: Identity, fill: Fill, manifest: Manifest) -> WriteReply:
        draft, frame = fill.draft, fill.frame
        admission = self._admit(who, fill)
        prefix = await self._parts.memory_io.run(
            self.check_payload, admission, draft, self._parts.ram.view(frame)
        )
        key = self._cubes.new_key()
        is_durable = admission.durability is Durability.DURABLE
        charge = self._cubes.charge_of(draft, manifest.size_bytes, is_inline=False)
        stored: Stored | None = None
        if await self._disk_space.make_room(admission, charge):
            admission = self._admit(who, fill, admission.base)
        # Reserved over the wait, so that what was found to fit still fits at the commit.
        promise = self._parts.namespaces.reserve(admission.space, admission.name, charge)
        try:
            if is_durable:
                stored = await self._store(key, fill, manifest)
        except MemError:
            self._parts.namespaces.release(promise)
            raise
        self._parts.namespaces.release(promise)
        try:
            admission = self._admit(who, fill, admission.base)  # the world went on meanwhile
            self._cubes.check_room(admission, charge)
            form = stored.form if stored is not None else None
            if form is not None:
                charge = self._cubes.charge_of(draft, form.size_bytes, is_inline=False)
            content = Content(manifest.size_bytes, manifest.digest, None, charge, prefix, form)
            dirty = None if is_durable else manifest
            reply = self._commit_resident(who, fill, admission, (key, content, dirty))
        except MemError:
            if is_durable:
                self._parts.io.run(self._parts.disk.free, key)
            raise
        if stored is not None:
            self._parts.heat.decide(reply.id, "encode", stored.reason, version=reply.version)
        return reply

    def _commit_resident(
        self,
        who: Identity,
        fill: Fill,
        admission: Admission,
        stored: tuple[PayloadKey, Content, Manifest | None],
    ) -> WriteReply:
        """`stored`: the payload, and its manifest where it is in RAM only."""
        key, content, dirty = stored
        reply = self._cubes.commit(who, fill.draft, admission, key, content)
        resident = Resident(reply.id, key, fill.frame, fill.group)
        if dirty is not None:
            resident.manifest = dirty
            resident.coding = self._parts.pages.coding(fill.draft.type, fill.draft.attributes)
            self._parts.table.set_volatile(key, reply.id)
            delay_ns = self._parts.parameters.writeback_delay_ns
            self._pager.reclaim.writeback.later(key, delay_ns)
        self._pager.adopt(resident)
        ledger = self._parts.table.ledger

        def undo(failure: MemError | None) -> None:
            if failure is not None:
                self._removal.free_payload(key, is_inline=False)

        ledger.when_durable(ledger.pending_barrier(), undo)
        return reply

    async def _store(self, key: PayloadKey, fill: Fill, manifest: Manifest) -> Stored | None:
        pages, storing = self._parts.pages, self._pager.reclaim.writeback.storing
        coding = pages.coding(fill.draft.type, fill.draft.attributes)
        storing.add(key)
        await self._parts.turns.enter(fill.group, fill.frame.size_bytes)
        try:
            with self._parts.pressure.waiting("disk"):
                return await pages.store(key, fill.frame, manifest, coding)
        finally:
            self._parts.turns.leave()
            storing.discard(key)
