"""The page table: names, cubes, versions and small payloads, typed, over the ledger.

The durable rows are the truth; what is in memory are the changes not yet committed (the ledger)
and what processes use right now (the pager's residents). A look-up is therefore one or two B-tree
descents in mapped memory, and a daemon with a million cubes boots as fast as an empty one
(docs/design/0002-kernel.md). Nothing here asks who is calling. Kernel thread only.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.names import NameRef
from libmem.abi.structs import StoredForm
from memosd.kernel.ledger import Ledger
from memosd.kernel.log import Log
from memosd.kernel.ports import Clock, PayloadKey, Store
from memosd.kernel.rows import (
    CubeRow,
    VersionRow,
    decode_page,
    decode_row,
    encode_page,
    encode_row,
    seal_value,
    unseal_value,
    version_key,
)

__all__ = ["Cube", "PageTable", "new_id"]


_HISTORY_SCAN_MAX: Final = 8192
"""Version numbers looked at per call; removed ones leave gaps."""
_HOT_MAX: Final = 4096
"""Resolved names kept in memory, a few kilobytes each at most."""
_HOT_ROW_MAX_BYTES: Final = 1024


class _Ids:
    """128-bit ids, ordered by creation to the millisecond as UUIDv7: new rows are neighbours."""

    def __init__(self) -> None:
        self._tails: list[bytes] = []

    def __call__(self, now_ns: int) -> bytes:
        # By the block: each urandom() gives the interpreter up, and must get it back.
        if not self._tails:
            block = os.urandom(4000)
            self._tails = [block[at : at + 10] for at in range(0, len(block), 10)]
        return (now_ns // 1_000_000).to_bytes(6, "big") + self._tails.pop()


new_id = _Ids()


class Cube(NamedTuple):
    """A resolved reference: the cube's row and the version that was meant."""

    id: bytes
    row: CubeRow
    version: VersionRow

    @property
    def key(self) -> PayloadKey:
        return self.version.payload_id

    @property
    def is_current(self) -> bool:
        return self.version is self.row.current


class PageTable:
    """Typed access to the rows of cubes."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock) -> None:
        self.ledger = ledger
        self._clock = clock
        self.log = Log(ledger, store, clock)
        self._store = store
        self.quarantined: set[PayloadKey] = set()
        self.outdated: dict[PayloadKey, str] = {}
        """Derived payloads of which a source is not so any more, and why."""
        self.volatile: dict[PayloadKey, bytes] = {}
        """Cache payloads that are in RAM only, and the cube of each."""
        self._reload()
        self._hot: dict[str, Cube] = {}
        """Names resolved lately, as the durable rows have them; never changed, only replaced."""
        ledger.on_rollback.append(self._on_rollback)

    # -- look-ups ------------------------------------------------------------------------------

    def find_id(self, name: str) -> bytes | None:
        key = name.encode()
        value = self.ledger.get("names", key)
        return None if value is None else unseal_value("names", key, value)

    def cube_row(self, cube_id: bytes) -> CubeRow | None:
        """Errors: ECORRUPT."""
        return self.sized_row(cube_id)[0]

    def sized_row(self, cube_id: bytes) -> tuple[CubeRow | None, int]:
        """A cube's row, and how many bytes it takes. Errors: ECORRUPT."""
        value = self.ledger.get("cubes", cube_id)
        if value is None:
            return None, 0
        return decode_row(CubeRow, "cubes", cube_id, value), len(value)

    def resolve(self, ref: NameRef) -> Cube:
        """The cube and version behind a parsed name. Errors: ENOENT, ECORRUPT."""
        hot = self._hot.get(ref.name)
        if hot is not None and not ref.version and not self.is_expired(hot.row):
            return hot
        cube_id = self.find_id(ref.name)
        row, size_bytes = self.sized_row(cube_id) if cube_id is not None else (None, 0)
        if cube_id is None or row is None or self.is_expired(row):
            raise MemError(Errno.ENOENT, "no such cube", cube=ref.name)
        cube = Cube(cube_id, row, self._version(cube_id, row, ref))
        if cube.is_current and size_bytes <= _HOT_ROW_MAX_BYTES:
            self._remember(cube)
        return cube

    def _remember(self, cube: Cube) -> None:
        """Keep a resolved name at hand, unless the rows it came from are not durable yet."""
        name = cube.row.name
        pending = self.ledger.is_pending
        if pending("names", name.encode()) or pending("cubes", cube.id):
            return
        if len(self._hot) >= _HOT_MAX:
            self._hot.clear()
        self._hot[name] = cube

    def _version(self, cube_id: bytes, row: CubeRow, ref: NameRef) -> VersionRow:
        if ref.version in (0, row.current.version):
            return row.current
        if ref.version <= row.last_version:  # a name may hold larger numbers than a key
            key = version_key(cube_id, ref.version)
            value = self.ledger.get("history", key)
            if value is not None:
                return decode_row(VersionRow, "history", key, value)
        raise MemError(Errno.ENOENT, "no such version", cube=ref.name, version=ref.version)

    def durable_cube(self, cube_id: bytes) -> Cube | None:
        """The cube as of the last commit, for whatever follows the log. Errors: ECORRUPT."""
        value = self._store.get("cubes", cube_id)
        if value is None:
            return None
        row = decode_row(CubeRow, "cubes", cube_id, value)
        return Cube(cube_id, row, row.current)

    def is_expired(self, row: CubeRow) -> bool:
        return bool(row.expires_ns) and row.expires_ns <= self._clock.wall_ns()

    def older_versions(self, cube_id: bytes) -> list[VersionRow]:
        """All but the current one, oldest first."""
        return [
            decode_row(VersionRow, "history", key, value)
            for key, value in self.ledger.scan("history", cube_id, cube_id)
        ]

    def latest_versions(self, cube_id: bytes, row: CubeRow, limit: int) -> Iterator[VersionRow]:
        """The newest `limit` versions, newest first, the current one included. Errors: ECORRUPT."""
        yield row.current
        found = 1
        # One by one downwards: a cube may have more versions than one call should read.
        for number in islice(range(row.last_version, 0, -1), _HISTORY_SCAN_MAX):
            if found >= limit:
                return
            key = version_key(cube_id, number)
            value = self.ledger.get("history", key)
            if value is not None:
                found += 1
                yield decode_row(VersionRow, "history", key, value)

    def payload(self, version: VersionRow) -> bytes:
        """A small payload, verified. Errors: ECORRUPT."""
        return self._checked(self.ledger.get("payloads", version.payload_id), version)

    def durable_payload(self, version: VersionRow) -> bytes:
        """As `payload`, as of the last commit. Errors: ECORRUPT."""
        return self._checked(self._store.get("payloads", version.payload_id), version)

    @staticmethod
    def _checked(value: bytes | None, version: VersionRow) -> bytes:
        if value is None or digest_of(value) != version.digest:
            raise MemError(Errno.ECORRUPT, "the payload does not match its digest")
        return value

    def scan_names(self, start: bytes, prefix: bytes) -> Iterator[tuple[str, bytes]]:
        """(name, sealed id) in name order; open the id with `opened_id`."""
        for key, value in self.ledger.scan("names", start, prefix):
            yield key.decode(), value

    def scan_cubes(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(cube id, raw row) in order of creation."""
        return self.ledger.scan("cubes", start)

    def opened_id(self, name: str, value: bytes) -> bytes:
        """Errors: ECORRUPT."""
        return unseal_value("names", name.encode(), value)

    def count(self) -> int:
        """Cubes as of the last commit."""
        return self._store.count("cubes")

    # -- changes -------------------------------------------------------------------------------

    def put_cube(self, cube_id: bytes, row: CubeRow) -> None:
        self._hot.pop(row.name, None)
        self.ledger.put("cubes", cube_id, encode_row(cube_id, row))

    def put_name(self, name: str, cube_id: bytes) -> None:
        self._hot.pop(name, None)
        key = name.encode()
        self.ledger.put("names", key, seal_value(key, cube_id))

    def drop_name(self, name: str) -> None:
        self._hot.pop(name, None)
        self.ledger.delete("names", name.encode())

    def drop_cube(self, cube_id: bytes) -> None:
        self.ledger.delete("cubes", cube_id)
        self.ledger.delete("heat", cube_id)

    def put_history(self, cube_id: bytes, version: VersionRow) -> None:
        key = version_key(cube_id, version.version)
        self.ledger.put("history", key, encode_row(key, version))

    def drop_history(self, cube_id: bytes, version: int) -> None:
        self.ledger.delete("history", version_key(cube_id, version))

    def put_payload(self, key: PayloadKey, payload: bytes) -> None:
        self.ledger.put("payloads", key, payload)

    def drop_payload(self, key: PayloadKey, *, is_inline: bool) -> None:
        """Forget a payload's rows; a page file is the caller's to free once this is durable."""
        self.ledger.delete("payloads" if is_inline else "pages", key)
        if key in self.volatile:
            self.set_settled(key)
        if self.is_kept(key):
            self.ledger.delete("kept", key)
        if self.outdated.pop(key, None) is not None:
            self.ledger.delete("outdated", key)
        if key in self.quarantined:
            self.quarantined.discard(key)
            self.ledger.delete("quarantine", key)

    def put_page_file(
        self, key: PayloadKey, cube_id: bytes, form: StoredForm | None = None
    ) -> None:
        """A payload lies, or will lie, in a page file; there it has this form."""
        self.ledger.put("pages", key, encode_page(key, cube_id, form))

    def stored_form(self, key: PayloadKey) -> StoredForm | None:
        """What its page file holds instead of the payload itself; None also where the row is
        damaged: whoever then reads the file finds another digest."""
        with suppress(MemError):
            return decode_page(key, self.ledger.get("pages", key) or b"")[1]
        return None

    def has_payload(self, key: PayloadKey) -> bool:
        """Does any row name this payload?"""
        return any(self.ledger.get(table, key) is not None for table in ("payloads", "pages"))

    def has_page_file(self, key: PayloadKey) -> bool:
        """Does any row name this page file, be it one whose removal may still fail?"""
        return any(rows.get("pages", key) is not None for rows in (self.ledger, self._store))

    def set_volatile(self, key: PayloadKey, cube_id: bytes) -> None:
        """Mark a cache payload as in RAM only."""
        self.volatile[key] = cube_id
        self.ledger.put("volatile", key, seal_value(key, cube_id))

    def set_settled(self, key: PayloadKey) -> None:
        """It is in RAM only no more."""
        self.volatile.pop(key, None)
        self.ledger.delete("volatile", key)

    def set_kept(self, key: PayloadKey, cube_id: bytes) -> None:
        """Mark a cache payload as on disk: there it stays as long as there is room."""
        self.set_settled(key)
        self.ledger.put("kept", key, seal_value(key, cube_id))

    def is_kept(self, key: PayloadKey) -> bool:
        """Is it a cache payload on disk?"""
        return self.ledger.get("kept", key) is not None

    def scan_kept(self, start: PayloadKey) -> Iterator[tuple[PayloadKey, bytes]]:
        """(cache payload on disk, its cube), oldest first; damaged rows are passed over."""
        for key, value in self.ledger.scan("kept", start):
            owner = _owner(("kept", "pages"), key, value, self.ledger.get("pages", key))
            if owner is not None:
                yield key, owner

    def cache_owner(self, key: PayloadKey) -> bytes | None:
        """The cube of a cache payload, wherever that lies; None: it is gone, or durable."""
        kept = self.ledger.get("kept", key)
        if kept is None:
            return self.volatile.get(key)
        return _owner(("kept", "pages"), key, kept, self.ledger.get("pages", key))

    def put_expiry(self, cube_id: bytes, expires_ns: int) -> None:
        if expires_ns:
            self.ledger.put("expiry", expires_ns.to_bytes(8, "big") + cube_id, b"")

    def drop_expiry(self, cube_id: bytes, expires_ns: int) -> None:
        if expires_ns:
            self.ledger.delete("expiry", expires_ns.to_bytes(8, "big") + cube_id)

    def quarantine(self, key: PayloadKey, problem: str) -> bool:
        """Never serve this payload again. False when it was known already."""
        if key in self.quarantined:
            return False
        self.quarantined.add(key)
        self.ledger.put("quarantine", key, seal_value(key, problem.encode()))
        return True

    def set_outdated(self, key: PayloadKey, reason: str) -> None:
        """Hand this derived payload out no more, unless it is asked for so."""
        self.outdated[key] = reason
        self.ledger.put("outdated", key, seal_value(key, reason.encode()))

    # -- what is in memory -----------------------------------------------------------------------

    def _on_rollback(self, _error: MemError) -> None:
        self._hot.clear()
        self._reload()

    def _reload(self) -> None:
        self.quarantined = {key for key, _ in self._store.scan("quarantine", b"")}
        self.outdated = {
            key: _text("outdated", key, value) for key, value in self._store.scan("outdated", b"")
        }
        owners = [
            (key, _owner(("volatile", "pages"), key, value, self._store.get("pages", key)))
            for key, value in self._store.scan("volatile", b"")
        ]
        self.volatile = {key: owner for key, owner in owners if owner is not None}


def _text(table: str, key: bytes, value: bytes) -> str:
    """What a row says, in words; that it is damaged, where it is."""
    try:
        return unseal_value(table, key, value).decode(errors="replace")
    except MemError as error:
        return str(error)


def _owner(tables: tuple[str, str], key: PayloadKey, *sealed: bytes | None) -> bytes | None:
    """The cube of a cache payload, by the first row of two that is whole."""
    for table, value in zip(tables, sealed, strict=True):
        with suppress(MemError):
            return unseal_value(table, key, value or b"")[: len(key)]  # `pages` may go on
    return None
