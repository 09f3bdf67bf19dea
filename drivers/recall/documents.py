"""The index's rows: which cube has which passages in which namespace.

The writing half of the index; called by `index.py` alone, inside its transaction. Invariants: a
passage is in the FTS5 table of its cube's namespace exactly while its row exists; what was taken
out is in no segment of that table when the transaction ends.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import apsw

from libmem.abi.index import IndexDocument
from memosd.drivers.recall.passages import cut
from memosd.drivers.recall.query import TOKENIZER

__all__ = ["DocumentRows"]

_TOKENIZE: Final = " ".join(f"'{word}'" if " " in word else word for word in TOKENIZER)
_WORDS: Final = re.compile(r"words_(\d+)")

_REWRITE_RATIO: Final = 50
"""Erasing one passage's postings takes about as long as indexing fifty passages."""


class _Row(NamedTuple):
    doc: int
    namespace: int
    passages: int

    @property
    def numbers(self) -> range:
        return range(self.doc, self.doc + self.passages)


class DocumentRows:
    """The tables of the index. `namespaces` are those that have an FTS5 table."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.namespaces: set[int] = set()
        self.reload()

    def reload(self) -> None:
        """Read the list of namespaces again: at first, and after a rollback."""
        tables: Any = self._db.execute(
            "SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL%'"
        )
        matches = [_WORDS.fullmatch(name) for (name,) in tables]
        self.namespaces = {int(match[1]) for match in matches if match}

    def replace(self, documents: Sequence[IndexDocument], removed: Iterable[bytes]) -> bool:
        """Take out the removed cubes, keep the documents in place of what is known of theirs.

        False when none of the removed was there.
        """
        latest = {document.id: document for document in documents}
        leavers = [cube for cube in dict.fromkeys(removed) if cube not in latest]
        gone = [row for cube in leavers if (row := self._find(cube))]
        leaving = list(gone)
        coming: list[tuple[IndexDocument, list[str]]] = []
        for document in latest.values():
            texts = cut(document.text)
            row = self._find(document.id)
            if row and row.namespace == document.namespace and self._texts(row) == texts:
                self._rename(row, document)
                continue
            coming.append((document, texts))
            if row:
                leaving.append(row)
        for namespace in dict.fromkeys(row.namespace for row in leaving):
            self._take_out(namespace, [row for row in leaving if row.namespace == namespace])
        for document, texts in coming:
            self._insert(document, texts)
        return bool(gone)

    def _find(self, cube: bytes) -> _Row | None:
        sql = "SELECT doc, namespace, passages FROM document WHERE id = ?"
        found: Any = self._db.execute(sql, (cube,)).fetchall()
        return _Row(*found[0]) if found else None

    def _texts(self, row: _Row) -> list[str]:
        sql = "SELECT text FROM passage WHERE passage BETWEEN ? AND ? ORDER BY passage"
        rows: Any = self._db.execute(sql, (row.doc, row.numbers[-1]))
        return [text for (text,) in rows]

    def _rename(self, row: _Row, document: IndexDocument) -> None:
        """A new name or header: the text need not be indexed anew."""
        self._db.execute(
            "UPDATE document SET version = ?, name = ? WHERE doc = ?",
            (document.version, document.name, row.doc),
        )

    def _insert(self, document: IndexDocument, texts: list[str]) -> None:
        namespace = document.namespace
        if namespace not in self.namespaces:
            self._make(namespace)
        doc = int(self._db.execute("SELECT coalesce(max(passage), 0) + 1 FROM passage").get)
        self._db.execute(
            "INSERT INTO document (doc, id, namespace, version, name, passages)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (doc, document.id, namespace, document.version, document.name, len(texts)),
        )
        rows = list(enumerate(texts, doc))
        self._db.executemany("INSERT INTO passage (passage, text) VALUES (?, ?)", rows)
        self._db.executemany(f"INSERT INTO words_{namespace} (rowid, text) VALUES (?, ?)", rows)

    def _make(self, namespace: int) -> None:
        words = f"words_{namespace:d}"
        self._db.execute(
            f"CREATE VIRTUAL TABLE {words} USING fts5("
            f'text, content = passage, content_rowid = passage, tokenize = "{_TOKENIZE}")'
        )
        # Without it FTS5 only marks postings as deleted and drops them in some later merge.
        self._db.execute(f"INSERT INTO {words} ({words}, rank) VALUES ('secure-delete', 1)")
        self.namespaces.add(namespace)

    # -- erasing -------------------------------------------------------------------------------

    def _take_out(self, namespace: int, rows: list[_Row]) -> None:
        """Erase cubes: their postings one by one, or the whole table where that is quicker."""
        is_rewritten = self._is_rewrite_quicker(namespace, sum(row.passages for row in rows))
        for row in rows:
            if not is_rewritten:
                self._erase_postings(row)
            ends = (row.doc, row.numbers[-1])
            self._db.execute("DELETE FROM passage WHERE passage BETWEEN ? AND ?", ends)
            self._db.execute("DELETE FROM document WHERE doc = ?", (row.doc,))
        if is_rewritten:
            self._rewrite(namespace)

    def _is_rewrite_quicker(self, namespace: int, leaving: int) -> bool:
        """Always so when nothing stays."""
        most = leaving + leaving * _REWRITE_RATIO
        sql = f"SELECT count(*) FROM (SELECT 1 FROM words_{namespace}_docsize LIMIT ?)"
        return int(self._db.execute(sql, (most + 1,)).get) <= most

    def _erase_postings(self, row: _Row) -> None:
        words = f"words_{row.namespace}"
        # FTS5 finds the postings by the words of the text, so the text must still be there.
        self._db.executemany(
            f"INSERT INTO {words} ({words}, rowid, text) VALUES ('delete', ?, ?)",
            list(zip(row.numbers, self._texts(row), strict=True)),
        )

    def _rewrite(self, namespace: int) -> None:
        """Index what is left of a namespace anew; nothing left, no table."""
        self._db.execute(f"DROP TABLE words_{namespace}")
        self.namespaces.discard(namespace)
        sql = "SELECT EXISTS (SELECT 1 FROM document WHERE namespace = ?)"
        if self._db.execute(sql, (namespace,)).get:
            self._make(namespace)
            self._db.execute(
                f"INSERT INTO words_{namespace} (rowid, text)"
                " SELECT passage.passage, passage.text"
                " FROM (SELECT doc, passages FROM document WHERE namespace = ? ORDER BY doc) cube"
                " CROSS JOIN passage"
                " ON passage.passage BETWEEN cube.doc AND cube.doc + cube.passages - 1",
                (namespace,),
            )
