"""What a passage is worth for a question: words, meaning, and what stands around it.

Pure arithmetic over the columns of the scopes; called by the index on its thread. The formula, and
what each part of it adds, is in docs/design/0005; docs/recall.md says it for users. `Worth` keeps
the parts, so that a hit can say what its score was made of: they add up to it.

A passage whose vector is not made yet is taken to mean what its words say: its share of the best
score by words stands for its meaning too. So while a backlog is worked off, what is new is found
by its words as if it were found by both, and what has no word of the query is no worse than
before.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from libmem.abi.index import IndexWeights
from libmem.abi.structs import Understood
from memosd.drivers.recall.columns import Bools, Columns, Floats, Ints
from memosd.drivers.recall.lexical import Matches
from memosd.drivers.recall.scope import Scope, is_one_of
from memosd.drivers.recall.vectors import Quantized, VectorRows, cosines

__all__ = [
    "PIECES_OF",
    "Evidence",
    "Standing",
    "Worth",
    "best",
    "by_all",
    "by_meaning",
    "by_words",
    "evidence",
]

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
_PRIORITY_MAX: Final = 100

PIECES_OF: Final = 300
"""Passages whose sentences are compared one by one: the best by words and the whole."""


class Evidence(NamedTuple):
    """What was found for each row of a scope, as found; the maxima are over all scopes."""

    scope: Scope
    bm25: Floats
    meaning: Floats
    """cos of the whole and of the best sentence together, -2 .. 2; 0 where there is no vector."""
    has_vector: Bools
    is_close: Bools
    """Sentences were compared."""


class Standing(NamedTuple):
    """By what rows are put in an order of their own."""

    values: Floats
    """Of each row of a scope; 0 for one that is not in the order."""
    all: Floats
    """Those of every row in the order, over all scopes, ascending."""


class Worth(NamedTuple):
    """The score of each row of a scope, and what explains it."""

    scope: Scope
    total: Floats
    is_hit: Bools
    parts: Mapping[str, Floats]
    """They add up to the total."""
    facts: Mapping[str, Floats] = {}
    """What else there is to say."""
    standings: Mapping[str, Standing] = {}


def evidence(
    scopes: Sequence[Scope], matches: Matches, query: Quantized | None, rows: VectorRows
) -> list[Evidence]:
    """Words and meaning of every row that is searched."""
    found = []
    for scope in scopes:
        columns = scope.columns
        none = np.zeros(columns.count)
        meaning = none if query is None else 2 * _cosines(columns, query)
        is_close = np.zeros(columns.count, np.bool_)
        found.append(
            Evidence(scope, _bm25(scope, matches), meaning, columns["has_vector"], is_close)
        )
    if query is not None:
        _compare_sentences(found, query, rows)
    return found


def _bm25(scope: Scope, matches: Matches) -> Floats:
    bm25 = np.zeros(scope.columns.count)
    rows, there = scope.columns.rows_of(matches.numbers)
    bm25[rows[there]] = matches.scores[there]
    bm25[~scope.searched] = 0.0
    return bm25


def _compare_sentences(found: Sequence[Evidence], query: Quantized, vectors: VectorRows) -> None:
    """Put the best sentence in place of the whole for the most promising candidates."""
    top_words = _highest(each.bm25[each.scope.candidates] for each in found)
    top_whole = _highest(each.meaning[each.scope.candidates] for each in found)
    roughs = [
        np.where(
            each.scope.candidates & each.has_vector,
            _WORDS * each.bm25 / top_words + each.meaning / top_whole,
            -np.inf,
        )
        for each in found
    ]
    for each, chosen in zip(found, best(roughs, PIECES_OF), strict=True):
        each.is_close[chosen] = True
        numbers = each.scope.columns["number"][chosen]
        having, starts, sentences = vectors.pieces(numbers.tolist())
        if having:
            rows, _ = each.scope.columns.rows_of(having)
            closest = np.maximum.reduceat(cosines(query, sentences), starts)
            each.meaning[rows] = each.meaning[rows] / 2 + closest


def by_words(scopes: Sequence[Scope], matches: Matches) -> list[Worth]:
    """BM25 alone."""
    found = ((scope, _bm25(scope, matches)) for scope in scopes)
    return [
        Worth(scope, bm25, scope.candidates & (bm25 > 0), {"bm25": bm25}) for scope, bm25 in found
    ]


def by_meaning(scopes: Sequence[Scope], query: Quantized) -> list[Worth]:
    """The cosine alone."""
    found = ((scope, _cosines(scope.columns, query)) for scope in scopes)
    return [
        Worth(scope, cos, scope.candidates & scope.columns["has_vector"], {"meaning": cos})
        for scope, cos in found
    ]


def _cosines(columns: Columns, query: Quantized) -> Floats:
    rows = Quantized(columns.scale[: columns.count], columns.steps[: columns.count])
    return np.where(columns["has_vector"], cosines(query, rows), 0.0)


def by_all(
    found: Sequence[Evidence], understood: Understood, weights: IndexWeights, *, has_query: bool
) -> list[Worth]:
    """The formula. Without a vector of the query words stand for meaning too."""
    top_words = _highest(each.bm25[each.scope.candidates] for each in found)
    top_meaning = _highest(each.meaning[each.scope.candidates] for each in found)
    standings = _standings(found)
    worths = []
    for each, its_standings in zip(found, standings, strict=True):
        words = each.bm25 / top_words
        if not has_query:
            parts = {"words": np.minimum(words, 1.0)}
        else:
            meaning = np.where(each.has_vector, each.meaning / top_meaning, words)
            # What is no candidate may be better than all that are: it still counts once.
            parts = {
                "words": np.minimum(words, 1.0) * _WORDS / (1 + _WORDS),
                "meaning": np.minimum(meaning, 1.0) / (1 + _WORDS),
            }
        parts |= _around(each.scope, sum(parts.values(), np.zeros(len(words))))
        parts |= _named(each.scope.columns, understood)
        relevance = sum(parts.values(), np.zeros(len(words)))
        parts |= _wanted(each.scope.columns, weights)
        total = sum(parts.values(), np.zeros(len(words)))
        # Being new or important alone makes nothing a hit.
        is_hit = each.scope.candidates & (relevance > 0)
        worths.append(Worth(each.scope, total, is_hit, parts, {"bm25": each.bm25}, its_standings))
    return worths


def _standings(found: Sequence[Evidence]) -> list[dict[str, Standing]]:
    """Where each row stands by words, and by meaning where its sentences were compared."""
    names = ("rank_words", "rank_meaning")
    values = [
        (
            np.where(each.scope.candidates, each.bm25, 0.0),
            np.where(each.scope.candidates & each.is_close, each.meaning, 0.0),
        )
        for each in found
    ]
    orders = []
    for at in range(len(names)):
        every = np.concatenate([each[at] for each in values])
        orders.append(np.sort(every[every > 0]))
    return [dict(zip(names, map(Standing, each, orders), strict=True)) for each in values]


def _around(scope: Scope, base: Floats) -> dict[str, Floats]:
    """What neighbours and the session lend."""
    base = np.where(scope.searched, base, 0.0)
    shared = np.append(base, 0.0)  # the last one for no neighbour
    is_answer = np.append(scope.columns["is_question"], False)[scope.before]
    parts = {
        "before": np.where(is_answer, _ANSWER, _BESIDE) * shared[scope.before],
        "after": _BESIDE * shared[scope.after],
    }
    session = scope.columns["session"]
    chosen = np.flatnonzero(scope.searched & (session >= 0))
    highest = np.zeros(len(scope.columns.sessions) + 1)
    np.maximum.at(highest, session[chosen], base[chosen])
    parts["session"] = np.where(session >= 0, _SESSION * highest[session], 0.0)
    return parts


def _named(columns: Columns, understood: Understood) -> dict[str, Floats]:
    """What the query says beside its words."""
    parts: dict[str, Floats] = {}
    if len(understood.producers) == 1:
        told_by = is_one_of(columns["producer"], columns.producers.find(understood.producers))
        parts["producer"] = _PRODUCER * told_by
    if understood.days:
        happened = columns["event_time_ns"]
        dated = np.zeros(columns.count, np.bool_)
        for first, last in understood.days:
            dated |= (happened >= first) & (happened <= last + _TOLD_WITHIN_NS)
        parts["date"] = _DATED * (dated & (happened != 0))
    return parts


def _wanted(columns: Columns, weights: IndexWeights) -> dict[str, Floats]:
    """What the caller wants to count beside the question."""
    parts: dict[str, Floats] = {}
    if weights.recency:
        happened = columns["event_time_ns"]
        since = np.where(happened != 0, happened, columns["written_ns"])
        age = np.maximum(weights.at_ns - since, 0) / max(1, weights.half_life_ns)
        parts["recency"] = weights.recency * np.exp2(-age)
    if weights.importance:
        share: Floats = columns["priority"].astype(np.float64) / _PRIORITY_MAX
        parts["importance"] = weights.importance * share
    return parts


def best(values: Sequence[Floats], limit: int) -> list[Ints]:
    """The rows with the highest values over all, at least `limit` where there are so many.

    Equals come in together, so that no row decides by its place which of them do. -inf never does.
    """
    every = np.concatenate([*values, np.zeros(0)])
    every = every[every > -np.inf]
    if not len(every) or limit <= 0:
        return [np.zeros(0, np.int64) for _ in values]
    at = max(0, len(every) - limit)
    least = np.partition(every, at)[at]
    return [np.flatnonzero((each >= least) & (each > -np.inf)) for each in values]


def _highest(values: Iterable[Floats]) -> float:
    """The largest of all; 1.0 where none is positive, for to divide by."""
    top = max((float(each.max(initial=0.0)) for each in values), default=0.0)
    return top if top > 0 else 1.0
