"""BM25 over the passages of some namespaces.

Reads the tables that `index.py` owns and keeps; called by it alone, on its thread. Each namespace
has an FTS5 table of its own, so its document frequencies are its own too. Invariant: a search
scores at most a bounded number of passages per namespace (query.py), whatever is asked.
"""

import json
from collections.abc import Iterator, Mapping, Set
from typing import Any, Final, NamedTuple

import apsw

from libmem.abi.index import IndexHit
from memosd.drivers.recall.query import (
    PASSAGES_SCORED,
    TOKENIZER,
    WORDS_MAX,
    Pass,
    passes,
    terms_of,
)
from memosd.drivers.recall.snippet import snippet

__all__ = ["Ranking"]

_SMALL_SUBTREE: Final = 5_000
"""Passages in a subtree up to which they are listed before the search, not looked up after."""

_IN_SUBTREE: Final = (
    "namespace = :namespace AND name >= :prefix AND name < :prefix || '0'"
    " AND (name = :prefix OR substr(name, length(:prefix) + 1, 1) = '/')"
)
"""'0' follows '/': the range is the index's part, the rest drops `/a-b` and the like."""


class _Found(NamedTuple):
    """A cube by its best passage."""

    score: float
    passage: int
    id: bytes
    version: int


class Ranking:
    """The reading half of the index."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._tokenizer = db.fts5_tokenizer(TOKENIZER[0], list(TOKENIZER[1:]))
        self._common: dict[tuple[int, str], int] = {}

    def forget_frequencies(self) -> None:
        """Look common words up anew; called when enough has changed to plan differently."""
        self._common.clear()

    def search(self, query: str, namespaces: Mapping[int, str], limit: int) -> list[IndexHit]:
        """The `limit` best cubes, best first; among equals the one written last."""
        terms = terms_of(query, self._tokenize)
        if not terms or limit <= 0:
            return []
        found = [
            hit
            for namespace, prefix in namespaces.items()
            for hit in self._search_namespace(list(terms.values()), namespace, prefix, limit)
        ]
        found.sort(key=lambda hit: (hit.score, hit.passage), reverse=True)
        keys = terms.keys()
        return [
            IndexHit(hit.id, hit.version, hit.score, self._snippet(hit.passage, keys))
            for hit in found[:limit]
        ]

    def _tokenize(self, utf8: bytes) -> list[tuple[int, int, str]]:
        tokens: Any = self._tokenizer(utf8, apsw.FTS5_TOKENIZE_QUERY, None, include_colocated=False)
        return list(tokens)

    def _search_namespace(
        self, terms: list[str], namespace: int, prefix: str, limit: int
    ) -> list[_Found]:
        frequencies = self._frequencies(terms, namespace)
        if not frequencies:
            return []
        condition, bindings = self._subtree(namespace, prefix)
        best: dict[bytes, _Found] = {}
        for question in passes(frequencies):
            for passage, score in self._score(namespace, question, condition, bindings):
                row = self._cube_of(passage)
                best.setdefault(row[0], _Found(score, passage, *row))
                if len(best) >= limit:
                    return list(best.values())
        return list(best.values())

    def _frequencies(self, terms: list[str], namespace: int) -> list[tuple[str, int]]:
        """The terms that occur at all with their number of passages, rarest first."""
        counted = [(term, self._frequency(term, namespace)) for term in terms]
        counted = [pair for pair in counted if pair[1]]
        counted.sort(key=lambda pair: pair[1])
        return counted[:WORDS_MAX]

    def _frequency(self, term: str, namespace: int) -> int:
        known = self._common.get((namespace, term))
        if known is not None:
            return known
        words = f"words_{namespace}"
        sql = f"SELECT count(*) FROM {words} WHERE {words} MATCH ?"
        count = int(self._db.execute(sql, (term,)).get)
        if count > PASSAGES_SCORED:  # the costly ones, of which a language has few
            self._common[namespace, term] = count
        return count

    def _subtree(self, namespace: int, prefix: str) -> tuple[str, dict[str, Any]]:
        """An SQL condition on the passages below `prefix`, with its bindings."""
        if not prefix:
            return "", {}
        bindings: dict[str, Any] = {"namespace": namespace, "prefix": prefix}
        passages = self._few_passages(bindings)
        if passages is None:
            # Most passages that match pass: ask each for its cube's name.
            return (
                f"AND (SELECT {_IN_SUBTREE} FROM document"
                f" WHERE doc <= words_{namespace}.rowid ORDER BY doc DESC LIMIT 1)"
            ), bindings
        # The plus keeps SQLite from asking FTS5 once for every passage of the list.
        condition = "AND +rowid IN (SELECT value FROM json_each(:listed))"
        return condition, {"listed": json.dumps(passages)}

    def _few_passages(self, bindings: dict[str, Any]) -> list[int] | None:
        """All passages of the subtree, or None where there are more than _SMALL_SUBTREE."""
        cubes: Any = self._db.execute(
            f"SELECT doc, passages FROM document WHERE {_IN_SUBTREE}", bindings
        )
        passages: list[int] = []
        try:
            for seen, (doc, count) in enumerate(cubes):  # a cube may have no passage at all
                if max(seen, len(passages) + count) > _SMALL_SUBTREE:
                    return None
                passages += range(doc, doc + count)
        finally:
            cubes.close()  # as in `_score`
        return passages

    def _score(
        self, namespace: int, question: Pass, condition: str, bindings: dict[str, Any]
    ) -> Iterator[tuple[int, float]]:
        """(passage, score), best first, over the newest PASSAGES_SCORED that match."""
        words = f"words_{namespace}"
        # Sorting out here is twice as fast as FTS5's own ORDER BY rank. FTS5's bm25() is negative.
        rows: Any = self._db.execute(
            "SELECT passage, score FROM ("
            f" SELECT rowid AS passage, -bm25({words}) AS score FROM {words}"
            f" WHERE {words} MATCH :expression {condition}"
            f" ORDER BY rowid DESC LIMIT {PASSAGES_SCORED}"
            ") ORDER BY score DESC, passage DESC",
            {"expression": question.expression, **bindings},
        )
        try:
            for passage, score in rows:
                yield passage, score * question.weight
        finally:
            rows.close()  # a statement left open would block the next commit

    def _cube_of(self, passage: int) -> tuple[bytes, int]:
        """(id, version): a cube's passages begin at its own number and follow each other."""
        row: Any = self._db.execute(
            "SELECT id, version FROM document WHERE doc <= ? ORDER BY doc DESC LIMIT 1", (passage,)
        ).get
        return row[0], row[1]

    def _snippet(self, passage: int, keys: Set[str]) -> str:
        text = self._db.execute("SELECT text FROM passage WHERE passage = ?", (passage,)).get
        return snippet(str(text), keys, self._tokenize)
