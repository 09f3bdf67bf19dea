"""Removing and renaming: unlink, expiry, lost cache payloads, rename.

Rows go with the commit; page files and frames go only once that commit is durable, so a crash in
between leaves nothing dangling that boot cannot clear, and a commit that fails leaves everything
as it was. Kernel thread only.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from libmem.abi.calls import RenameCube, RenameReply, UnlinkCube, UnlinkReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import RECEIPT_MAX
from libmem.abi.lineage import Receipt
from libmem.abi.names import namespace_of, parse_name, parse_ref
from libmem.abi.structs import EventKind
from memosd.kernel.access import EXECUTE, WRITE, Identity
from memosd.kernel.charges import version_charge
from memosd.kernel.control import Group
from memosd.kernel.cubes import Cubes
from memosd.kernel.lineage import Falling, Gone
from memosd.kernel.namespace import Namespace
from memosd.kernel.pager import Pager
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.rows import CubeRow, VersionRow

__all__ = ["Removal"]

_EXPIRY_STRETCH: Final = 256
"""Rows the sweep looks at before others have their turn."""


class _Found(NamedTuple):
    """A cube about to lose versions, or all of them."""

    cube_id: bytes
    row: CubeRow
    older: list[VersionRow]
    space: Namespace


class Removal:
    """Everything that takes names, versions and payloads away."""

    def __init__(self, parts: Parts, cubes: Cubes, pager: Pager) -> None:
        self._table = parts.table
        self._namespaces = parts.namespaces
        self._disk = parts.disk
        self._pages = parts.pages
        self._clock = parts.clock
        self._cubes = cubes
        self._pager = pager
        self._io = parts.io
        self._heat = parts.heat
        self._prefixes = parts.prefixes
        self.on_move: Callable[[PayloadKey, Group], None] = _nobody_follows
        """Set at assembly: a payload is in another namespace now."""
        self.on_free: Callable[[PayloadKey], None] = _nobody_forgets
        """Set at assembly: a payload is gone for good."""
        self._lineage = parts.lineage
        self._fallen: list[PayloadKey] = []
        """Payloads that stood on one that went, and must go in the same commit."""
        self._is_loss = False
        """What goes just now goes for want of room: nobody withdrew it."""

    def serve(self, cubes: Cubes) -> None:
        """Remove what expired is in the way of a write, and what was derived from what changes."""
        cubes.on_expired, cubes.on_change = self.remove_expired, self.receipt

    # -- unlink --------------------------------------------------------------------------------

    def unlink(self, who: Identity, request: UnlinkCube) -> UnlinkReply:
        """Errors: as its row says."""
        ref = parse_ref(request.name)
        cube, space = self._cubes.open(who, request.name, WRITE)
        space.require(who, WRITE | EXECUTE)
        self._cubes.check_version(
            Cube(cube.id, cube.row, cube.row.current), request.expected_version, ref.name
        )
        if ref.version:
            reply = self._unlink_version(who, cube, space)
        else:
            reply = self._remove(self._found(cube.id, cube.row), EventKind.UNLINK, who.uid)
        dependents = self.follow()
        return msgspec.structs.replace(reply, dependents=dependents, receipt=self.receipt(who))

    def _unlink_version(self, who: Identity, cube: Cube, space: Namespace) -> UnlinkReply:
        if cube.is_current:
            raise MemError(
                Errno.EBUSY, "the current version goes only with the cube", cube=cube.row.name
            )
        versions = [*self._table.older_versions(cube.id), cube.row.current]
        kept = [version for version in versions if version.version != cube.version.version]
        freed = self._drop_versions([cube.version], kept, (space, cube.row.name))
        self._table.drop_history(cube.id, cube.version.version)
        self._table.log.note(EventKind.PRUNE, cube.id, cube.row, actor_uid=who.uid)
        return UnlinkReply(freed_bytes=freed, versions=1)

    def _found(self, cube_id: bytes, row: CubeRow) -> _Found:
        """Errors: ECORRUPT."""
        space = self._namespaces.by_id(row.namespace)
        older = self._table.older_versions(cube_id) if row.last_version > 1 else []
        return _Found(cube_id, row, older, space)

    def _remove(self, found: _Found, kind: EventKind, actor_uid: int) -> UnlinkReply:
        cube_id, row, older, space = found
        freed = self._drop_versions([*older, row.current], [], (space, row.name))
        for version in older:
            self._table.drop_history(cube_id, version.version)
        self._table.drop_name(row.name)
        self._table.drop_cube(cube_id)
        self._table.drop_expiry(cube_id, row.expires_ns)
        self._heat.forget(cube_id)
        self._namespaces.charge(space, row.name, 0, cubes=-1)
        self._table.log.note(kind, cube_id, row, actor_uid=actor_uid)
        return UnlinkReply(freed_bytes=freed, versions=len(older) + 1)

    def _drop_versions(
        self, doomed: list[VersionRow], kept: list[VersionRow], place: tuple[Namespace, str]
    ) -> int:
        """Give back what versions were charged, and the payloads that no kept one shares.

        `place`: the cube's namespace and name.
        """
        shared = {version.payload_id for version in kept}
        freed = sum(version_charge(version) for version in doomed)
        for key, version in {v.payload_id: v for v in doomed}.items():
            if key not in shared:
                freed += self._pages.charge_bytes(version)
                self.drop_payload(key, is_inline=version.is_inline)
        self._namespaces.charge(*place, -freed)
        return freed

    def drop_payload(self, key: PayloadKey, *, is_inline: bool) -> None:
        """Drop a payload's rows, and its bytes once that is durable."""
        self._table.drop_payload(key, is_inline=is_inline)
        self._lineage.drop(key)
        if not self._is_loss:
            self._lineage.withdraw(key, "it was removed")
        self._fallen += self._prefixes.drop(key)

        def free(error: MemError | None) -> None:
            if error is None:
                self.free_payload(key, is_inline=is_inline)

        ledger = self._table.ledger
        ledger.when_durable(ledger.pending_barrier(), free)

    def follow(self) -> int:
        """Remove what stood on payloads that went: it holds a part only, and what was deleted
        must not live on in its extensions. Returns how many cubes that concerned."""
        fallen: dict[bytes, set[PayloadKey]] = {}
        for key in self._fallen:
            cube_id = self._prefixes.cube_of(key)
            if cube_id is not None:  # else it went already, with its cube
                fallen.setdefault(cube_id, set()).add(key)
        self._fallen.clear()
        # All are read before one is changed: a scan passes by all changes not committed yet.
        for found in [self._damaged_or_found(cube_id) for cube_id in fallen]:
            if found is not None:
                self._lose(found, fallen[found.cube_id], "what it stands on was removed")
        return len(fallen)

    def receipt(self, who: Identity) -> Receipt | None:
        """Have fall what was derived from what was changed or removed; None: nothing was."""
        gone = self._lineage.settle(self._fall)
        if not gone:
            return None
        shown = islice((it.fallen for it in gone if self._cubes.may_read(who, it.row)), RECEIPT_MAX)
        return Receipt(len(gone), tuple(shown))

    def _fall(self, falling: list[Falling]) -> None:
        removed = [it for it in falling if it.gone is not None and it.gone.fallen.is_removed]
        self._prefixes.set_apart({each.key for each in removed})
        for key, reason, gone in falling:
            if (
                gone is None
                or not gone.fallen.is_removed
                or not self._lose_fallen(key, reason, gone)
            ):
                self._mark(key, reason, gone)
        self.follow()

    def _lose_fallen(self, key: PayloadKey, reason: str, gone: Gone) -> bool:
        """False where rows of the cube are damaged."""
        try:
            row = self._table.cube_row(gone.fallen.id)  # another version may have gone by now
            if row is not None:
                self._lose(self._found(gone.fallen.id, row), {key}, reason, EventKind.FALL)
        except MemError:
            return False
        return True

    def _mark(self, key: PayloadKey, reason: str, gone: Gone | None) -> None:
        """Hand it out no more, and let go what stands on it."""
        self._table.set_outdated(key, reason)
        self._fallen += self._prefixes.above(key)
        if gone is not None and gone.row.current.payload_id == key:
            self._table.log.note(EventKind.OUTDATE, gone.fallen.id, gone.row)

    def _damaged_or_found(self, cube_id: bytes) -> _Found | None:
        try:
            row = self._table.cube_row(cube_id)
            return self._found(cube_id, row) if row is not None else None
        except MemError as error:
            # Its rows stay, but are mapped no more; fsck reports them.
            self._heat.decide(cube_id, "stands on nothing", str(error))
            return None

    def free_payload(self, key: PayloadKey, *, is_inline: bool) -> None:
        """Free the bytes of a payload that no durable row names."""
        self._pager.forget(key)
        self.on_free(key)
        if not is_inline:
            self._io.run(self._disk.free, key)

    # -- expiry and loss -----------------------------------------------------------------------

    def expire(self, start: bytes = b"") -> bytes | None:
        """Remove what is due among a stretch of cubes from `start` on; where to go on, None at
        the end. Damaged rows are passed over: fsck reports them."""
        now = self._clock.wall_ns().to_bytes(8, "big")
        stretch = islice(self._table.ledger.scan("expiry", start), _EXPIRY_STRETCH)
        due = [key for key, _ in stretch if key[:8] <= now]
        for key in due:
            self._expire_one(key)
        return due[-1] + b"\0" if len(due) == _EXPIRY_STRETCH else None

    def _expire_one(self, key: bytes) -> None:
        cube_id = key[8:]
        with suppress(MemError):
            row = self._table.cube_row(cube_id)
            if row is None or row.expires_ns != int.from_bytes(key[:8], "big"):
                self._table.ledger.delete("expiry", key)
            else:
                self.remove_expired(cube_id, row)

    def remove_expired(self, cube_id: bytes, row: CubeRow) -> None:
        """Remove a cube whose time is over. Errors: ECORRUPT; then nothing changed."""
        self._remove(self._found(cube_id, row), EventKind.EXPIRE, actor_uid=0)
        self.follow()
        self._lineage.settle(self._fall)

    def lose(self, key: PayloadKey, reason: str) -> None:
        """A cache payload is nowhere any more: remove the versions that showed it.

        Errors: ECORRUPT: its cube's rows are damaged; then nothing changed.
        """
        cube_id = self._table.cache_owner(key)
        if cube_id is None:
            return  # it went with what it stood on, which was lost before
        row = self._table.cube_row(cube_id)
        if row is None:
            self._table.set_settled(key)
            return
        self._is_loss = True
        try:
            self._lose(self._found(cube_id, row), {key}, reason)
            self.follow()
        finally:
            self._is_loss = False

    def _lose(
        self, found: _Found, keys: set[PayloadKey], reason: str, kind: EventKind = EventKind.LOSE
    ) -> None:
        """Remove the versions that show these payloads, and the cube where none is left."""
        cube_id, row, older, space = found
        self._heat.decide(cube_id, "lost", reason)
        left = [version for version in older if version.payload_id not in keys]
        if not left and row.current.payload_id in keys:
            self._remove(found, kind, actor_uid=0)
            return
        doomed = [version for version in older if version.payload_id in keys]
        for version in doomed:
            self._table.drop_history(cube_id, version.version)
        if row.current.payload_id in keys:
            # The newest version that is left becomes the current one; its number was never reused.
            doomed.append(row.current)
            row.current = left[-1]
            self._table.drop_history(cube_id, row.current.version)
            self._table.put_cube(cube_id, row)
        self._drop_versions(doomed, [*left, row.current], (space, row.name))
        self._table.log.note(kind, cube_id, row)

    # -- rename --------------------------------------------------------------------------------

    def rename(self, who: Identity, request: RenameCube) -> RenameReply:
        """Errors: as its row says."""
        new_name = parse_name(request.new_name)
        cube, space = self._cubes.open(who, parse_name(request.name), WRITE)
        space.require(who, WRITE | EXECUTE)
        self._cubes.check_version(cube, request.expected_version, request.name)
        target = self._namespaces.find(namespace_of(new_name))
        target.require(who, WRITE | EXECUTE)
        if self._require_free(new_name):
            # What gave way may have taken the cube with it, or its newest version.
            cube, space = self._cubes.open(who, request.name, WRITE)
            self._cubes.check_version(cube, request.expected_version, request.name)
        self._change_place(cube, (space, cube.row.name), (target, new_name))
        row = msgspec.structs.replace(cube.row, name=new_name, namespace=target.id)
        self._table.drop_name(cube.row.name)
        self._table.put_name(new_name, cube.id)
        self._table.put_cube(cube.id, row)
        self._table.log.note(
            EventKind.RENAME, cube.id, row, actor_uid=who.uid, old_name=cube.row.name
        )
        return RenameReply(version=row.current.version)

    def _require_free(self, name: str) -> bool:
        """Errors: EEXIST. An expired cube that is not swept yet gives way: then it is True."""
        cube_id = self._table.find_id(name)
        row = self._table.cube_row(cube_id) if cube_id is not None else None
        if cube_id is None:
            return False
        if row is None or not self._table.is_expired(row):
            raise MemError(Errno.EEXIST, "the new name is taken", cube=name)
        self.remove_expired(cube_id, row)
        return True

    def _change_place(
        self, cube: Cube, old: tuple[Namespace, str], new: tuple[Namespace, str]
    ) -> None:
        """Charge a cube to the namespace and the control groups of another name.

        Errors: EDQUOT; then nothing moved.
        """
        group_of = self._namespaces.control.group_of
        before, group = group_of(*old), group_of(*new)
        if before.number == group.number and not _is_being_counted(group):
            return
        versions = [*self._table.older_versions(cube.id), cube.row.current]
        payloads = {v.payload_id for v in versions}
        charge = self._cubes.charge_of_versions(versions)
        self._namespaces.move(old, new, charge)
        moved: list[PayloadKey] = []
        try:
            for key in payloads:
                self._pager.move(key, group)
                moved.append(key)
        except MemError:
            self._namespaces.move(new, old, charge)
            for key in moved:
                self._pager.move(key, before)
            raise
        for key in payloads:
            self._prefixes.move(key, group.space)
            self.on_move(key, group)

        def undo(error: MemError | None) -> None:
            row = self._table.cube_row(cube.id) if error else None
            if row is None:
                return
            # The group that it came from may have been undone as well.
            back = group_of(self._namespaces.by_id(row.namespace), row.name)
            for key in moved:
                # Where the old place was taken meanwhile, it stays charged to the new one.
                with suppress(MemError):
                    self._pager.move(key, back)

        ledger = self._table.ledger
        ledger.when_durable(ledger.pending_barrier(), undo)


def _is_being_counted(group: Group) -> bool:
    """Then a cube may go from the part of a folder that was added up to the one that was not."""
    return any(each.counted_to is not None for each in group.lineage)


def _nobody_forgets(key: PayloadKey) -> None:
    raise RuntimeError(f"assembly left on_free unset: {key.hex()}")


def _nobody_follows(key: PayloadKey, group: Group) -> None:
    raise RuntimeError(f"assembly left on_move unset: {key.hex()} {group.path}")
