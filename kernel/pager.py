"""The pager: brings payloads into RAM, verified, once for everybody who waits.

A fault on an absent payload reserves room (reclaim), allocates a frame, has a tier fill and
verify it on an I/O thread, seals it and makes it resident. Concurrent faults on one payload share
one fill. After the wait the world is looked at again: an unlink during the fill wins. A payload
that does not match its digest is quarantined and never served. Kernel thread only.
"""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, Protocol, TypeVar

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import EventKind
from memosd.kernel import pricing
from memosd.kernel.control import Group
from memosd.kernel.governance import weight_of
from memosd.kernel.namespace import Namespace
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.policies.policy import Entry
from memosd.kernel.ports import Frame, PayloadKey
from memosd.kernel.reclaim import Reclaim
from memosd.kernel.residents import Resident, Residents
from memosd.kernel.throttle import Throttle
from memosd.kernel.wait import Completion, spawn

__all__ = ["Above", "Pager"]

T = TypeVar("T")


class Above(Protocol):
    """A tier whose frames are copies of those in RAM."""

    residents: Residents

    def forget(self, key: PayloadKey) -> None:
        """The payload is gone for good."""
        ...

    def move(self, key: PayloadKey, group: Group) -> None:
        """It belongs to another control group now."""
        ...


_READ_PAST_MAX_BYTES: Final = 4 << 20
"""Whoever reads further in had better have the whole in RAM."""


class _Filling:
    """A payload on its way into RAM, for all who wait for it."""

    __slots__ = ("charged_bytes", "cube_id", "done", "group")

    def __init__(self, cube_id: bytes, group: Group) -> None:
        self.cube_id = cube_id
        self.done: Completion[None] = Completion()
        self.group = group
        """Whom it is, or will be, charged to; a rename changes that."""
        self.charged_bytes: int | None = None
        """None while room is made for it."""


class Pager:
    """Faults, fresh frames, and what becomes of payloads that are unlinked."""

    def __init__(self, parts: Parts, reclaim: Reclaim) -> None:
        self._parts = parts
        self.residents = parts.residents
        self.reclaim = reclaim
        self._ram = parts.ram
        self._pages = parts.pages
        self._table = parts.table
        self._disk = parts.disk
        self._io = parts.io
        self._memory_io = parts.memory_io
        self._heat = parts.heat
        self._prefixes = parts.prefixes
        self._clock = parts.clock
        self._turns = parts.turns
        self.throttle = Throttle(parts, reclaim)
        self._namespaces = parts.namespaces
        self.control = parts.namespaces.control
        self._pressure = parts.pressure
        self._fills: dict[PayloadKey, _Filling] = {}
        self._readings: dict[tuple[PayloadKey, int], Completion[bytes]] = {}
        """Reads without a frame, for all who want as much of the same."""
        self.above: list[Above] = []
        """Set at assembly."""
        self.on_idle: Callable[[], None] = _nothing
        """Set at assembly: called when no fill is under way any more."""
        self.on_access: Callable[[str, Entry], None] | None = None
        """Told of every use, insert and remove while accesses are recorded (`trace.py`)."""
        self._table.ledger.on_rollback.append(self._on_rollback)

    # -- faults --------------------------------------------------------------------------------

    async def fault(self, cube: Cube, space: Namespace) -> Resident:
        """As `bring_in`, for somebody who uses it now."""
        is_hit = self.residents.find(cube.key) is not None
        self.residents.hits += is_hit
        resident = await self.bring_in(cube, space)
        self.residents.policy.touch(cube.key)
        self.reclaim.working_set.note_use(resident)
        # Who is used again while it is there has earned its place.
        resident.is_passing &= not is_hit
        if self.on_access is not None:
            self.on_access("use", resident.entry())
        return resident

    async def bring_in(self, cube: Cube, space: Namespace) -> Resident:
        """The resident of this payload, filled where absent. Hold it before the next await.

        Errors: ENOMEM, EDQUOT (no room), ENOENT (unlinked meanwhile), ECORRUPT, EIO, EMFILE.
        """
        self.check_quarantine(cube)
        while (resident := self.residents.find(cube.key)) is None:
            running = self._fills.get(cube.key)
            # Then look again: whoever waited for it before us may have evicted it.
            if running is None:
                await self._fill(cube, space)
            else:
                await running.done
        return resident

    @property
    def is_filling(self) -> bool:
        """Is anything on its way into RAM?"""
        return bool(self._fills)

    async def _fill(self, cube: Cube, space: Namespace) -> None:
        filling = self._fills[cube.key] = _Filling(
            cube.id, self.control.group_of(space, cube.row.name)
        )
        try:
            await self._load_into(cube, filling)
        except BaseException as error:
            del self._fills[cube.key]
            filling.done.fail(error)
            raise
        else:
            del self._fills[cube.key]
            filling.done.resolve(None)
        finally:
            if not self._fills:
                self.on_idle()

    async def _load_into(self, cube: Cube, filling: _Filling) -> None:
        charge_bytes = self._ram.charge_bytes(cube.version.size_bytes)
        is_passing = self.reclaim.refuses(cube.key, filling.group, charge_bytes)
        frame = await self._allocate_for(filling, cube.version.size_bytes)
        start_ns = self._clock.monotonic_ns()
        try:
            await self._load(cube, frame, filling.group)
        except MemError:
            self.give_back(filling.group, frame)
            raise
        load_ns = self._clock.monotonic_ns() - start_ns
        self._heat.count_fault(cube.id)
        self._heat.decide(
            cube.id,
            "fill",
            "inline" if cube.version.is_inline else "page file",
            version=cube.version.version,
            size_bytes=frame.size_bytes,
            used_bytes=self.residents.account.used_bytes,
            load_ms=load_ns / 1e6,
        )
        resident = Resident(cube.id, cube.key, frame, filling.group)
        resident.is_passing = is_passing
        self.adopt(resident, is_new=False)
        working_set = self.reclaim.working_set
        working_set.admit(resident, working_set.returned(cube.key, charge_bytes))
        if is_passing:
            self._heat.decide(cube.id, "cool", "RAM thrashes: it came because it must be mapped")

    # -- without a frame -----------------------------------------------------------------------

    def is_refused(self, cube: Cube, space: Namespace) -> bool:
        """Would a frame for it only drive out what is needed sooner?"""
        if self.residents.find(cube.key) is not None or cube.key in self._fills:
            return False
        charge_bytes = self._ram.charge_bytes(cube.version.size_bytes)
        group = self.control.group_of(space, cube.row.name)
        return self.reclaim.refuses(cube.key, group, charge_bytes)

    def can_read_past(self, cube: Cube, end_bytes: int) -> bool:
        """Can the beginning of a payload be read from its page file as cheaply?"""
        is_plain = not cube.version.is_inline and self._table.stored_form(cube.key) is None
        return is_plain and end_bytes <= _READ_PAST_MAX_BYTES

    async def read_past(self, cube: Cube, end_bytes: int) -> bytes:
        """The first bytes of a payload from disk, verified. Errors: ENOENT, ECORRUPT, EIO."""
        charge_bytes = self._ram.charge_bytes(cube.version.size_bytes)
        self.reclaim.working_set.refuse(cube.key, charge_bytes)
        self._heat.decide(cube.id, "refuse", "RAM thrashes: read from disk without a frame")
        reading = self._readings.get((cube.key, end_bytes))
        if reading is None:
            reading = self._readings[cube.key, end_bytes] = spawn(self._read(cube, end_bytes))
            reading.on_done(partial(self._readings.__delitem__, (cube.key, end_bytes)))
        payload = await reading
        self._tell_of_use_past(cube, charge_bytes)
        return payload

    async def _read(self, cube: Cube, end_bytes: int) -> bytes:
        what = (cube.key, cube.version.size_bytes, cube.version.digest, end_bytes)
        read = partial(self._io.run, self._disk.read, *what)
        try:
            payload = await self._in_turn(self._group_of(cube), end_bytes, read)
        except MemError as error:
            raise self._failed(cube, error) from None
        self._require_row(cube)
        self._heat.count_fault(cube.id)
        return payload

    def _tell_of_use_past(self, cube: Cube, charge_bytes: int) -> None:
        if self.on_access is not None:
            number, parent = self._group_of(cube).number, self.base_of(cube.key)
            entry = Entry(cube.key, charge_bytes, number, cube.row.priority, parent)
            self.on_access("use", entry)

    def _group_of(self, cube: Cube) -> Group:
        space = self._namespaces.by_id(cube.row.namespace)
        return self.control.group_of(space, cube.row.name)

    # -- fills ---------------------------------------------------------------------------------

    async def _allocate_for(self, filling: _Filling, size_bytes: int) -> Frame:
        """As `allocate`, for whichever control group the payload is in by then."""
        while True:
            group = filling.group
            frame = await self.allocate(group, size_bytes)
            if filling.group is group:
                filling.charged_bytes = self._ram.charge_bytes(size_bytes)
                return frame
            self.give_back(group, frame)  # renamed while room was made

    async def _load(self, cube: Cube, frame: Frame, group: Group) -> None:
        """Fill the frame and seal it."""
        try:
            if cube.version.is_inline:
                payload = self._table.payload(cube.version)
                await self._memory_io.run(self._ram.fill, frame, payload)
                self._ram.seal(frame, frame.size_bytes)
            else:
                load = partial(self._pages.load, cube, frame)
                await self._in_turn(group, frame.size_bytes, load)
        except MemError as error:
            raise self._failed(cube, error) from None
        self._require_row(cube)

    async def _in_turn(self, group: Group, size_bytes: int, move: Callable[[], Awaitable[T]]) -> T:
        """Read from a page file when it is the group's turn."""
        await self._turns.enter(group, size_bytes)
        try:
            with self._pressure.waiting("disk"):
                return await move()
        finally:
            self._turns.leave()

    def _failed(self, cube: Cube, error: MemError) -> MemError:
        """The error to raise for one of a read. Errors: ENOENT (unlinked meanwhile)."""
        self._require_row(cube)
        # A page file that is gone is as bad as one that is damaged.
        if error.errno in (Errno.ECORRUPT, Errno.ENOENT):
            return self.quarantine(cube, error)
        return error

    def _require_row(self, cube: Cube) -> None:
        """Is the payload still anybody's, after a wait? Errors: ENOENT."""
        if not self._table.has_payload(cube.key):
            raise MemError(Errno.ENOENT, "unlinked while it was read", cube=cube.row.name)

    def inline_payload(self, cube: Cube) -> bytes:
        """A small payload by value, verified. Errors: ECORRUPT."""
        if cube.version.size_bytes == 0:
            return b""
        try:
            return self._table.payload(cube.version)
        except MemError as error:
            raise self.quarantine(cube, error) from None

    def check_quarantine(self, cube: Cube) -> None:
        """Errors: ECORRUPT."""
        if cube.key in self._table.quarantined:
            raise MemError(
                Errno.ECORRUPT, "quarantined: its stored bytes are damaged", cube=cube.row.name,
                version=cube.version.version,
            )  # fmt: skip

    def quarantine(self, cube: Cube, error: MemError) -> MemError:
        """Record that a payload is damaged; returns the error to raise."""
        if self._table.quarantine(cube.key, str(error)):
            self._table.log.note(EventKind.QUARANTINE, cube.id, cube.row)
        self._heat.decide(cube.id, "quarantine", str(error), version=cube.version.version)
        return MemError(
            Errno.ECORRUPT,
            f"quarantined: {error.message}",
            **{**error.detail, "cube": cube.row.name, "version": cube.version.version},
        )

    # -- frames --------------------------------------------------------------------------------

    async def allocate(self, group: Group, size_bytes: int) -> Frame:
        """A fresh writable frame, charged to the control group. Errors: ENOMEM, EDQUOT, EMFILE."""
        charge_bytes = self._ram.charge_bytes(size_bytes)
        with self._pressure.waiting("ram"):
            await self.reclaim.make_room(group, charge_bytes)
        self.residents.account.charge(group, charge_bytes)
        try:
            frame = self._ram.allocate(size_bytes)
        except MemError:
            self.residents.account.release(group, charge_bytes)
            raise
        self.reclaim.balance()
        await self.throttle.pause(group)
        return frame

    def give_back(self, group: Group, frame: Frame) -> None:
        """Free a frame that never became resident."""
        self.reclaim.free(group, frame, self._ram.charge_bytes(frame.size_bytes))

    def adopt(self, resident: Resident, *, is_new: bool = True) -> None:
        """Make a sealed, charged frame resident. `is_new`: the payload was just made."""
        resident.charged_bytes = self._ram.charge_bytes(resident.frame.size_bytes)
        resident.parent = self.base_of(resident.key)
        resident.weight = weight_of(self._table, self._clock, resident.cube_id)
        resident.restore_s = pricing.restore_s(self._parts, resident)
        self._ram.adopt(resident.key, resident.frame)
        resident.since_ns = self._clock.wall_ns()
        self.residents.add(resident)
        if is_new and self.on_access is not None:
            self.on_access("insert", resident.entry())

    def base_of(self, key: PayloadKey) -> PayloadKey:
        """The payload that this one stands on; empty: none."""
        return self._prefixes.base_of(key)

    # -- what table changes mean for residents -------------------------------------------------

    def forget(self, key: PayloadKey) -> None:
        """The payload is gone for good: free it now, or with its last holder.

        One that is just being read has no resident yet; `_load` looks for its row afterwards.
        """
        for tier in self.above:
            tier.forget(key)
        if self.on_access is not None:
            self.on_access("remove", Entry(key, 0))
        resident = self.residents.find(key)
        if resident is None or resident.is_orphan:
            return
        resident.is_orphan = True
        self.residents.policy.remove(key)
        if not resident.is_held:
            self.reclaim.discard(resident)

    def move(self, key: PayloadKey, group: Group) -> None:
        """Charge a payload in RAM, or on its way there, to another control group.

        Errors: EDQUOT.
        """
        self._move(key, group)
        for tier in self.above:
            tier.move(key, group)

    def _move(self, key: PayloadKey, group: Group) -> None:
        filling = self._fills.get(key)
        if filling is None:
            self.residents.move(key, group)
            return
        if filling.charged_bytes is not None:
            self.residents.account.move(filling.group, group, filling.charged_bytes)
        filling.group = group

    def places(self) -> Iterator[tuple[PayloadKey, bytes, Group]]:
        """Payloads in RAM, on their way there or above it: key, cube, and what each is charged
        to."""
        for resident in self.residents:
            if not resident.is_orphan:
                yield resident.key, resident.cube_id, resident.group
        for key, filling in list(self._fills.items()):
            yield key, filling.cube_id, filling.group
        for tier in self.above:
            for copy in tier.residents:
                yield copy.key, copy.cube_id, copy.group

    def _on_rollback(self, _error: MemError) -> None:
        """Payloads that were to come with the failed commit are nobody's."""
        for resident in self.residents:
            if not self._table.has_payload(resident.key):
                self.forget(resident.key)


def _nothing() -> None:
    """Nobody waits for quiet."""
