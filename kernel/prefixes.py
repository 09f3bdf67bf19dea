"""Prefixes: which payloads begin with which tokens, and which stand on which.

Owns an order made from the rows of `prefixes`: for each namespace and model the token ids of all
payloads, as byte strings, sorted. What shares the longest prefix with a prompt is next to where the
prompt itself would stand, so a binary search finds it, exact to the token
(docs/design/0004-activation-memory.md, 3). A payload may hold only the tokens behind those of its
base; then it is of use only together with that.

The rows are the truth: the order is made at boot and again after a failed commit. Kernel thread
only.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import structlog

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_CHAIN_MAX
from memosd.kernel.ledger import Ledger
from memosd.kernel.pagetable import Cube, PageTable
from memosd.kernel.ports import PayloadKey, Prefix, Store
from memosd.kernel.rows import PrefixRow, VersionRow, decode_row, encode_row

__all__ = ["Match", "Prefixes"]

_log = structlog.get_logger("memosd.kernel")
_TOKEN_BYTES: Final = 4
_LOOK_MAX: Final = 1024
"""Neighbours looked at for one that the caller may see; beyond it a shorter prefix is found, or
none, where another user's cubes crowd a namespace."""


class _Entry:
    """One payload's tokens, all of them, and where they are filed."""

    __slots__ = ("base", "cube_id", "model", "space", "start", "tokens")

    def __init__(self, row: PrefixRow, tokens: bytes, space: int) -> None:
        self.cube_id, self.model, self.base = row.cube_id, row.model, row.base
        self.start = row.start
        self.tokens = tokens
        self.space = space


class Match(NamedTuple):
    """The payload that shares most tokens with a prompt."""

    key: PayloadKey
    cube_id: bytes
    tokens: int
    """Shared from position 0 on."""


class Prefixes:
    """See the head of this file."""

    def __init__(self, ledger: Ledger, store: Store, table: PageTable) -> None:
        self._ledger = ledger
        self._store = store
        self._table = table
        self._entries: dict[PayloadKey, _Entry] = {}
        self._order: dict[tuple[int, bytes], list[tuple[bytes, PayloadKey]]] = {}
        self._dependents: dict[PayloadKey, set[PayloadKey]] = {}
        self._reload()
        ledger.on_rollback.append(lambda _error: self._reload())

    def __len__(self) -> int:
        return len(self._entries)

    # -- changes -------------------------------------------------------------------------------

    def add(self, key: PayloadKey, cube_id: bytes, space: int, prefix: Prefix) -> None:
        """File a payload about to be committed; it was checked, its base included."""
        row = PrefixRow(cube_id, prefix.model, prefix.start, prefix.tokens, prefix.base)
        self._ledger.put("prefixes", key, encode_row(key, row))
        self._file(key, row, space)

    def drop(self, key: PayloadKey) -> set[PayloadKey]:
        """Forget a payload; returns those that stand on it and must go as well."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return set()
        self._ledger.delete("prefixes", key)
        self._unfile(key, entry)
        self._dependents.get(entry.base, set()).discard(key)
        return self._dependents.pop(key, set())

    def move(self, key: PayloadKey, space: int) -> None:
        """Its cube went to another namespace."""
        entry = self._entries.get(key)
        if entry is not None and entry.space != space:
            self._unfile(key, entry)
            entry.space = space
            insort(self._order.setdefault((space, entry.model), []), (entry.tokens, key))

    def _file(self, key: PayloadKey, row: PrefixRow, space: int) -> None:
        # By whoever made sure that the base is there.
        before = self._entries[row.base].tokens[: row.start * _TOKEN_BYTES] if row.base else b""
        entry = self._entries[key] = _Entry(row, before + row.tokens, space)
        insort(self._order.setdefault((space, row.model), []), (entry.tokens, key))
        if row.base:
            self._dependents.setdefault(row.base, set()).add(key)

    def _unfile(self, key: PayloadKey, entry: _Entry) -> None:
        order = self._order[entry.space, entry.model]
        del order[bisect_left(order, (entry.tokens, key))]
        if not order:
            del self._order[entry.space, entry.model]

    # -- look-ups ------------------------------------------------------------------------------

    def cube_of(self, key: PayloadKey) -> bytes | None:
        """The cube whose payload this is, where it is filed here."""
        entry = self._entries.get(key)
        return entry.cube_id if entry is not None else None

    def tokens_of(self, key: PayloadKey) -> bytes:
        """All token ids, those of the base included. Errors: ECORRUPT (its row is damaged)."""
        return self._entry(key).tokens

    def chain(self, key: PayloadKey) -> Iterator[PayloadKey]:
        """What a payload stands on, nearest first. Errors: ECORRUPT."""
        while key := self._entry(key).base:
            yield key

    def check_base(self, key: PayloadKey) -> None:
        """May another payload stand on this one? Errors: EINVAL, ECORRUPT."""
        if sum(1 for _ in self.chain(key)) + 2 > KV_CHAIN_MAX:
            raise MemError(
                Errno.EINVAL, f"a cube is made of at most {KV_CHAIN_MAX} parts; store it whole"
            )

    def version_of(self, key: PayloadKey) -> Cube:
        """A cube and its newest version that shows this payload. Errors: ECORRUPT."""
        cube_id = self._entry(key).cube_id
        row = self._table.cube_row(cube_id)
        if row is not None:
            version = _showing(key, row.current, self._table.older_versions(cube_id))
            if version is not None:
                return Cube(cube_id, row, version)
        raise MemError(Errno.ECORRUPT, "a part of the cube is missing", payload=key.hex())

    def _entry(self, key: PayloadKey) -> _Entry:
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
        best: Match | None = None
        for space in spaces:
            order = self._order.get((space, model))
            if order is not None:
                best = self._better(order, tokens, best, may_show) or best
        return self._lowest(best, may_show) if best is not None else None

    def _better(
        self,
        order: list[tuple[bytes, PayloadKey]],
        tokens: bytes,
        best: Match | None,
        may_show: Callable[[bytes], bool],
    ) -> Match | None:
        """What shares more tokens than `best`, in one namespace."""
        least = best.tokens if best is not None else 0
        for shared, key in _neighbours(order, tokens):
            if shared <= least:
                return None
            cube_id = self._entries[key].cube_id
            if may_show(cube_id):
                return Match(key, cube_id, shared)
        return None

    def _lowest(self, match: Match, may_show: Callable[[bytes], bool]) -> Match:
        """The same tokens from as few parts as hold them."""
        entry = self._entries[match.key]
        while entry.base and match.tokens <= entry.start:
            cube_id = self._entries[entry.base].cube_id
            if not may_show(cube_id):
                break
            match = Match(entry.base, cube_id, match.tokens)
            entry = self._entries[match.key]
        return match

    # -- boot ----------------------------------------------------------------------------------

    def _reload(self) -> None:
        self._entries, self._order, self._dependents = {}, {}, {}
        rows: dict[PayloadKey, PrefixRow] = {}
        for key, value in self._store.scan("prefixes", b""):
            try:
                rows[key] = decode_row(PrefixRow, "prefixes", key, value)
            except MemError as error:
                _log.warning("a prefix cannot be found", payload=key.hex(), error=str(error))
        for key in rows:
            self._restore(key, rows)

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


def _showing(key: PayloadKey, current: VersionRow, older: list[VersionRow]) -> VersionRow | None:
    versions = [current, *reversed(older)]
    return next((version for version in versions if version.payload_id == key), None)


def _neighbours(
    order: list[tuple[bytes, PayloadKey]], tokens: bytes
) -> Iterator[tuple[int, PayloadKey]]:
    """(shared tokens, key) of the entries around where `tokens` would stand, most shared first."""
    above = bisect_left(order, (tokens, b""))
    below = above - 1
    shared_above = _shared(order, above, tokens)
    shared_below = _shared(order, below, tokens)
    for _ in range(_LOOK_MAX):
        if shared_above <= 0 and shared_below <= 0:
            return
        # At a tie the one above: it is a continuation of the prompt, or as long as it.
        if shared_above >= shared_below:
            yield shared_above, order[above][1]
            above += 1
            shared_above = _shared(order, above, tokens)
        else:
            yield shared_below, order[below][1]
            below -= 1
            shared_below = _shared(order, below, tokens)


def _shared(order: list[tuple[bytes, PayloadKey]], at: int, tokens: bytes) -> int:
    """How many tokens an entry shares with the prompt; 0 beyond either end."""
    if not 0 <= at < len(order):
        return 0
    other = order[at][0]
    low, high = 0, min(len(other), len(tokens)) // _TOKEN_BYTES
    if other[: high * _TOKEN_BYTES] == tokens[: high * _TOKEN_BYTES]:
        return high
    while low + 1 < high:  # equal up to `low`, different within `high`
        middle = (low + high) // 2
        piece = slice(low * _TOKEN_BYTES, middle * _TOKEN_BYTES)
        if other[piece] == tokens[piece]:
            low = middle
        else:
            high = middle
    return low
