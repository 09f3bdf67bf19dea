"""Salvage: removing a cube whose own rows cannot be read, and finding out what it is called.

For the administrator alone. What a damaged row says is believed only where a sound one, or the
payload itself, says the same: page files name their cube, a small payload has the digest that
stands beside its key. What the cube was charged is what its namespace holds beyond all its other
cubes. What cannot be told apart stays: a payload that nothing leads to in the table, the charge of
one damaged cube among several until the last of them goes.

The tables are searched a stretch per turn; all that is found goes in one commit. Kernel thread
only.
"""

import re
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Final, NamedTuple

from libmem.abi.calls import UnlinkReply
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.names import namespace_of
from libmem.abi.structs import EventKind
from memosd.kernel.access import Identity
from memosd.kernel.cubes import Cubes
from memosd.kernel.namespace import Namespace
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.removal import Removal
from memosd.kernel.rows import CubeRow, EventRow, decode_row
from memosd.kernel.wait import Completion

__all__ = ["Salvage"]

_STRETCH: Final = 2048
"""Rows looked at before others have their turn."""
_ID_BYTES: Final = 16
_ID_FIELD: Final = re.compile(rb"(?=\xc4\x10(.{16}))", re.DOTALL)
"""16 bytes in msgpack, wherever they stand."""


class _Remains(NamedTuple):
    """What is left of a damaged cube. `row` is None where it is the row that cannot be read."""

    id: bytes
    row: CubeRow | None
    payloads: dict[PayloadKey, bool]
    """Key -> does it lie in the table?"""
    history: list[bytes]
    expiry: list[bytes]


class Salvage:
    """See the head of this file."""

    def __init__(
        self,
        parts: Parts,
        cubes: Cubes,
        removal: Removal,
        next_turn: Callable[[], Completion[None]],
    ) -> None:
        self._table = parts.table
        self._ledger = parts.table.ledger
        self._namespaces = parts.namespaces
        self._residents = parts.residents
        self._heat = parts.heat
        self._clock = parts.clock
        self._cubes = cubes
        self._removal = removal
        self._next_turn = next_turn

    async def names_of(self, ids: Collection[bytes]) -> dict[bytes, str]:
        """What leads to these cubes, as far as anything does."""
        found = await self._rows_where("names", lambda _, value: value[-_ID_BYTES:] in ids)
        return {value[-_ID_BYTES:]: key.decode() for key, value in found.items()}

    async def unlink(self, who: Identity, name: str) -> UnlinkReply:
        """Remove a name and all that can be found of its cube. The caller saw that it is damaged.

        Errors: ENOENT, EBUSY (too much happens in a large namespace for its account to be drawn
        up).
        """
        space = self._namespaces.find(namespace_of(name))
        value = self._value_of(name)
        cube_id = await self._id_of(name, value)
        pages, expiry = await self._rows_of(cube_id)
        others_bytes = await self._charge_of_others(space, name)
        # From here on nobody has a turn before all of it is done.
        if self._value_of(name) != value:
            raise MemError(Errno.EBUSY, "it is being renamed or made anew; try again", cube=name)
        remains = self._remains(cube_id, pages, expiry)
        freed = 0 if others_bytes is None else space.disk_bytes - others_bytes
        self._namespaces.charge(space, name, -freed, cubes=-1)
        self._drop(name, remains)
        self._removal.follow()
        self._removal.receipt(who)
        self._table.log.append(self._event(who, name, space, remains))
        return UnlinkReply(freed_bytes=freed, versions=len(remains.history) + 1)

    # -- searching -----------------------------------------------------------------------------

    async def _rows_where(
        self, table: str, matches: Callable[[bytes, bytes], bool]
    ) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        start = b""
        while True:
            stretch = list(islice(self._ledger.scan(table, start), _STRETCH))
            found.update((key, value) for key, value in stretch if matches(key, value))
            if len(stretch) < _STRETCH:
                return found
            start = stretch[-1][0] + b"\0"
            await self._next_turn()

    def _value_of(self, name: str) -> bytes:
        """The row of a name as it is. Errors: ENOENT."""
        value = self._ledger.get("names", name.encode())
        if value is None:
            raise MemError(Errno.ENOENT, "no such cube", cube=name)
        return value

    async def _id_of(self, name: str, value: bytes) -> bytes:
        """The cube of a name, also of a damaged one; empty where nothing tells."""
        try:
            return self._table.opened_id(name, value)
        except MemError:
            cube_id = value[-_ID_BYTES:]
        # Its last bytes may be whole, or those of another cube's row that strayed here.
        leading = await self._rows_where("names", lambda _, row: row.endswith(cube_id))
        if len(leading) == 1 and self._ledger.get("cubes", cube_id) is not None:
            return cube_id
        named = await self._rows_where("cubes", lambda key, row: _name_in(key, row) == name)
        return next(iter(named), b"")

    async def _rows_of(self, cube_id: bytes) -> tuple[list[PayloadKey], list[bytes]]:
        """The page files and the expiry of a cube, by the rows that name it."""
        if not cube_id:
            return [], []
        pages = await self._rows_where("pages", lambda _, value: value.endswith(cube_id))
        expiry = await self._rows_where("expiry", lambda key, _: key.endswith(cube_id))
        return list(pages), list(expiry)

    def _remains(self, cube_id: bytes, pages: list[PayloadKey], expiry: list[bytes]) -> _Remains:
        if not cube_id:
            return _Remains(b"", None, {}, [], [])
        history = dict(self._ledger.scan("history", cube_id, cube_id))
        value = self._ledger.get("cubes", cube_id) or b""
        inline = [
            key for row in (*history.values(), value) for key in self._small_payloads(cube_id, row)
        ]
        payloads = {**dict.fromkeys(inline, True), **dict.fromkeys(pages, False)}
        for resident in self._residents:
            if resident.cube_id == cube_id and not resident.is_orphan:
                payloads.setdefault(resident.key, True)
        try:
            row = decode_row(CubeRow, "cubes", cube_id, value)
        except MemError:
            row = None
        return _Remains(cube_id, row, payloads, list(history), expiry)

    def _small_payloads(self, cube_id: bytes, row: bytes) -> Iterator[PayloadKey]:
        """Payloads in the table whose key and digest both stand in a row, readable or not."""
        for match in _ID_FIELD.finditer(row):
            key = match[1]
            payload = self._ledger.get("payloads", key)
            # A parent's id is the key of its first payload: that one is the parent's.
            is_ours = key == cube_id or self._ledger.get("cubes", key) is None
            if payload is not None and is_ours and digest_of(payload) in row:
                yield key

    # -- the account ---------------------------------------------------------------------------

    async def _charge_of_others(self, space: Namespace, name: str) -> int | None:
        """What the namespace's other cubes are charged; None where another one is damaged.

        Errors: EBUSY.
        """
        changes, total_bytes = space.changes, 0
        start = prefix = space.row.name.encode() + b"/"
        while True:
            stretch = list(islice(self._ledger.scan("names", start, prefix), _STRETCH))
            try:
                total_bytes += sum(
                    self._charge_of(space, key.decode(), value)
                    for key, value in stretch
                    if key != name.encode()
                )
            except MemError:
                return None
            if len(stretch) < _STRETCH:
                return total_bytes
            start = stretch[-1][0] + b"\0"
            await self._next_turn()
            if space.changes != changes:
                raise MemError(
                    Errno.EBUSY, "too much is written to draw up the account; try again", cube=name
                )

    def _charge_of(self, space: Namespace, name: str, value: bytes) -> int:
        """Errors: ECORRUPT."""
        cube_id = self._table.opened_id(name, value)
        row = self._table.cube_row(cube_id)
        if row is None or (row.name, row.namespace) != (name, space.id):
            raise MemError(Errno.ECORRUPT, "the name leads elsewhere", cube=name)
        return self._cubes.charge_of_versions([*self._table.older_versions(cube_id), row.current])

    # -- the commit ----------------------------------------------------------------------------

    def _drop(self, name: str, remains: _Remains) -> None:
        for key, is_inline in remains.payloads.items():
            self._removal.drop_payload(key, is_inline=is_inline)
        for table, keys in (("history", remains.history), ("expiry", remains.expiry)):
            for row_key in keys:
                self._ledger.delete(table, row_key)
        self._table.drop_name(name)
        if remains.id:
            self._table.drop_cube(remains.id)
            self._heat.forget(remains.id)

    def _event(self, who: Identity, name: str, space: Namespace, remains: _Remains) -> EventRow:
        """Shown to the cube's owner; where nobody knows who that was, to the namespace's."""
        owner = remains.row or space.row
        return EventRow(
            self._clock.wall_ns(), EventKind.UNLINK, name, remains.id,
            remains.row.current.version if remains.row else 0, who.uid, "", owner.uid, owner.gid,
            remains.row.mode if remains.row else 0o600, space.id,
        )  # fmt: skip


def _name_in(key: bytes, value: bytes) -> str:
    """The name that a cube's row has; empty where it cannot be read."""
    try:
        return decode_row(CubeRow, "cubes", key, value).name
    except MemError:
        return ""
