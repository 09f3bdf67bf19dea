"""Cubes: opening them for a caller, and committing new versions.

Every mutation follows the same two steps, with any wait between them: `admit` checks everything
(name, rights, expected version, type, header, parents, room) and raises, `commit` only puts
rows. After a wait `admit` runs again, so what is committed was checked against the table as it
is. Kernel thread only.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from libmem.abi.calls import CreateCube, WriteCube, WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import PARENTS_MAX
from libmem.abi.lineage import Receipt, derivation_of
from libmem.abi.names import namespace_of, parse_name, parse_ref
from libmem.abi.structs import (
    CubeType,
    Durability,
    EventKind,
    Governance,
)
from memosd.kernel.access import EXECUTE, READ, WRITE, Identity, allows
from memosd.kernel.admission import Admission, Content
from memosd.kernel.charges import row_charge, version_charge
from memosd.kernel.governance import check_governance, govern
from memosd.kernel.groups import check_header
from memosd.kernel.lineage import check_apart
from memosd.kernel.namespace import Namespace
from memosd.kernel.pagetable import Cube, new_id
from memosd.kernel.parts import Parts
from memosd.kernel.ports import Base, Driver, PayloadKey, Prefix
from memosd.kernel.rows import CubeRow, VersionRow
from memosd.kernel.succession import (
    Ending,
    check_names,
    check_successor,
    check_unsigned,
    ending_of,
    signed,
)

__all__ = ["Cubes"]

_VERSION_MAX: Final = (1 << 32) - 1
_DEFAULT_GOVERNANCE: Final = Governance()


class Cubes:
    """Open, admit, commit."""

    def __init__(self, parts: Parts) -> None:
        self._table = parts.table
        self._namespaces = parts.namespaces
        self._residents = parts.residents
        self._drivers = parts.drivers
        self._disk = parts.disk
        self._pages = parts.pages
        self._prefixes = parts.prefixes
        self._lineage = parts.lineage
        self._clock = parts.clock
        self.on_expired: Callable[[bytes, CubeRow], object] = _nobody_removes
        """Set at assembly: remove a cube whose time is over."""
        self.on_change: Callable[[Identity], Receipt | None] = _nobody_follows
        """Set at assembly: have what was derived from a changed cube fall."""

    # -- opening -------------------------------------------------------------------------------

    def open(self, who: Identity, name: str, wanted: int = READ) -> tuple[Cube, Namespace]:
        """The cube behind a name or `name@vN`, if the caller may.

        Errors: EINVAL, ENAMETOOLONG, ENOENT, EACCES, ECORRUPT.
        """
        ref = parse_ref(name)
        space = self._namespaces.find(namespace_of(ref.name))
        space.require(who, EXECUTE)
        cube = self._table.resolve(ref)
        self.require(who, cube.row, wanted)
        return cube, space

    def require(self, who: Identity, row: CubeRow, wanted: int) -> None:
        """Errors: EACCES."""
        if not allows(who, (row.uid, row.gid), row.mode, wanted):
            verb = "read" if wanted == READ else "change"
            raise MemError(Errno.EACCES, f"may not {verb} the cube", cube=row.name)

    def may_read(self, who: Identity, row: CubeRow) -> bool:
        """As `open` would find, for listings that leave out what the caller may not read."""
        if not allows(who, (row.uid, row.gid), row.mode, READ) or self._table.is_expired(row):
            return False
        space = self._namespaces.get(namespace_of(row.name))
        return space is not None and space.allows(who, EXECUTE)

    def readable_row(self, who: Identity, cube_id: bytes) -> CubeRow | None:
        """The cube as it is now, for listings: None where it is gone, damaged or not to be read."""
        try:
            row = self._table.cube_row(cube_id)
            return row if row is not None and self.may_read(who, row) else None
        except MemError:
            return None

    # -- new versions --------------------------------------------------------------------------

    def admit(self, who: Identity, draft: WriteCube | CreateCube) -> Admission:
        """Check a write against the table as it is. Errors: all that the row lists."""
        name = parse_name(draft.name)
        space = self._namespaces.find(namespace_of(name))
        existing = self._existing(who, name, space)
        self.check_version(existing, draft.expected_version, name)
        if existing is not None and existing.row.type is not draft.type:
            raise MemError(
                Errno.EINVAL, f"a cube keeps its type, this one is {existing.row.type}", cube=name
            )
        driver = self.driver_of(draft.type)
        check_header(draft.descriptive, draft.attributes)
        driver.check_header(draft.descriptive, draft.attributes)
        check_unsigned(existing.row.current.descriptive if existing else None, draft.descriptive)
        governance = draft.governance
        if governance is not None:
            check_governance(who, existing.row if existing else None, governance)
        kept = existing.row.durability if existing else driver.durability
        durability = draft.durability or kept
        parents = self._resolved_parents(who, draft.parents) if draft.parents else []
        links = tuple((cube.id, cube.version.version) for cube in parents) if parents else ()
        admission = Admission(name, space, existing, driver, governance, links, durability)
        if derivation_of(draft.attributes) is not None:
            sources = self._lineage.sources_of(parents)
            admission = msgspec.structs.replace(admission, sources=sources)
        if draft.supersedes:
            admission = self._superseding(who, draft, admission)
        check_apart(admission.sources, admission.changed)
        if driver.prefixes is None or not driver.prefixes.is_part(draft.attributes):
            return admission
        return msgspec.structs.replace(admission, base=self._base_of(admission, parents))

    def driver_of(self, cube_type: CubeType) -> Driver:
        """Errors: EOPNOTSUPP."""
        driver = self._drivers.get(cube_type)
        if driver is None:
            raise MemError(Errno.EOPNOTSUPP, f"no driver for {cube_type} cubes is loaded")
        return driver

    def _existing(self, who: Identity, name: str, space: Namespace) -> Cube | None:
        space.require(who, EXECUTE)
        cube_id = self._table.find_id(name)
        row = self._table.cube_row(cube_id) if cube_id is not None else None
        if cube_id is None or row is None:
            space.require(who, WRITE)
            return None
        self.require(who, row, WRITE)
        if self._table.is_expired(row):
            # The sweep has not come by yet; a cube that nobody sees must not be in the way.
            space.require(who, WRITE)
            self.on_expired(cube_id, row)
            return None
        return Cube(cube_id, row, row.current)

    @staticmethod
    def check_version(existing: Cube | None, expected: int | None, name: str) -> None:
        """Compare and swap. Errors: EVERSION."""
        version = existing.row.current.version if existing else 0
        if expected is not None and expected != version:
            raise MemError(
                Errno.EVERSION,
                "somebody wrote first" if existing else "there is no such cube",
                cube=name,
                version=version,
                expected_version=expected,
            )

    def _resolved_parents(self, who: Identity, names: tuple[str, ...]) -> list[Cube]:
        if len(names) > PARENTS_MAX:
            raise MemError(Errno.EINVAL, f"a cube has at most {PARENTS_MAX} parents")
        return [self.open(who, name)[0] for name in names]

    def _base_of(self, admission: Admission, parents: list[Cube]) -> Base:
        """What a payload that is only a part will stand on. Errors: EINVAL, ENOENT, ECORRUPT."""
        wanted = admission.driver.type
        if not parents or parents[0].row.type is not wanted:
            raise MemError(Errno.EINVAL, f"a part stands on its first parent, of type {wanted}")
        if parents[0].id in admission.changed:
            raise MemError(Errno.EINVAL, "a cube cannot stand on itself", cube=admission.name)
        if admission.durability is not Durability.CACHE:
            raise MemError(
                Errno.EINVAL, "a durable cube holds all its tokens; only a cache cube may be a part"
            )
        key = parents[0].key
        self._prefixes.check_base(key)
        chain = [key, *(each.key for each in self._prefixes.bases(key))]
        self._lineage.check_chain(chain, admission.changed)
        return Base(key, parents[0].version.attributes, self._prefixes.packed(key))

    def _superseding(
        self, who: Identity, draft: WriteCube | CreateCube, admission: Admission
    ) -> Admission:
        """The write with the cubes it ends. Errors: EINVAL, ENOENT, EACCES, ECORRUPT."""
        check_names(draft.supersedes)
        now_ns = self._clock.wall_ns()
        times_ns = now_ns, draft.descriptive.valid_from_ns or now_ns
        endings: dict[bytes, Ending] = {}
        for name in draft.supersedes:
            cube, space = self.open(who, parse_name(name), WRITE)
            version = ending_of(cube, self.next_version(cube), who.uid, times_ns)
            endings[cube.id] = Ending(cube, space, version)
        check_successor(endings.values(), admission.existing, admission.durability)
        return msgspec.structs.replace(admission, endings=tuple(endings.values()))

    @staticmethod
    def prefix_of(
        admission: Admission, payload: memoryview | bytes, attributes: dict[str, Any]
    ) -> Prefix | None:
        """The tokens a payload begins with. Any thread. Errors: EINVAL, EMODEL."""
        source = admission.driver.prefixes
        return source.prefix_of(payload, attributes, admission.base) if source else None

    def charge_of_versions(self, versions: list[VersionRow]) -> int:
        """What all versions of a cube cost on disk; a payload that some share counts once."""
        payloads = {v.payload_id: v for v in versions}.values()
        return sum(map(version_charge, versions)) + sum(map(self._pages.charge_bytes, payloads))

    def charge_of(self, draft: WriteCube | CreateCube, size_bytes: int, *, is_inline: bool) -> int:
        """What a new version with its own payload costs on disk."""
        rows = row_charge(draft.descriptive, draft.attributes, len(draft.parents))
        return rows + (size_bytes if is_inline else self._disk.charge_bytes(size_bytes))

    def check_room(self, admission: Admission, charge_bytes: int) -> None:
        """Room for the new version, and for those of the cubes it ends. Errors: EDQUOT, ENOSPC."""
        new_cubes = 0 if admission.existing else 1
        self._namespaces.check_room(admission.space, admission.name, charge_bytes, new_cubes)
        if not admission.endings:
            return
        needs = [(admission.space, admission.name, charge_bytes)]
        needs += [
            (it.space, it.cube.row.name, version_charge(it.version)) for it in admission.endings
        ]
        # Each may fit alone where all together do not.
        with ExitStack() as promises:
            for space, name, need_bytes in needs:
                promise = self._namespaces.reserve(space, name, need_bytes)
                promises.callback(self._namespaces.release, promise)

    def new_key(self) -> PayloadKey:
        """A name for a payload about to be stored; a new cube takes it for its id as well."""
        return new_id(self._clock.wall_ns())

    @staticmethod
    def next_version(cube: Cube) -> int:
        """Errors: EINVAL."""
        if cube.row.last_version >= _VERSION_MAX:
            raise MemError(Errno.EINVAL, "the cube has used up its version numbers")
        return cube.row.last_version + 1

    def commit(
        self,
        who: Identity,
        draft: WriteCube | CreateCube,
        admission: Admission,
        key: PayloadKey,
        content: Content,
    ) -> WriteReply:
        """Put the rows of a new version; room was checked. Raises nothing a caller caused."""
        existing = admission.existing
        cube_id = existing.id if existing else key
        version = VersionRow(  # positional: tens of thousands are made in a second
            self.next_version(existing) if existing else 1,
            key,
            content.size_bytes,
            content.digest,
            content.inline is not None,
            self._clock.wall_ns(),
            who.uid,
            draft.descriptive,
            draft.attributes,
            admission.parents,
        )
        self._put_payload((key, cube_id), admission.space, content)
        new_cubes = 0 if existing else 1
        self._namespaces.charge(admission.space, admission.name, content.charge_bytes, new_cubes)
        if existing is None:
            row = self._new_row(who, draft, admission, version)
            self._table.put_name(admission.name, cube_id)
            if row.expires_ns:
                self._table.put_expiry(cube_id, row.expires_ns)
            self._table.put_cube(cube_id, row)
        else:
            row = self.succeed(existing, version, admission.governance, admission.durability)
        self._table.log.note(EventKind.WRITE, cube_id, row, actor_uid=who.uid)
        if admission.sources:
            self._lineage.add(key, cube_id, admission.sources)
        for ending in admission.endings:
            self._end(who, ending, cube_id)
        receipt = self.on_change(who) if existing or admission.endings else None
        return WriteReply(cube_id, version.version, content.digest, receipt)

    def _put_payload(
        self, ids: tuple[PayloadKey, bytes], space: Namespace, content: Content
    ) -> None:
        key, cube_id = ids
        if content.inline is None:
            self._table.put_page_file(key, cube_id, content.form)
        else:
            self._table.put_payload(key, content.inline)
        if content.prefix is not None:
            self._prefixes.add(key, cube_id, space.id, content.prefix)

    def _end(self, who: Identity, ending: Ending, successor: bytes) -> None:
        version = signed(ending.version, successor)
        self._namespaces.charge(ending.space, ending.cube.row.name, version_charge(version))
        row = self.succeed(ending.cube, version, None)
        self._table.log.note(EventKind.HEADER, ending.cube.id, row, actor_uid=who.uid)

    def _new_row(
        self,
        who: Identity,
        draft: WriteCube | CreateCube,
        admission: Admission,
        version: VersionRow,
    ) -> CubeRow:
        governance = admission.governance or _DEFAULT_GOVERNANCE
        return CubeRow(
            admission.name,
            admission.space.id,
            draft.type,
            admission.durability,
            who.uid if governance.owner_uid < 0 else governance.owner_uid,
            who.gid if governance.owner_gid < 0 else governance.owner_gid,
            governance.mode,
            governance.priority,
            governance.expires_ns,
            governance.sensitivity,
            version.created_ns,
            version.version,
            version,
            governance.half_life_s,
        )

    def succeed(
        self,
        existing: Cube,
        version: VersionRow,
        governance: Governance | None,
        durability: Durability | None = None,
    ) -> CubeRow:
        """Put `version` on top of a cube, the current one into its history."""
        row = msgspec.structs.replace(existing.row, current=version, last_version=version.version)
        row.durability = durability or row.durability
        if governance is not None:
            govern(row, governance)
            self._table.drop_expiry(existing.id, existing.row.expires_ns)
            self._table.put_expiry(existing.id, row.expires_ns)
        self._table.put_history(existing.id, existing.row.current)
        self._table.put_cube(existing.id, row)
        self._lineage.replaced(existing.row.current, version)
        return row


def _nobody_follows(who: Identity) -> Receipt | None:
    raise RuntimeError(f"assembly left on_change unset: {who}")


def _nobody_removes(cube_id: bytes, row: CubeRow) -> None:
    raise RuntimeError(f"assembly left on_expired unset: {cube_id.hex()} {row.name}")
