"""Headers: replacing a cube's header groups, as a new version over the same payload.

Everything is checked, then committed. A header that promises more of the payload than the old one
did (a text that is to be JSON) has the payload checked against it first: in RAM, on an I/O thread
where it is no small one, after which the change is checked once more against the table as it is.
Kernel thread only.
"""

from collections.abc import Coroutine
from typing import Any, NamedTuple

import msgspec

from libmem.abi.calls import SetHeader, WriteReply
from libmem.abi.lineage import DERIVATION_ATTRIBUTE
from libmem.abi.names import parse_name
from libmem.abi.structs import EventKind, Governance
from memosd.kernel.access import Identity, require_owner
from memosd.kernel.charges import version_charge
from memosd.kernel.cubes import Cubes
from memosd.kernel.diskspace import DiskSpace
from memosd.kernel.governance import check_governance, weigh
from memosd.kernel.groups import check_fixed, check_header
from memosd.kernel.namespace import Namespace
from memosd.kernel.pager import Pager
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.ports import Driver
from memosd.kernel.rows import VersionRow
from memosd.kernel.succession import check_unsigned

__all__ = ["Headers"]


class _Change(NamedTuple):
    """A change of header that was found to be in order."""

    cube: Cube
    space: Namespace
    driver: Driver
    version: VersionRow
    governance: Governance | None

    @property
    def is_new_promise(self) -> bool:
        """Was the payload never checked against such a header?"""
        old, new = self.cube.row.current.descriptive, self.version.descriptive
        return self.driver.is_new_promise(old, new)


class Headers:
    """Changes of header."""

    def __init__(self, parts: Parts, cubes: Cubes, pager: Pager, disk_space: DiskSpace) -> None:
        self._table = parts.table
        self._namespaces = parts.namespaces
        self._residents = parts.residents
        self._on_device = parts.on_device
        self._ram = parts.ram
        self._memory_io = parts.memory_io
        self._clock = parts.clock
        self._cubes = cubes
        self._pager = pager
        self._disk_space = disk_space

    def replace(
        self, who: Identity, request: SetHeader
    ) -> WriteReply | Coroutine[Any, None, WriteReply]:
        """A new version with another header over the same payload. Errors: as its row says."""
        change = self._admit(who, request)
        if change.is_new_promise:
            return self._replace_checked(who, request, change)
        return self._commit(who, change)

    async def _replace_checked(
        self, who: Identity, request: SetHeader, change: _Change
    ) -> WriteReply:
        checked = b""
        while change.is_new_promise and change.cube.key != checked:
            checked = change.cube.key
            await self._check_payload(change)
            change = self._admit(who, request)  # somebody may have written meanwhile
        return self._commit(who, change)

    async def _check_payload(self, change: _Change) -> None:
        """Errors: EILSEQ, EFBIG (it is not what the header says), and those of a fault."""
        cube, version, check = change.cube, change.version, change.driver.check_payload
        if version.is_inline:
            self._pager.check_quarantine(cube)
            payload = self._pager.inline_payload(cube)
            check(payload, version.descriptive, version.attributes)
            return
        resident = await self._pager.fault(cube, change.space)
        self._residents.hold(resident, "busy")
        try:
            view = self._ram.view(resident.frame)
            await self._memory_io.run(check, view, version.descriptive, version.attributes)
        finally:
            self._pager.reclaim.release(resident, "busy")

    def _admit(self, who: Identity, request: SetHeader) -> _Change:
        # As chmod: it takes the owner, not the bits, or nobody could undo mode 0.
        cube, space = self._cubes.open(who, parse_name(request.name), 0)
        require_owner(who, cube.row.uid, "the header of a cube")
        self._cubes.check_version(cube, request.expected_version, request.name)
        old = cube.row.current
        version = msgspec.structs.replace(
            old,
            version=self._cubes.next_version(cube),
            created_ns=self._clock.wall_ns(),
            author_uid=who.uid,
            descriptive=old.descriptive if request.descriptive is None else request.descriptive,
            attributes=old.attributes if request.attributes is None else request.attributes,
        )
        check_header(version.descriptive, version.attributes)
        check_unsigned(old.descriptive, version.descriptive)
        driver = self._cubes.driver_of(cube.row.type)
        driver.check_header(version.descriptive, version.attributes)
        fixed = driver.fixed_attributes | {DERIVATION_ATTRIBUTE}
        check_fixed(fixed, old.attributes, version.attributes)
        if request.governance is not None:
            check_governance(who, cube.row, request.governance)
        self._namespaces.check_room(space, cube.row.name, version_charge(version))
        return _Change(cube, space, driver, version, request.governance)

    def _commit(self, who: Identity, change: _Change) -> WriteReply:
        """Put the rows; everything was checked, and nobody had a turn since."""
        cube, version = change.cube, change.version
        self._namespaces.charge(change.space, cube.row.name, version_charge(version))
        row = self._cubes.succeed(cube, version, change.governance)
        weight = weigh(row, self._clock)
        for order in (self._residents, self._on_device, self._disk_space):
            order.reweigh(cube.key, weight)
        self._table.log.note(EventKind.HEADER, cube.id, row, actor_uid=who.uid)
        receipt = self._cubes.on_change(who)
        return WriteReply(cube.id, version.version, version.digest, receipt)
