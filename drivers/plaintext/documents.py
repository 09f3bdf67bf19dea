"""The index's rows: which cube has which passages in which namespace.

The writing half of the index; called by `index.py` alone, inside its transaction. Invariant: a
passage is in the FTS5 table of its cube's namespace exactly while its row exists.
"""

import re
from typing import Any, Final, NamedTuple

import apsw

from libmem.abi.index import IndexDocument
from memosd.drivers.plaintext.passages import cut
from memosd.drivers.plaintext.query import TOKENIZER

__all__ = ["DocumentRows"]

_TOKENIZE: Final = " ".join(f"'{word}'" if " " in word else word for word in TOKENIZER)
_WORDS: Final = re.compile(r"words_(\d+)")


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
        self._left: set[int] = set()
        self.reload()

    def reload(self) -> None:
        """Read the list of namespaces again: at first, and after a rollback."""
        tables: Any = self._db.execute(
            "SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL%'"
        )
        matches = [_WORDS.fullmatch(name) for (name,) in tables]
        self.namespaces = {int(match[1]) for match in matches if match}
        self._left.clear()

    def remove(self, cube: bytes) -> bool:
        """Take a cube out; False when it was not there."""
        row = self._find(cube)
        if row is not None:
            self._take_out(row)
        return row is not None

    def put(self, document: IndexDocument) -> None:
        """Keep a cube's current state in place of what is known of it."""
        texts = cut(document.text)
        row = self._find(document.id)
        if row is not None:
            if row.namespace == document.namespace and self._texts(row) == texts:
                # A new name or header: nothing to index anew.
                self._db.execute(
                    "UPDATE document SET version = ?, name = ? WHERE doc = ?",
                    (document.version, document.name, row.doc),
                )
                return
            self._take_out(row)
        self._insert(document, texts)

    def drop_emptied(self) -> None:
        """Drop the FTS5 tables of namespaces that have no cube left."""
        for namespace in self._left & self.namespaces:
            sql = "SELECT EXISTS (SELECT 1 FROM document WHERE namespace = ?)"
            if not self._db.execute(sql, (namespace,)).get:
                self._db.execute(f"DROP TABLE words_{namespace}")
                self.namespaces.discard(namespace)
        self._left.clear()

    def _find(self, cube: bytes) -> _Row | None:
        sql = "SELECT doc, namespace, passages FROM document WHERE id = ?"
        found: Any = self._db.execute(sql, (cube,)).fetchall()
        return _Row(*found[0]) if found else None

    def _texts(self, row: _Row) -> list[str]:
        sql = "SELECT text FROM passage WHERE passage BETWEEN ? AND ? ORDER BY passage"
        rows: Any = self._db.execute(sql, (row.doc, row.numbers[-1]))
        return [text for (text,) in rows]

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

    def _take_out(self, row: _Row) -> None:
        words = f"words_{row.namespace}"
        # FTS5 finds the postings to delete by the words of the text, so the text goes last.
        self._db.executemany(
            f"INSERT INTO {words} ({words}, rowid, text) VALUES ('delete', ?, ?)",
            list(zip(row.numbers, self._texts(row), strict=True)),
        )
        ends = (row.doc, row.numbers[-1])
        self._db.execute("DELETE FROM passage WHERE passage BETWEEN ? AND ?", ends)
        self._db.execute("DELETE FROM document WHERE doc = ?", (row.doc,))
        self._left.add(row.namespace)

    def _make(self, namespace: int) -> None:
        words = f"words_{namespace:d}"
        self._db.execute(
            f"CREATE VIRTUAL TABLE {words} USING fts5("
            f'text, content = passage, content_rowid = passage, tokenize = "{_TOKENIZE}")'
        )
        # Without it FTS5 only marks postings as deleted and drops them in some later merge.
        self._db.execute(f"INSERT INTO {words} ({words}, rank) VALUES ('secure-delete', 1)")
        self.namespaces.add(namespace)
