"""Token strings in order: what shares the longest prefix with a prompt is next to its place.

Owns the order of one namespace's and model's entries. An entry's tokens are pieces: those of what
it stands on, cut where it begins, and its own. Pieces are shared, never joined for keeping, so a
short part of a long prefix costs its own tokens and no more. Kernel thread only.
"""

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from libmem.abi.kv import TOKEN_BYTES
from memosd.kernel.ports import PayloadKey

__all__ = ["Entry", "Match", "Piece", "Span", "TokenOrder", "as_pieces", "joined"]

_CHUNK_FIRST: Final = 1 << 6
_CHUNK_MAX: Final = 1 << 14
"""Bytes compared at once: few at first, because most strings differ soon, then more and more. A
slice is a copy, and one that fits the processor's cache is cheap."""
_SINGLY_MAX: Final = 16
"""Entries removed one by one; more are quicker left out in one pass."""


class Piece(NamedTuple):
    """Bytes `start` to `end` of a string of tokens."""

    start: int
    end: int
    packed: bytes
    """From `start` on; it may go on beyond `end`."""


Pieces = tuple[Piece, ...]


class Entry:
    """One payload's tokens, all of them, and where they are filed."""

    __slots__ = ("base", "cube_id", "key", "model", "pieces", "space", "start")

    def __init__(self, key: PayloadKey, cube_id: bytes, model: bytes, space: int) -> None:
        self.key, self.cube_id, self.model, self.space = key, cube_id, model, space
        self.base: PayloadKey = b""
        self.start = 0
        """Tokens that its base holds for it."""
        self.pieces: Pieces = ()

    @property
    def tokens(self) -> int:
        return self.pieces[-1].end // TOKEN_BYTES

    def stand_on(self, base: "Entry | None", start: int, packed: bytes) -> None:
        """Its tokens: the first `start` of the base's, then its own."""
        at = start * TOKEN_BYTES
        before = base.pieces if base is not None else ()
        self.base, self.start = base.key if base is not None else b"", start
        self.pieces = (
            *(Piece(old.start, min(old.end, at), old.packed) for old in before if old.start < at),
            Piece(at, at + len(packed), packed),
        )


class Span(NamedTuple):
    """Which tokens a payload holds itself."""

    model: bytes
    start: int
    end: int


class Match(NamedTuple):
    """The payload that shares most tokens with a prompt."""

    key: PayloadKey
    tokens: int
    """Shared from position 0 on."""


class TokenOrder:
    """Entries by their tokens, equal ones by their keys."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """It must not be there yet."""
        self._entries.insert(self._place(entry.pieces, entry.key)[0], entry)

    def remove(self, entries: Collection[Entry]) -> None:
        """They must be there."""
        if len(entries) > _SINGLY_MAX:
            gone = {entry.key for entry in entries}
            self._entries = [entry for entry in self._entries if entry.key not in gone]
            return
        for entry in entries:
            del self._entries[self._place(entry.pieces, entry.key)[0]]

    def nearest(self, wanted: Pieces) -> Iterator[tuple[int, Entry]]:
        """(shared tokens, entry) around where `wanted` would stand, most shared first."""
        above, shared_above, shared_below = self._place(wanted, b"")
        below = above - 1
        while shared_above >= TOKEN_BYTES or shared_below >= TOKEN_BYTES:
            # At a tie the one above: it is a continuation of the prompt, or as long as it.
            if shared_above // TOKEN_BYTES >= shared_below // TOKEN_BYTES:
                yield shared_above // TOKEN_BYTES, self._entries[above]
                above += 1
                shared_above = self._shared(above, wanted)
            else:
                yield shared_below // TOKEN_BYTES, self._entries[below]
                below -= 1
                shared_below = self._shared(below, wanted)

    def _shared(self, at: int, wanted: Pieces) -> int:
        """Bytes that the entry there shares; 0 beyond either end."""
        if not 0 <= at < len(self._entries):
            return 0
        return _compared(self._entries[at].pieces, wanted, 0)[0]

    def _place(self, wanted: Pieces, key: PayloadKey) -> tuple[int, int, int]:
        """Where `wanted` stands, or would; bytes that the entries there and before it share."""
        low, high = 0, len(self._entries)
        shared_below = shared_above = 0
        while low < high:
            middle = (low + high) // 2
            entry = self._entries[middle]
            # What is between two shares at least as much as the lesser of them.
            known = min(shared_below, shared_above)
            shared, order = _compared(entry.pieces, wanted, known)
            if order < 0 or (order == 0 and entry.key < key):
                low, shared_below = middle + 1, shared
            else:
                high, shared_above = middle, shared
        return low, shared_above, shared_below


def as_pieces(packed: bytes) -> Pieces:
    """A prompt, to be compared with entries."""
    return (Piece(0, len(packed), packed),)


def joined(pieces: Pieces, tokens: int) -> bytes:
    """The first `tokens` token ids. Any thread: pieces never change."""
    end = tokens * TOKEN_BYTES
    return b"".join(p.packed[: min(p.end, end) - p.start] for p in pieces if p.start < end)


def _compared(one: Pieces, other: Pieces, known: int) -> tuple[int, int]:
    """Bytes that two strings share from their start, and which is the lesser: -1 is `one`.

    `known`: they share so many at least.
    """
    at, i, j = known, 0, 0
    while i < len(one) and j < len(other):
        a, b = one[i], other[j]
        end = min(a.end, b.end)
        if at < end:
            # The same object is the usual case: parts of one base.
            if a.packed is not b.packed:
                at, order = _compared_within(a, b, at, end)
                if order:
                    return at, order
            at = end
        i += a.end == end
        j += b.end == end
    return at, (at < one[-1].end) - (at < other[-1].end)


def _compared_within(a: Piece, b: Piece, at: int, end: int) -> tuple[int, int]:
    chunk = _CHUNK_FIRST
    while at < end:
        to = min(at + chunk, end)
        x, y = a.packed[at - a.start : to - a.start], b.packed[at - b.start : to - b.start]
        if x != y:
            different = int.from_bytes(x, "big") ^ int.from_bytes(y, "big")
            return to - (different.bit_length() + 7) // 8, -1 if x < y else 1
        at, chunk = to, min(8 * chunk, _CHUNK_MAX)
    return end, 0
