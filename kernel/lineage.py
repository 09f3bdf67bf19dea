"""Lineage: which payloads were made from which, and what falls when a source is not so any more.

A version whose attributes have a `derivation` was made from its parents. Its payload is filed with
all its sources: its parents' payloads, and whatever these were made from. So one look at the
rows of a changed payload finds all that falls with it, however far away. What can be computed again
(cache cubes) is removed, what cannot is marked as outdated: both in the commit of the change, so
that whoever has heard of the change finds neither.

Invariant: a derived payload is gone, or outdated, or each of its sources is the payload of its
cube's current version and still holds, except for sources that were lost for want of room: nobody
changed those. Kernel thread only.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import SOURCES_MAX
from libmem.abi.lineage import Fallen
from libmem.abi.structs import Descriptive, Durability
from memosd.kernel.ledger import Ledger
from memosd.kernel.pagetable import Cube, PageTable
from memosd.kernel.ports import Clock, PayloadKey, Store
from memosd.kernel.rows import CubeRow, DerivedRow, VersionRow, decode_row, encode_row, seal_value

__all__ = ["Falling", "Gone", "Lineage", "Source", "check_apart"]

Source = tuple[PayloadKey, bytes]
"""A payload and its cube."""


class Gone(NamedTuple):
    """What fell, and the cube's row, by which it is told who may know."""

    row: CubeRow
    fallen: Fallen


class _Withdrawn(NamedTuple):
    key: PayloadKey
    reason: str


class Falling(NamedTuple):
    """A payload, and why it falls."""

    key: PayloadKey
    reason: str
    gone: Gone | None
    """None: whose it is cannot be read, for rows are damaged."""


Fall = Callable[[list[Falling]], None]
"""Remove the versions that show these payloads, or mark them."""


class Lineage:
    """See the head of this file."""

    def __init__(self, ledger: Ledger, store: Store, table: PageTable, clock: Clock) -> None:
        self._ledger = ledger
        self._table = table
        self._clock = clock
        self._is_used = store.count("edges") > 0
        """Without any derived payload nothing is looked for."""
        self._withdrawn: list[_Withdrawn] = []
        """Sources whose derived payloads are still to fall, in the same commit."""

    # -- what is made from what ------------------------------------------------------------------

    def sources_of(self, parents: Iterable[Cube]) -> tuple[Source, ...]:
        """All that something made from these versions comes from.

        Errors: EOUTDATED (one is not current, does not hold any more, or is outdated itself),
        EINVAL (too many), ECORRUPT.
        """
        found: dict[PayloadKey, bytes] = {}
        for parent in parents:
            self.check(parent)
            found[parent.key] = parent.id
            row = self._row(parent.key)
            found.update(row.sources if row is not None else ())
        if not found:
            raise MemError(Errno.EINVAL, "what is derived has parents")
        if len(found) > SOURCES_MAX:
            raise MemError(Errno.EINVAL, f"made from {len(found)} others; at most {SOURCES_MAX}")
        return tuple(found.items())

    def check(self, cube: Cube) -> None:
        """May something be made from this version? Errors: EOUTDATED."""
        problem = self._table.outdated.get(cube.key, "")
        if cube.key != cube.row.current.payload_id:
            problem = "there is a newer version"
        elif _has_ended(cube.row.current.descriptive, self._clock.wall_ns()):
            problem = "it does not hold any more"
        if problem:
            raise MemError(
                Errno.EOUTDATED, f"a source is no source any more: {problem}",
                cube=cube.row.name, version=cube.version.version,
            )  # fmt: skip

    def check_outdated(self, cube: Cube) -> None:
        """May it be handed out? Errors: EOUTDATED."""
        reason = self._table.outdated.get(cube.key)
        if reason is not None:
            raise MemError(
                Errno.EOUTDATED, reason, cube=cube.row.name, version=cube.version.version
            )

    def add(self, key: PayloadKey, cube_id: bytes, sources: tuple[Source, ...]) -> None:
        """File a derived payload about to be committed."""
        self._is_used = True
        self._ledger.put("derived", key, encode_row(key, DerivedRow(cube_id, sources)))
        for source, _ in sources:
            edge = source + key
            self._ledger.put("edges", edge, seal_value(edge, b""))

    def drop(self, key: PayloadKey) -> None:
        """The payload's rows go."""
        if not self._is_used:
            return
        with suppress(MemError):  # what a damaged row leaves behind leads to nothing
            row = self._row(key)
            for source, _ in row.sources if row is not None else ():
                self._ledger.delete("edges", source + key)
        if self._ledger.get("derived", key) is not None:
            self._ledger.delete("derived", key)

    def derived_from(self, key: PayloadKey) -> Iterator[tuple[PayloadKey, bytes]]:
        """(payload, cube) of all that was made from a payload, directly or not; no cube where the
        row that names it is damaged."""
        if not self._is_used:
            return
        for edge, _ in self._ledger.scan("edges", key, key):
            derived = edge[len(key) :]
            cube_id = b""
            with suppress(MemError):
                row = self._row(derived)
                cube_id = row.cube_id if row is not None else b""
            yield derived, cube_id

    def check_chain(self, keys: Iterable[PayloadKey], cube_ids: set[bytes]) -> None:
        """Is none of these payloads made from one of the cubes, which are about to change?

        Errors: EINVAL, ECORRUPT.
        """
        for key in keys:
            row = self._row(key)
            check_apart(row.sources if row is not None else (), cube_ids)

    def _row(self, key: PayloadKey) -> DerivedRow | None:
        """Errors: ECORRUPT."""
        value = self._ledger.get("derived", key) if self._is_used else None
        return decode_row(DerivedRow, "derived", key, value) if value is not None else None

    # -- what falls --------------------------------------------------------------------------------

    def replaced(self, old: VersionRow, new: VersionRow) -> None:
        """A cube has another current version."""
        if new.payload_id != old.payload_id:
            self.withdraw(old.payload_id, "it was changed")
        elif _is_newly_ended(old.descriptive, new.descriptive):
            self.withdraw(old.payload_id, "it does not hold any more")

    def withdraw(self, key: PayloadKey, reason: str) -> None:
        """A payload is not what its cube says any more; `settle` follows."""
        if self._is_used:
            self._withdrawn.append(_Withdrawn(key, reason))

    def settle(self, fall: Fall) -> list[Gone]:
        """Have all that was made from withdrawn payloads fall."""
        gone: list[Gone] = []
        while self._withdrawn:
            withdrawn, self._withdrawn = self._withdrawn, []
            # All are read before one is changed: a scan passes by all changes not committed yet.
            found: dict[PayloadKey, tuple[bytes, str]] = {}
            for key, reason in withdrawn:
                for derived, cube_id in self.derived_from(key):
                    found.setdefault(derived, (cube_id, f"a source is no more: {reason}"))
            falling = [
                self._falling(key, *why)
                for key, why in found.items()
                if key not in self._table.outdated and self._table.has_payload(key)
            ]
            fall(falling)
            gone += [each.gone for each in falling if each.gone is not None]
            # What was made from these has the same sources, and fell with them.
            self._withdrawn = [each for each in self._withdrawn if each.key not in found]
        return gone

    def _falling(self, key: PayloadKey, cube_id: bytes, reason: str) -> Falling:
        try:
            row = self._table.cube_row(cube_id) if cube_id else None
            version = self._version_of(key, cube_id, row) if row is not None else 0
        except MemError:
            row, version = None, 0
        if row is None or not version:
            return Falling(key, reason, None)
        is_removed = row.durability is Durability.CACHE
        return Falling(
            key, reason, Gone(row, Fallen(row.name, cube_id, version, row.type, is_removed))
        )

    def _version_of(self, key: PayloadKey, cube_id: bytes, row: CubeRow) -> int:
        """The newest version that shows a payload; 0: none does. Errors: ECORRUPT."""
        if row.current.payload_id == key:
            return row.current.version
        older = [it.version for it in self._table.older_versions(cube_id) if it.payload_id == key]
        return max(older, default=0)


def check_apart(sources: tuple[Source, ...], cube_ids: set[bytes]) -> None:
    """Are these cubes, which are about to change, none of the sources? Errors: EINVAL."""
    if any(cube_id in cube_ids for _, cube_id in sources):
        raise MemError(Errno.EINVAL, "what is derived replaces and supersedes no source")


def _is_newly_ended(old: Descriptive, new: Descriptive) -> bool:
    is_ended = bool(new.valid_to_ns) and new.valid_to_ns != old.valid_to_ns
    return is_ended or (bool(new.superseded_by) and new.superseded_by != old.superseded_by)


def _has_ended(descriptive: Descriptive, now_ns: int) -> bool:
    return bool(descriptive.valid_to_ns) and descriptive.valid_to_ns <= now_ns
