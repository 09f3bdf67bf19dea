"""The index's rows: which cube has which passages, and who may read them.

The writing half of the index; called by `index.py` alone, inside its transaction. Invariants: a
passage is in the FTS5 table of its cube's audience exactly while its row exists; what was taken
out is in no segment of that table when the transaction ends, and its vectors are in no table. What
is kept in memory of the rows follows by the `Changes` that `replace` returns, once they are
committed.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import apsw

from libmem.abi.index import IndexDocument
from libmem.abi.limits import PRIORITY_MAX
from libmem.abi.structs import CubeType
from memosd.drivers.recall.passages import clean, cut, is_question, shown, spaced
from memosd.drivers.recall.schema import fts_tables, make_fts

__all__ = ["READ_BITS", "Audience", "Changes", "DocumentRows", "Entry", "Span"]

READ_BITS: Final = 0o444
"""The bits of a mode that say who may read."""

_REWRITE_RATIO: Final = 50
"""Erasing one passage's postings takes about as long as indexing fifty passages."""

_INTEGER_MAX: Final = 1 << 62

_TYPES: Final = frozenset(CubeType)
_FACETS: Final = (
    "type, semantic_type, producer, session, position, event_time_ns, valid_from_ns,"
    " valid_to_ns, written_ns, priority"
)


class Audience(NamedTuple):
    """Cubes of one namespace that the same callers may read."""

    namespace: int
    owner: tuple[int, int]
    """uid, gid."""
    mode: int
    """READ_BITS of it."""


class Span(NamedTuple):
    """The passages of a cube: `passages` numbers from `doc` on."""

    doc: int
    namespace: int
    passages: int


class Entry(NamedTuple):
    """A cube as it is kept, but for its text."""

    doc: int
    namespace: int
    audience: int
    name: str
    lengths: bytes
    """Of each passage 16 bits: characters without surrounding space, shifted by one; the lowest
    bit: is it a question?"""
    type: str
    semantic_type: str
    producer: str
    session: str
    position: int
    event_time_ns: int
    valid_from_ns: int
    valid_to_ns: int
    written_ns: int
    priority: int


class Changes(NamedTuple):
    """What a `replace` did."""

    gone: list[Span]
    altered: list[Entry]
    """The same passages, other facts about them."""
    came: list[Entry]
    carried: list[int]
    """Of their passages, those that an older version of the cube had too: with its vectors."""
    was_removed: bool
    """Something that was to be removed was there, or may have been in the log."""


_Facts = tuple[str, str, str, str, int, int, int, int, int, int]
_Vectors = dict[str, tuple[int, bytes, bytes | None]]
"""Text of a passage -> its vectors' model, whole and pieces."""


class _Row(NamedTuple):
    doc: int
    namespace: int
    audience: int
    passages: int
    producer: str
    lengths: bytes

    @property
    def numbers(self) -> range:
        return range(self.doc, self.doc + self.passages)


def _pack_lengths(texts: Sequence[str]) -> bytes:
    plain = [shown(text) for text in texts]
    return array("H", [len(text.strip()) << 1 | is_question(text) for text in plain]).tobytes()


class DocumentRows:
    """The tables of documents. `audiences` are those that have cubes; `turnover` says how many
    passages have come to and gone from each since the index was opened."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.audiences: dict[int, Audience] = {}
        self.turnover = Counter[int]()
        self._numbers: dict[Audience, int] = {}
        self._next = 0
        self.reload()

    def reload(self) -> None:
        """Read the list of audiences again: at first, and after a rollback."""
        rows: Any = self._db.execute("SELECT audience, namespace, uid, gid, mode FROM audience")
        self.audiences = {n: Audience(space, (uid, gid), mode) for n, space, uid, gid, mode in rows}
        if self.audiences.keys() != fts_tables(self._db):
            raise apsw.CorruptError("audiences and tables of words do not agree")
        self._numbers = {audience: number for number, audience in self.audiences.items()}
        self._next = int(self._db.execute("SELECT next FROM state").get)

    @property
    def next_number(self) -> int:
        """Above those of all passages and audiences that ever were."""
        return self._next

    def entries(self, namespace: int | None = None) -> Iterator[Entry]:
        """All that is kept, oldest first; of one namespace where it is given."""
        rows: Any = self._db.execute(
            f"SELECT doc, audience, name, lengths, {_FACETS} FROM document ORDER BY doc"
        )
        spaces = {number: audience.namespace for number, audience in self.audiences.items()}
        for doc, audience, name, lengths, kind, *rest in rows:
            if kind not in _TYPES:
                raise apsw.CorruptError("a document of no type")
            space = spaces[audience]
            if namespace is None or space == namespace:
                yield Entry(doc, space, audience, name, lengths, kind, *rest)

    def replace(self, documents: Sequence[IndexDocument], removed: Iterable[bytes]) -> Changes:
        """Take out the removed cubes, keep the documents in place of what is known of theirs."""
        latest = {document.id: document for document in documents}
        leaving = dict.fromkeys(removed)
        known = self._find([*latest, *leaving])
        leavers = [cube for cube in leaving if cube not in latest]
        gone = [known[cube] for cube in leavers if cube in known]
        was_removed = bool(gone) or len(leavers) < len(leaving)
        moving: list[_Row] = []
        altered: list[Entry] = []
        coming: list[tuple[IndexDocument, list[str]]] = []
        vectors: dict[bytes, _Vectors] = {}
        for document in latest.values():
            texts = cut(document.text)
            row = known.get(document.id)
            if row is None or not self._is_same(row, document, texts):
                coming.append((document, texts))
                if row:
                    gone.append(row)
                    vectors[document.id] = self._vectors(row)
                continue
            entry = self._alter(row, document)
            altered.append(entry)
            moving += [row] if entry.audience != row.audience else []
        self._take_out(gone, moving, {entry.doc: entry.audience for entry in altered})
        came = self._insert(coming)
        carried = [
            number
            for entry, (document, texts) in zip(came, coming, strict=True)
            if document.id in vectors
            for number in self._carry(entry.doc, texts, vectors[document.id])
        ]
        self._db.execute("UPDATE state SET next = ?", (self._next,))
        spans = [Span(row.doc, row.namespace, row.passages) for row in gone]
        return Changes(spans, altered, came, carried, was_removed)

    def _find(self, cubes: Sequence[bytes]) -> dict[bytes, _Row]:
        """What is kept of cubes, of those of which anything is."""
        # One statement for all: most are new, and a thousand times nothing takes time as well.
        rows: Any = self._db.execute(
            "SELECT id, doc, audience, passages, producer, lengths FROM document"
            " WHERE id IN (SELECT unhex(value) FROM json_each(?))",
            (json.dumps([cube.hex() for cube in cubes]),),
        )
        spaces = self.audiences
        return {
            cube: _Row(doc, spaces[audience].namespace, audience, *rest)
            for cube, doc, audience, *rest in rows
        }

    def _is_same(self, row: _Row, document: IndexDocument, texts: list[str]) -> bool:
        """Need its words not be indexed anew? In another namespace its numbers would be old."""
        return (
            row.namespace == document.namespace
            and row.producer == clean(document.facets.producer)
            and [text for _, _, text in self._passages(row)] == texts
        )

    def _passages(self, row: _Row) -> list[tuple[int, str, str]]:
        sql = (
            "SELECT passage, producer, text FROM passage"
            " WHERE passage BETWEEN ? AND ? ORDER BY passage"
        )
        rows: Any = self._db.execute(sql, (row.doc, row.numbers[-1]))
        return list(rows)

    def _vectors(self, row: _Row) -> _Vectors:
        sql = (
            "SELECT text, model, whole, pieces FROM passage JOIN vector USING (passage)"
            " LEFT JOIN piece USING (passage) WHERE passage BETWEEN ? AND ?"
        )
        rows: Any = self._db.execute(sql, (row.doc, row.numbers[-1]))
        return {text: (model, whole, pieces) for text, model, whole, pieces in rows}

    def _carry(self, doc: int, texts: list[str], vectors: _Vectors) -> Iterator[int]:
        """Give passages the vectors that their texts had: most of a long text stays as it was."""
        for number, text in enumerate(texts, doc):
            if text in vectors:
                model, whole, pieces = vectors[text]
                self._db.execute("INSERT INTO vector VALUES (?, ?, ?)", (number, model, whole))
                if pieces is not None:
                    self._db.execute("INSERT INTO piece VALUES (?, ?)", (number, pieces))
                yield number

    def _alter(self, row: _Row, document: IndexDocument) -> Entry:
        """A new name, header or mode: the text need not be cut anew."""
        audience, facts = self._audience(document), _facts(document)
        self._db.execute(
            f"UPDATE document SET (audience, version, name, {_FACETS}) = "
            "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE doc = ?",
            (audience, document.version, document.name, *facts, row.doc),
        )
        return Entry(row.doc, document.namespace, audience, document.name, row.lengths, *facts)

    def _insert(self, coming: Sequence[tuple[IndexDocument, list[str]]]) -> list[Entry]:
        entries: list[Entry] = []
        documents: list[tuple[object, ...]] = []
        passages: list[tuple[int, str, str]] = []
        runs: list[tuple[int, range]] = []
        for document, texts in coming:
            audience, facts = self._audience(document), _facts(document)
            doc = self._take_numbers(len(texts))
            space, cube, version, name, *_ = document
            lengths = _pack_lengths(texts)
            entry = Entry(doc, space, audience, name, lengths, *facts)
            entries.append(entry)
            documents.append((cube, version, len(texts), *entry[:1], *entry[2:]))
            producer = spaced(entry.producer)
            passages += [(number, producer, text) for number, text in enumerate(texts, doc)]
            first = runs.pop()[1].start if runs and runs[-1][0] == audience else doc
            runs.append((audience, range(first, self._next)))
        self._db.executemany(
            "INSERT INTO document"
            f" (id, version, passages, doc, audience, name, lengths, {_FACETS})"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            documents,
        )
        self._db.executemany("INSERT INTO passage VALUES (?, ?, ?)", passages)
        for audience, numbers in runs:
            self._index(audience, numbers)
        return entries

    def _index(self, audience: int, numbers: range) -> None:
        """Enter passages whose rows are there into an audience's table of words."""
        self.turnover[audience] += len(numbers)
        self._db.execute(
            f"INSERT INTO words_{audience} (rowid, producer, text)"
            " SELECT passage, producer, text FROM passage WHERE passage BETWEEN ? AND ?",
            (numbers[0], numbers[-1]),
        )

    def _audience(self, document: IndexDocument) -> int:
        """The number of a document's audience, which is made where it is new."""
        facets = document.facets
        audience = Audience(document.namespace, facets.owner, facets.mode & READ_BITS)
        number = self._numbers.get(audience)
        if number is None:
            number = self._take_numbers(1)
            self._db.execute(
                "INSERT INTO audience VALUES (?, ?, ?, ?, ?)",
                (number, audience.namespace, *audience.owner, audience.mode),
            )
            make_fts(self._db, number)
            self.audiences[number] = audience
            self._numbers[audience] = number
        return number

    def _take_numbers(self, count: int) -> int:
        first = self._next
        self._next += count
        return first

    # -- erasing -------------------------------------------------------------------------------

    def _take_out(self, gone: list[_Row], moving: list[_Row], audiences: dict[int, int]) -> None:
        """Take cubes out of their audiences; those that move are entered into their new ones."""
        rewritten = {
            audience
            for audience in dict.fromkeys(row.audience for row in [*gone, *moving])
            if self._take_out_of(
                audience,
                [row for row in gone if row.audience == audience],
                [row for row in moving if row.audience == audience],
            )
        }
        for row in moving:
            if audiences[row.doc] not in rewritten:  # else it is there already
                self._index(audiences[row.doc], row.numbers)

    def _take_out_of(self, audience: int, gone: list[_Row], moved: list[_Row]) -> bool:
        """Erase words from an audience's table, and of cubes that are gone all else.

        True when the table was written anew, from all documents that are the audience's now.
        """
        leaving = sum(row.passages for row in gone + moved)
        self.turnover[audience] += leaving
        is_rewritten = self._is_rewrite_quicker(audience, leaving)
        for row in () if is_rewritten else (*gone, *moved):
            self._erase_postings(row)
        for row in gone:
            ends = (row.doc, row.numbers[-1])
            for table in ("passage", "vector", "piece"):
                self._db.execute(f"DELETE FROM {table} WHERE passage BETWEEN ? AND ?", ends)
            self._db.execute("DELETE FROM document WHERE doc = ?", (row.doc,))
        if is_rewritten:
            self._rewrite(audience)
        return is_rewritten

    def _is_rewrite_quicker(self, audience: int, leaving: int) -> bool:
        """Always so when nothing stays."""
        most = leaving + leaving * _REWRITE_RATIO
        sql = f"SELECT count(*) FROM (SELECT 1 FROM words_{audience}_docsize LIMIT ?)"
        return int(self._db.execute(sql, (most + 1,)).get) <= most

    def _erase_postings(self, row: _Row) -> None:
        words = f"words_{row.audience}"
        # FTS5 finds the postings by the words of the text, so the text must still be there.
        self._db.executemany(
            f"INSERT INTO {words} ({words}, rowid, producer, text) VALUES ('delete', ?, ?, ?)",
            self._passages(row),
        )

    def _rewrite(self, audience: int) -> None:
        """Index what is left of an audience anew; nothing left, no audience."""
        self._db.execute(f"DROP TABLE words_{audience}")
        sql = "SELECT EXISTS (SELECT 1 FROM document WHERE audience = ?)"
        if not self._db.execute(sql, (audience,)).get:
            self._db.execute("DELETE FROM audience WHERE audience = ?", (audience,))
            del self._numbers[self.audiences.pop(audience)], self.turnover[audience]
            return
        make_fts(self._db, audience)
        self._db.execute(
            f"INSERT INTO words_{audience} (rowid, producer, text)"
            " SELECT passage.passage, passage.producer, passage.text"
            " FROM (SELECT doc, passages FROM document WHERE audience = ? ORDER BY doc) cube"
            " CROSS JOIN passage"
            " ON passage.passage BETWEEN cube.doc AND cube.doc + cube.passages - 1",
            (audience,),
        )


def _facts(document: IndexDocument) -> _Facts:
    """The columns _FACETS of a document, without what SQLite or a column could not hold: it must
    not stop the index for others."""
    _, _, kind, semantic_type, producer, session, *numbers, priority = document.facets
    position, event_time_ns, valid_from_ns, valid_to_ns, written_ns = map(_bounded, numbers)
    return (
        kind.value, clean(semantic_type), clean(producer), clean(session), position,
        event_time_ns, valid_from_ns, valid_to_ns, written_ns,
        max(0, min(priority, PRIORITY_MAX)),
    )  # fmt: skip


def _bounded(number: int) -> int:
    return number if -_INTEGER_MAX < number < _INTEGER_MAX else _INTEGER_MAX * (1, -1)[number < 0]
