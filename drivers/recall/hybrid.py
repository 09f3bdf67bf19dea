"""What a passage is worth for a question: words, meaning, and what stands around it.

Pure arithmetic over the columns of the scopes; called by the index on its thread. The formula, and
what each part of it adds, is in docs/design/0005; docs/recall.md says it for users. Every hit
can say what its score was made of.

A passage whose vector is not made yet is taken to mean what is usual, or what its words say where
that is more. To count it as meaningless instead buried the new and the half embedded: with half of
the vectors missing 59 % of evidence was among the first ten, against 78 this way and 75 by words
alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

import numpy as np

from libmem.abi.index import IndexWeights
from libmem.abi.limits import PRIORITY_MAX
from libmem.abi.structs import Understood
from memosd.drivers.recall.columns import Bools, Columns, Ints, Scores
from memosd.drivers.recall.lexical import Matches
from memosd.drivers.recall.scope import Scope, is_one_of
from memosd.drivers.recall.vectors import Quantized, VectorRows, cosines

__all__ = ["Sense", "Worth", "best", "by_all", "by_meaning", "by_words"]

_WORDS: Final = 0.5
"""A perfect match by words, where one by meaning is 1.0."""
_ANSWER: Final = 0.3
"""Of the score of the passage before, when that one is a question."""
_BESIDE: Final = 0.15
"""Of the score of the passage before that is no question, and of the one after."""
_SESSION: Final = 0.2
"""Of the best score in the session."""
_PRODUCER: Final = 0.4
"""For being told by the only producer that the query names."""
_DATED: Final = 0.4
"""For having happened when the query says, or up to _TOLD_WITHIN_NS later."""
_TOLD_WITHIN_NS: Final = 7 * 86_400 * 10**9
"""People tell of an event within the week."""

_BLOCK: Final = 64
NO_ROWS: Final[Ints] = np.zeros(0, np.int64)
NO_VALUES: Final[Scores] = np.zeros(0, np.float32)
_ALL: Final = slice(None)
Parts = Iterator[tuple[str, Scores]]
"""Names and values of parts of a score; they add up to it."""


_PIECES_OF: Final = 300
"""Passages whose sentences are compared one by one: the best by words and the whole."""


class Sense(NamedTuple):
    """What was understood of a query."""

    understood: Understood
    query: Quantized | None
    """Its vector."""
    vectors: VectorRows


class Worth(NamedTuple):
    """The score of each row of a scope."""

    scope: Scope
    total: Scores
    is_hit: Bools
    explain: Callable[[int], dict[str, float]]
    """Of a row: what its score was made of."""


class _Found(NamedTuple):
    """What was found for each row of a scope."""

    scope: Scope
    bm25: Scores
    matched: Ints
    """The rows that have any."""
    meaning: Scores
    """cos of the whole and of the best sentence together, -2 .. 2; 0 where there is no vector."""


class _Measures(NamedTuple):
    """Over the candidates of all scopes."""

    top_words: float
    top_meaning: float
    usual_meaning: float
    has_query: bool
    """There is a vector of the query."""


def by_words(scopes: Sequence[Scope], matches: Matches) -> list[Worth]:
    """BM25 alone."""
    found = ((scope, _bm25(scope, matches)[0]) for scope in scopes)
    return [
        Worth(scope, bm25, scope.candidates & (bm25 > 0), partial(_one, "bm25", bm25))
        for scope, bm25 in found
    ]


def by_meaning(scopes: Sequence[Scope], query: Quantized) -> list[Worth]:
    """The cosine alone."""
    found = ((scope, _cosines(scope.columns, query)) for scope in scopes)
    return [
        Worth(
            scope,
            cos,
            scope.candidates & scope.columns["has_vector"],
            partial(_one, "meaning", cos),
        )
        for scope, cos in found
    ]


def _one(name: str, values: Scores, row: int) -> dict[str, float]:
    return {name: float(values[row])}


def by_all(
    scopes: Sequence[Scope], matches: Matches, sense: Sense, weights: IndexWeights
) -> list[Worth]:
    """The formula. Without a vector of the query words stand for meaning too."""
    found = []
    for scope in scopes:
        bm25, matched = _bm25(scope, matches)
        if sense.query is None:
            meaning: Scores = np.zeros(scope.columns.count, np.float32)
        else:
            meaning = _cosines(scope.columns, sense.query)
            meaning *= 2
        matched = matched[scope.candidates[matched]]
        found.append(_Found(scope, bm25, matched, meaning))
    top_words = _highest(each.bm25[each.matched] for each in found)
    close = [NO_ROWS for _ in found]
    if sense.query is not None:
        close = _compare_sentences(found, top_words, sense.query, sense.vectors)
    measures = _measures(found, top_words, has_query=sense.query is not None)
    orders = (
        _in_order(each.bm25[each.matched] for each in found),
        _in_order(each.meaning[rows] for each, rows in zip(found, close, strict=True)),
    )
    return [_Formula(each, measures, sense.understood, weights).worth(orders) for each in found]


def _bm25(scope: Scope, matches: Matches) -> tuple[Scores, Ints]:
    """(of each row, the rows that have any)"""
    rows, there = scope.columns.rows_of(matches.numbers)
    there = there & scope.searched[rows]
    bm25: Scores = np.zeros(scope.columns.count, np.float32)
    bm25[rows[there]] = matches.scores[there]
    return bm25, rows[there]


def _cosines(columns: Columns, query: Quantized) -> Scores:
    """Of a row without a vector 0: its steps are zeros."""
    return cosines(query, Quantized(columns.scale[: columns.count], columns.steps[: columns.count]))


def _compare_sentences(
    found: Sequence[_Found], top_words: float, query: Quantized, vectors: VectorRows
) -> list[Ints]:
    """Put the best sentence in place of the whole for the most promising candidates: these rows."""
    top_whole = _highest(_of_candidates(each.scope, each.meaning) for each in found)
    roughs = []
    for each in found:
        rough = each.bm25 * np.float32(_WORDS / top_words)
        rough += each.meaning * np.float32(1 / top_whole)
        rough[~(each.scope.candidates & each.scope.columns["has_vector"])] = -np.inf
        roughs.append(rough)
    close = best(roughs, _PIECES_OF)
    for each, rows in zip(found, close, strict=True):
        numbers = each.scope.columns["number"][rows]
        having, starts, sentences = vectors.pieces(numbers.tolist())
        if having:
            at, _ = each.scope.columns.rows_of(having)
            closest = np.maximum.reduceat(cosines(query, sentences), starts)
            each.meaning[at] = each.meaning[at] / 2 + closest
    return close


def _measures(found: Sequence[_Found], top_words: float, *, has_query: bool) -> _Measures:
    if not has_query:
        return _Measures(top_words, 1.0, 0.0, has_query)
    top_meaning = _highest(_of_candidates(each.scope, each.meaning) for each in found)
    usual = 0.0
    if any((each.scope.candidates & ~each.scope.columns["has_vector"]).any() for each in found):
        with_vector = np.concatenate(
            [
                each.meaning[each.scope.candidates & each.scope.columns["has_vector"]]
                for each in found
            ]
        )
        usual = float(with_vector.mean()) if len(with_vector) else 0.0
    return _Measures(top_words, top_meaning, usual, has_query)


def _in_order(values: Iterable[Scores]) -> Scores:
    return np.sort(np.concatenate([*values, NO_VALUES]))


class _Formula:
    """The parts of a score, for all rows of a scope or for one.

    Every part is one method that takes the rows it is wanted for, so that an explanation cannot
    say anything else than the score. Sums are made in place: fresh arrays for every part would
    cost more in page faults than in arithmetic.
    """

    def __init__(
        self, found: _Found, measures: _Measures, understood: Understood, weights: IndexWeights
    ) -> None:
        self._found = found
        self._scope = found.scope
        self._columns = found.scope.columns
        self._measures = measures
        self._understood = understood
        self._weights = weights
        self._shared: Scores = np.zeros(0, np.float32)
        self._highest: Scores = np.zeros(0, np.float32)

    def worth(self, orders: tuple[Scores, Scores]) -> Worth:
        total: Scores = np.zeros(self._columns.count, np.float32)
        for _, values in self._base(_ALL):
            total += values
        self._share(total)
        for _, values in chain(self._around(_ALL), self._named(_ALL)):
            total += values
        # Being new or important alone makes nothing a hit.
        is_hit = self._scope.candidates & (total > 0)
        for _, values in self._wanted(_ALL):
            total += values
        return Worth(self._scope, total, is_hit, partial(self._explain, orders))

    def _explain(self, orders: tuple[Scores, Scores], row: int) -> dict[str, float]:
        rows = slice(row, row + 1)
        parts = chain(self._base(rows), self._around(rows), self._named(rows), self._wanted(rows))
        signals = {"bm25": float(self._found.bm25[row])}
        signals |= {name: float(values[0]) for name, values in parts}
        found = (self._found.bm25[row], self._found.meaning[row])
        for name, value, order in zip(("rank_words", "rank_meaning"), found, orders, strict=True):
            above = len(order) - int(np.searchsorted(order, value, side="right"))
            if above < len(order):
                signals[name] = above + 1.0
        return {name: value for name, value in signals.items() if value}

    def _base(self, rows: slice) -> Parts:
        """Words and meaning, measured by the best candidate.

        What is no candidate may be better than all that are: it counts as much as the best.
        """
        measures = self._measures
        share = _WORDS / (1 + _WORDS) if measures.has_query else 1.0
        words = self._found.bm25[rows] * np.float32(share / measures.top_words)
        yield "words", np.minimum(words, np.float32(share), out=words)
        if measures.has_query:
            of_words, share = share, 1 / (1 + _WORDS)
            meaning = self._found.meaning[rows] * np.float32(share / measures.top_meaning)
            np.minimum(meaning, np.float32(share), out=meaning)
            lacking = np.flatnonzero(
                self._scope.searched[rows] & ~self._columns["has_vector"][rows]
            )
            usual = measures.usual_meaning / measures.top_meaning
            meaning[lacking] = share * np.maximum(words[lacking] / of_words, usual)
            yield "meaning", meaning

    def _share(self, base: Scores) -> None:
        """Keep what rows can lend others."""
        self._shared = np.zeros(len(base) + 1, np.float32)  # the last one for no neighbour
        np.multiply(base, self._scope.searched, out=self._shared[:-1])
        self._highest = np.zeros(len(self._columns.sessions) + 1, np.float32)
        np.maximum.at(self._highest, self._columns["session"], self._shared[:-1])
        self._highest[-1] = 0.0  # the last one for no session

    def _around(self, rows: slice) -> Parts:
        """What neighbours and the session lend."""
        links = self._scope.links
        before = self._shared[links.before[rows]]
        before *= np.where(links.is_answer[rows], np.float32(_ANSWER), np.float32(_BESIDE))
        yield "before", before
        yield "after", self._shared[links.after[rows]] * np.float32(_BESIDE)
        yield "session", self._highest[self._columns["session"][rows]] * np.float32(_SESSION)

    def _named(self, rows: slice) -> Parts:
        """What the query says beside its words."""
        producers, days = self._understood.producers, self._understood.days
        if len(producers) == 1:
            known = self._columns.producers.find(producers)
            told_by = is_one_of(self._columns["producer"][rows], known)
            yield "producer", told_by * np.float32(_PRODUCER)
        if days:
            happened = self._columns["event_time_ns"][rows]
            dated = np.zeros(len(happened), np.bool_)
            for first, last in days:
                dated |= (happened >= first) & (happened <= last + _TOLD_WITHIN_NS)
            yield "date", (dated & (happened != 0)) * np.float32(_DATED)

    def _wanted(self, rows: slice) -> Parts:
        """What the caller wants to count beside the question."""
        weights = self._weights
        if weights.recency:
            happened = self._columns["event_time_ns"][rows]
            since = np.where(happened != 0, happened, self._columns["written_ns"][rows])
            age = np.maximum(weights.at_ns - since, 0) / max(1, weights.half_life_ns)
            yield "recency", (weights.recency * np.exp2(-age)).astype(np.float32)
        if weights.importance:
            priority = self._columns["priority"][rows].astype(np.float32)
            yield "importance", priority * np.float32(weights.importance / PRIORITY_MAX)


def best(values: Sequence[Scores], limit: int) -> list[Ints]:
    """The rows with the highest values over all, at least `limit` where there are so many.

    Equals come in together, so that no row decides by its place which of them do. -inf never does.
    """
    if limit <= 0:
        return [NO_ROWS for _ in values]
    least = max((_nth_at_least(each, limit) for each in values), default=-np.inf)
    chosen = [np.flatnonzero((each >= least) & (each > -np.inf)) for each in values]
    contenders = np.concatenate(
        [NO_VALUES, *(each[at] for each, at in zip(values, chosen, strict=True))]
    )
    if len(contenders) > limit:
        least = np.partition(contenders, -limit)[-limit]
        chosen = [at[each[at] >= least] for each, at in zip(values, chosen, strict=True)]
    return chosen


def _nth_at_least(values: Scores, nth: int) -> float:
    """A number that at least `nth` of the values reach: the maxima of blocks say one quickly."""
    blocks = len(values) // _BLOCK
    if blocks < nth:
        return -math.inf
    highest = values[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(axis=0)
    return float(np.partition(highest, -nth)[-nth])


def _of_candidates(scope: Scope, values: Scores) -> Scores:
    return values if scope.candidates.all() else values[scope.candidates]


def _highest(values: Iterable[Scores]) -> float:
    """The largest of all; 1.0 where none is positive, for to divide by."""
    top = max((float(each.max(initial=0.0)) for each in values), default=0.0)
    return top if top > 0 else 1.0
