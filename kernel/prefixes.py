"""Prefixes: which payloads begin with which tokens, and which stand on which.

Owns what is made from the rows of `prefixes`: an order of token strings for each namespace and
model, in which the longest shared prefix is found exactly (`tokenorder`; why so is in
docs/design/0004-activation-memory.md, 3), and who stands on whom. A payload may hold only the
tokens behind those of its base; then it is of use only together with that.

The rows are the truth: all is made of them at boot, and what a failed commit had changed is taken
back step by step. Invariant: what is in an order has all that it stands on. Rows of which that
cannot be said are kept apart: they are never found or mapped, but they go with their cubes. Kernel
thread only.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import structlog

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_CHAIN_MAX, TOKEN_BYTES
from memosd.kernel.ledger import Ledger
from memosd.kernel.pagetable import Cube, PageTable
from memosd.kernel.ports import PayloadKey, Prefix, Store
from memosd.kernel.rows import PrefixRow, VersionRow, decode_row, encode_row
from memosd.kernel.tokenorder import Entry, Match, Span, TokenOrder, as_pieces, joined

__all__ = ["Match", "Prefixes", "Span"]

_log = structlog.get_logger("memosd.kernel")
_LOOK_MAX: Final = 1024
"""Neighbours looked at, over all namespaces, for one that the caller may see; beyond it a shorter
prefix is found, or none, where another user's cubes crowd a namespace."""
_LOOK_MIN: Final = 16
"""In each namespace, however many there are."""
_COMPARED_BYTES: Final = 1 << 16
_ROW_BYTES: Final = 2048
"""Comparing so many bytes of tokens, or reading so many of a cube's row, counts as one look more:
a call takes some 10 ms at worst, whatever others wrote."""


class _Lame(NamedTuple):
    """A payload that is kept apart, as far as its row can be read."""

    cube_id: bytes
    base: PayloadKey


class Prefixes:
    """See the head of this file."""

    def __init__(self, ledger: Ledger, store: Store, table: PageTable) -> None:
        self._ledger = ledger
        self._store = store
        self._table = table
        self._entries: dict[PayloadKey, Entry] = {}
        self._lame: dict[PayloadKey, _Lame] = {}
        self._orders: dict[tuple[int, bytes], TokenOrder] = {}
        self._dependents: dict[PayloadKey, set[PayloadKey]] = {}
        self._undo: list[Callable[[], None]] = []
        self._undo_flushing: list[Callable[[], None]] = []
        """How to take back what is not durable yet: the generation being filled, and the one on its
        way to the disk."""
        self._load()
        ledger.before_stage.append(self._on_stage)
        ledger.on_commit.append(self._undo_flushing.clear)
        ledger.on_rollback.append(lambda _error: self._take_back())

    def __len__(self) -> int:
        return len(self._entries)

    # -- changes -------------------------------------------------------------------------------

    def add(self, key: PayloadKey, cube_id: bytes, space: int, prefix: Prefix) -> None:
        """File a payload about to be committed; it was checked, its base included."""
        row = PrefixRow(cube_id, prefix.model, prefix.start, prefix.tokens, prefix.base)
        self._ledger.put("prefixes", key, encode_row(key, row))
        if row.base:
            self._dependents.setdefault(row.base, set()).add(key)
        self._file(key, row, space)
        self._undo.append(lambda: self._forget(key))

    def _forget(self, key: PayloadKey) -> None:
        entry = self._entries.pop(key)
        self._unfile([entry])
        if entry.base:
            self._dependents[entry.base].discard(key)

    def drop(self, key: PayloadKey) -> set[PayloadKey]:
        """Forget a payload; returns those that stand on it, directly or not, and must go as well.

        They are found and mapped no more, even where their rows are damaged and stay.
        """
        entry = self._entries.get(key)
        known = entry if entry is not None else self._lame.get(key)
        if known is None:
            return set()
        fallen, stood_on = self._fallen_with(key)
        going = [self._entries[each] for each in fallen if each in self._entries]
        self._set_apart(fallen)
        fallen.discard(key)
        apart = self._lame.pop(key)
        self._ledger.delete("prefixes", key)
        self._dependents.get(known.base, set()).discard(key)
        self._undo.append(lambda: self._put_back(key, apart, going, stood_on))
        return fallen

    def _put_back(
        self,
        key: PayloadKey,
        apart: _Lame,
        going: list[Entry],
        stood_on: dict[PayloadKey, set[PayloadKey]],
    ) -> None:
        self._lame[key] = apart
        self._bring_back(going)
        self._dependents.update(stood_on)
        if apart.base:
            self._dependents.setdefault(apart.base, set()).add(key)

    def above(self, key: PayloadKey) -> set[PayloadKey]:
        """What stands on a payload, directly or not."""
        found: set[PayloadKey] = set()
        waiting = [key]
        while waiting:
            fresh = self._dependents.get(waiting.pop(), set()) - found
            found |= fresh
            waiting += fresh
        return found

    def set_apart(self, keys: set[PayloadKey]) -> None:
        """Many that are about to be dropped are found no more: quicker at once than one by one."""
        going = [self._entries[key] for key in keys if key in self._entries]
        self._set_apart(keys)
        self._undo.append(lambda: self._bring_back(going))

    def _bring_back(self, entries: list[Entry]) -> None:
        for entry in entries:
            del self._lame[entry.key]
            self._entries[entry.key] = entry
            self._order_of(entry).add(entry)

    def _fallen_with(
        self, key: PayloadKey
    ) -> tuple[set[PayloadKey], dict[PayloadKey, set[PayloadKey]]]:
        """A payload and all that stands on it, which from now on stands on nothing; and who stood
        on whom."""
        fallen, waiting = {key}, [key]
        stood_on = {}
        while waiting:
            base = waiting.pop()
            above = self._dependents.pop(base, set())
            if above:
                stood_on[base] = set(above)
            fallen |= above
            waiting += above
        return fallen, stood_on

    def _set_apart(self, keys: set[PayloadKey]) -> None:
        going: dict[tuple[int, bytes], list[Entry]] = {}
        for key in keys:
            entry = self._entries.pop(key, None)
            if entry is not None:
                going.setdefault((entry.space, entry.model), []).append(entry)
                self._lame[key] = _Lame(entry.cube_id, entry.base)
        for entries in going.values():
            self._unfile(entries)

    def move(self, key: PayloadKey, space: int) -> None:
        """Its cube went to another namespace."""
        entry = self._entries.get(key)
        if entry is not None and entry.space != space:
            before = entry.space
            self._refile(entry, space)
            self._undo.append(lambda: self._refile(entry, before))

    def _refile(self, entry: Entry, space: int) -> None:
        self._unfile([entry])
        entry.space = space
        self._order_of(entry).add(entry)

    def _file(self, key: PayloadKey, row: PrefixRow, space: int) -> None:
        # By whoever made sure that the base is there.
        entry = self._entries[key] = Entry(key, row.cube_id, row.model, space)
        entry.stand_on(self._entries[row.base] if row.base else None, row.start, row.tokens)
        self._order_of(entry).add(entry)

    def _unfile(self, entries: list[Entry]) -> None:
        """Take entries of one order out of it."""
        order = self._order_of(entries[0])
        order.remove(entries)
        if not order:
            del self._orders[entries[0].space, entries[0].model]

    def _order_of(self, entry: Entry) -> TokenOrder:
        order = self._orders.get((entry.space, entry.model))
        if order is None:
            order = self._orders[entry.space, entry.model] = TokenOrder()
        return order

    # -- look-ups ------------------------------------------------------------------------------

    def cube_of(self, key: PayloadKey) -> bytes | None:
        """The cube whose payload this is, as far as that is known."""
        known = self._entries.get(key) or self._lame.get(key)
        return known.cube_id if known is not None else None

    def base_of(self, key: PayloadKey) -> PayloadKey:
        """What a payload stands on directly; empty where that is nothing."""
        known = self._entries.get(key) or self._lame.get(key)
        return known.base if known is not None else b""

    def span(self, key: PayloadKey) -> Span | None:
        """None where nothing is known of its tokens, or there are none."""
        entry = self._entries.get(key)
        return Span(entry.model, entry.start, entry.tokens) if entry is not None else None

    def is_stood_on(self, key: PayloadKey) -> bool:
        """Does another payload need this one?"""
        return bool(self._dependents.get(key))

    def start_of(self, key: PayloadKey) -> int:
        """The first token that a payload holds itself. Errors: ECORRUPT."""
        return self._entry(key).start

    def tokens_of(self, key: PayloadKey) -> int:
        """How many tokens, those of the base included. Errors: ECORRUPT."""
        return self._entry(key).tokens

    def packed(self, key: PayloadKey) -> Callable[[int], bytes]:
        """Gives the first so many of its token ids, on any thread. Errors: ECORRUPT."""
        pieces = self._entry(key).pieces
        return lambda tokens: joined(pieces, tokens)

    def bases(self, key: PayloadKey) -> list[Cube]:
        """What a payload stands on, nearest first.

        Errors: ECORRUPT (a part is missing, damaged or quarantined), ENOENT (one has expired).
        """
        found = []
        while key := self._entry(key).base:
            found.append(self.version_of(key))
        return found

    def check_base(self, key: PayloadKey) -> None:
        """May another payload stand on this one? Errors: EINVAL, and those of `bases`."""
        self.version_of(key)
        if len(self.bases(key)) + 2 > KV_CHAIN_MAX:
            raise MemError(
                Errno.EINVAL, f"a cube is made of at most {KV_CHAIN_MAX} parts; store it whole"
            )

    def verify(self, key: PayloadKey) -> None:
        """Is a payload's row whole, and is all there that it stands on? Errors: ECORRUPT."""
        value = self._ledger.get("prefixes", key)
        if value is not None:
            decode_row(PrefixRow, "prefixes", key, value)
        try:
            self.bases(key)
        except MemError as error:
            if error.errno not in (Errno.ENOENT, Errno.EOUTDATED):
                raise

    def version_of(self, key: PayloadKey) -> Cube:
        """A cube and its newest version that shows this payload. Errors: as `bases`."""
        cube_id = self._entry(key).cube_id
        row = self._table.cube_row(cube_id)
        version = None
        if row is not None and key not in self._table.quarantined:
            version = _showing(key, row.current, self._table, cube_id)
        if row is None or version is None:
            raise MemError(Errno.ECORRUPT, "a part of the cube is damaged", payload=key.hex())
        if key in self._table.outdated:
            raise MemError(Errno.EOUTDATED, "a part of the cube is outdated", payload=key.hex())
        if self._table.is_expired(row):
            raise MemError(Errno.ENOENT, "a part of the cube has expired", payload=key.hex())
        return Cube(cube_id, row, version)

    def _entry(self, key: PayloadKey) -> Entry:
        entry = self._entries.get(key)
        if entry is None:
            raise MemError(
                Errno.ECORRUPT, "nothing is known of a payload's tokens", payload=key.hex()
            )
        return entry

    def find(
        self,
        spaces: Mapping[int, str],
        model: bytes,
        tokens: bytes,
        may_show: Callable[[bytes], bool],
    ) -> Match | None:
        """The longest prefix of `tokens` (packed) among the cubes that `may_show` accepts.

        `spaces`: the namespaces to look in.
        """
        orders = [self._orders[space, model] for space in spaces if (space, model) in self._orders]
        looks = max(_LOOK_MIN, _LOOK_MAX // max(1, len(orders)))
        wanted = as_pieces(tokens)
        best: Match | None = None
        for order in orders:
            left = looks
            for shared, entry in order.nearest(wanted):
                if left <= 0 or (best is not None and shared <= best.tokens):
                    break
                left -= self._cost(shared, entry)
                if may_show(entry.cube_id) and self._is_whole(entry.key):
                    best = Match(entry.key, shared)
                    break
        return self._lowest(best, may_show) if best is not None else None

    def _cost(self, shared: int, entry: Entry) -> int:
        """Of a look at an entry, in looks."""
        row_bytes = len(self._ledger.get("cubes", entry.cube_id) or b"")
        return 1 + shared * TOKEN_BYTES // _COMPARED_BYTES + row_bytes // _ROW_BYTES

    def _is_whole(self, key: PayloadKey) -> bool:
        try:
            self.version_of(key)
            self.bases(key)
        except MemError:
            return False
        return True

    def _lowest(self, match: Match, may_show: Callable[[bytes], bool]) -> Match:
        """The same tokens from as few parts as hold them."""
        entry = self._entries[match.key]
        while entry.base and match.tokens <= entry.start:
            base = self._entries[entry.base]
            if not may_show(base.cube_id):
                break
            entry = base
        return Match(entry.key, match.tokens)

    # -- commits and boot ------------------------------------------------------------------------

    def _on_stage(self) -> None:
        self._undo_flushing += self._undo
        self._undo.clear()

    def _take_back(self) -> None:
        """Both generations failed."""
        for undo in reversed(self._undo_flushing + self._undo):
            undo()
        self._undo_flushing.clear()
        self._undo.clear()

    def _load(self) -> None:
        rows: dict[PayloadKey, PrefixRow] = {}
        for key, value in self._store.scan("prefixes", b""):
            try:
                row = rows[key] = decode_row(PrefixRow, "prefixes", key, value)
            except MemError as error:
                _log.warning("a prefix cannot be found", payload=key.hex(), error=str(error))
                self._lame[key] = _Lame(b"", b"")
                continue
            if row.base:
                self._dependents.setdefault(row.base, set()).add(key)
        for key, row in rows.items():
            self._restore(key, rows)
            if key not in self._entries:
                self._lame[key] = _Lame(row.cube_id, row.base)

    def _restore(self, key: PayloadKey, rows: dict[PayloadKey, PrefixRow]) -> None:
        """File one row after those it stands on. What lacks its base is left out."""
        waiting = [key]
        while waiting[-1] not in self._entries and (base := rows[waiting[-1]].base):
            if base not in rows or len(waiting) > KV_CHAIN_MAX:
                return
            waiting.append(base)
        for each in reversed(waiting):
            if each not in self._entries:
                space = self._space_of(rows[each].cube_id)
                if space is None:
                    return
                self._file(each, rows[each], space)

    def _space_of(self, cube_id: bytes) -> int | None:
        try:
            cube = self._table.durable_cube(cube_id)
        except MemError:
            return None
        return cube.row.namespace if cube is not None else None


def _showing(
    key: PayloadKey, current: VersionRow, table: PageTable, cube_id: bytes
) -> VersionRow | None:
    """The newest version with a payload. Errors: ECORRUPT."""
    if current.payload_id == key:
        return current
    older = reversed(table.older_versions(cube_id))
    return next((version for version in older if version.payload_id == key), None)
