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
from memosd.drivers.plaintext.passages import cut
from memosd.drivers.plaintext.query import TOKENIZER

__all__ = ["DocumentRows"]

_TOKENIZE: Final = " ".join(f"'{word}'" if " " in word else word for word in TOKENIZER)
_WORDS: Final = re.compile(r"words_(\d+)")

_ERASED_SINGLY: Final = 16
"""Passages up to which erasing posting by posting is always the cheaper way."""
_REWRITE_RATIO: Final = 1000
"""Erasing one passage posting by posting costs about as much as rewriting a thousand."""


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
        gone = [row for cube in set(removed) - latest.keys() if (row := self._find(cube))]
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
        marked = self._take_out(leaving)
        for document, texts in coming:
            self._insert(document, texts)
        for namespace in {row.namespace for row in leaving}:
            self._purge(namespace, namespace in marked)
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
        self._db.execute(
            f"CREATE VIRTUAL TABLE words_{namespace:d} USING fts5("
            f'text, content = passage, content_rowid = passage, tokenize = "{_TOKENIZE}")'
        )
        self._erase_at_once(namespace, True)
        self.namespaces.add(namespace)

    # -- erasing -------------------------------------------------------------------------------

    def _take_out(self, rows: list[_Row]) -> set[int]:
        """Take cubes out; the namespaces where that only marked the postings as deleted."""
        leaving: dict[int, int] = {}
        for row in rows:
            leaving[row.namespace] = leaving.get(row.namespace, 0) + row.passages
        marked = {ns for ns, passages in leaving.items() if self._is_rewrite_cheaper(ns, passages)}
        for namespace in marked:
            self._erase_at_once(namespace, False)
        for row in rows:
            # FTS5 finds the postings by the words of the text, so the text goes last.
            words = f"words_{row.namespace}"
            self._db.executemany(
                f"INSERT INTO {words} ({words}, rowid, text) VALUES ('delete', ?, ?)",
                list(zip(row.numbers, self._texts(row), strict=True)),
            )
            ends = (row.doc, row.numbers[-1])
            self._db.execute("DELETE FROM passage WHERE passage BETWEEN ? AND ?", ends)
            self._db.execute("DELETE FROM document WHERE doc = ?", (row.doc,))
        return marked

    def _is_rewrite_cheaper(self, namespace: int, leaving: int) -> bool:
        if leaving <= _ERASED_SINGLY:
            return False
        passages = int(self._db.execute(f"SELECT count(*) FROM words_{namespace}_docsize").get)
        return leaving * _REWRITE_RATIO > passages

    def _purge(self, namespace: int, is_marked: bool) -> None:
        """Drop the table of a namespace without cubes; rewrite one with deletion marks."""
        words = f"words_{namespace}"
        sql = "SELECT EXISTS (SELECT 1 FROM document WHERE namespace = ?)"
        if not self._db.execute(sql, (namespace,)).get:
            self._db.execute(f"DROP TABLE {words}")
            self.namespaces.discard(namespace)
        elif is_marked:
            self._db.execute(f"INSERT INTO {words} ({words}) VALUES ('optimize')")
            self._erase_at_once(namespace, True)

    def _erase_at_once(self, namespace: int, is_on: bool) -> None:
        """FTS5 erases postings itself; otherwise it marks them until a merge drops them."""
        words = f"words_{namespace}"
        sql = f"INSERT INTO {words} ({words}, rank) VALUES ('secure-delete', ?)"
        self._db.execute(sql, (int(is_on),))
