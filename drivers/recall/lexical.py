"""BM25 over the passages that a question may touch.

Reads the tables that `index.py` owns and keeps; called by it alone, on its thread. Each audience
has an FTS5 table of its own, so what others write shows in no statistics. Invariant: a search
scores at most a bounded number of passages per audience (query.py), whatever is asked, and those
that it may not find do not count among them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import apsw
import numpy as np

from memosd.drivers.recall.columns import Bools, Columns, Floats, Ints
from memosd.drivers.recall.documents import DocumentRows
from memosd.drivers.recall.query import PASSAGES_SCORED, TOKENIZER, WORDS_MAX, Pass, passes
from memosd.drivers.recall.scope import Scope

__all__ = ["NO_MATCHES", "Lexical", "Matches"]

_REPLAN_AFTER: Final = 5_000
"""Passages that come to or go from an audience until its common words are counted again."""
_LOOKUPS_MAX: Final = 16_384
"""Words times audiences that a search looks up, at some 10 us each: of a long question over very
many audiences the words at its beginning."""
_IDF_MIN: Final = 1e-6
"""FTS5's, for a word that half of all passages have."""
_BYTES_MAX: Final = 32
"""For each passage that a search may find: those that came and went since the oldest of them was
written, here and elsewhere, are to take no memory. Beyond it a table takes no longer."""


class Matches(NamedTuple):
    """Passages with their scores, each once."""

    numbers: Ints
    scores: Floats


NO_MATCHES: Final = Matches(np.zeros(0, np.int64), np.zeros(0))


class _Asked(NamedTuple):
    """An audience's table, and what of it may be found."""

    columns: Columns
    audience: int
    frequencies: Sequence[tuple[str, int]]
    """(term, passages that have it), rarest first, none zero."""
    passages: int
    condition: str
    bindings: dict[str, Any]


class Lexical:
    """Finds passages by words."""

    def __init__(self, db: apsw.Connection, rows: DocumentRows) -> None:
        self._db = db
        self._turnover = rows.turnover
        self._tokenizer = db.fts5_tokenizer(TOKENIZER[0], list(TOKENIZER[1:]))
        self._common: dict[tuple[int, str], tuple[int, int]] = {}
        """(audience, term) -> how many passages have it, and the audience's turnover then."""

    def tokenize(self, utf8: bytes) -> list[tuple[int, int, str]]:
        tokens: Any = self._tokenizer(utf8, apsw.FTS5_TOKENIZE_QUERY, None, include_colocated=False)
        return list(tokens)

    def match(
        self, terms: Mapping[str, str], where: Sequence[tuple[Scope, Bools]], enough: int
    ) -> Matches:
        """The passages with any of the terms among the given rows of each scope.

        Common words stop being looked for where an audience has `enough` cubes. FTS5 weighs a
        word by how rare it is in one table; where several are searched, each one's scores are
        brought to what the words weigh in all of them together.
        """
        audiences = sum(len(scope.audiences) for scope, _ in where)
        words = list(terms.values())[: max(WORDS_MAX, _LOOKUPS_MAX // max(1, audiences))]
        asked = [
            _Asked(scope.columns, audience, frequencies, passages, *restriction)
            for scope, rows in where
            if (restriction := _restriction(scope, rows))
            for audience, passages in scope.audiences.items()
            if (frequencies := self._frequencies(words, audience))
        ]
        weights = _weights(asked, sum(sum(scope.audiences.values()) for scope, _ in where))
        found = [
            Matches(numbers, scores * weight)
            for each, weight in zip(asked, weights, strict=True)
            for numbers, scores in [self._search(each, enough)]
        ]
        if not found:
            return NO_MATCHES
        return Matches(*map(np.concatenate, zip(*found, strict=True)))

    def _frequencies(self, terms: Iterable[str], audience: int) -> list[tuple[str, int]]:
        """The terms that occur at all with their number of passages, rarest first."""
        counted = [(term, self._frequency(term, audience)) for term in terms]
        counted = [pair for pair in counted if pair[1]]
        counted.sort(key=lambda pair: pair[1])
        return counted[:WORDS_MAX]

    def _frequency(self, term: str, audience: int) -> int:
        turnover = self._turnover[audience]
        count, then = self._common.get((audience, term), (0, 0))
        if count and turnover - then < _REPLAN_AFTER:
            return count
        words = f"words_{audience}"
        sql = f"SELECT count(*) FROM {words} WHERE {words} MATCH ?"
        count = int(self._db.execute(sql, (term,)).get)
        self._common.pop((audience, term), None)
        if count > PASSAGES_SCORED:  # the costly ones, of which a language has few
            self._common[audience, term] = (count, turnover)
        return count

    def _search(self, asked: _Asked, enough: int) -> Matches:
        """A passage's score is that of the first pass that finds it."""
        numbers, scores = NO_MATCHES
        for question in passes(asked.frequencies):
            more, their_scores = self._score(asked, question)
            numbers, first = np.unique(np.concatenate([numbers, more]), return_index=True)
            scores = np.concatenate([scores, their_scores])[first]
            rows, _ = asked.columns.rows_of(numbers)
            if len(np.unique(asked.columns["doc"][rows])) >= enough:
                break
        return Matches(numbers, scores)

    def _score(self, asked: _Asked, question: Pass) -> Matches:
        """The newest PASSAGES_SCORED that match."""
        words = f"words_{asked.audience}"
        # FTS5's bm25() is negative.
        rows: Any = self._db.execute(
            f"SELECT rowid, -bm25({words}) FROM {words}"
            f" WHERE {words} MATCH :expression {asked.condition}"
            f" ORDER BY rowid DESC LIMIT {PASSAGES_SCORED}",
            {"expression": question.expression, **asked.bindings},
        )
        found = rows.fetchall()  # a statement left open would block the next commit
        both = np.array(found, np.float64).reshape(-1, 2)  # numbers are exact up to 2**53
        return Matches(both[:, 0].astype(np.int64), both[:, 1] * question.weight)


def _restriction(scope: Scope, rows: Bools) -> tuple[str, dict[str, Any]] | None:
    """An SQL condition that lets through the passages of these rows; None: there are none."""
    count = np.count_nonzero(rows)
    if not count:
        return None
    if count == sum(scope.audiences.values()):
        return "", {}
    chosen = scope.columns["number"][rows]
    base, top = int(chosen[0]), int(chosen[-1])
    if top - base >= _BYTES_MAX * count:
        # The sign keeps SQLite from asking FTS5 anew for each of them.
        condition = "AND +rowid IN (SELECT value FROM json_each(:chosen))"
        return condition, {"chosen": json.dumps(chosen.tolist())}
    # One byte for each number: a look-up that costs SQLite less than any table would.
    is_chosen = np.zeros(top - base + 1, np.uint8)
    is_chosen[chosen - base] = 1
    condition = "AND rowid BETWEEN :base AND :top AND substr(:chosen, rowid - :base + 1, 1) = x'01'"
    return condition, {"base": base, "top": top, "chosen": is_chosen.tobytes()}


def _weights(asked: Sequence[_Asked], passages: int) -> list[float]:
    """By what to multiply each audience's scores; 1.0 where there is one audience."""
    together: dict[str, int] = {}
    for each in asked:
        for term, frequency in each.frequencies:
            together[term] = together.get(term, 0) + frequency
    return [
        sum(_idf(passages, together[term]) for term, _ in each.frequencies)
        / sum(_idf(each.passages, frequency) for _, frequency in each.frequencies)
        for each in asked
    ]


def _idf(passages: int, having: int) -> float:
    """What FTS5's bm25() multiplies a word's occurrences by."""
    # A remembered frequency may be older than the number of passages.
    idf = math.log((max(passages - having, 0) + 0.5) / (having + 0.5))
    return idf if idf > 0 else _IDF_MIN
