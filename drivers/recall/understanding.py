"""What a question says beside its words, seen from what its caller may read.

Called by `search.py` when it plans. Names come from who told what is searched, dates are counted
from when it happened: what the caller may not read names nobody and dates nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from libmem.abi.index import IndexQuestion
from libmem.abi.structs import Understood
from memosd.drivers.recall.lexical import Lexical
from memosd.drivers.recall.query import terms_of
from memosd.drivers.recall.reading import Anchor, Timeline, read
from memosd.drivers.recall.scope import Scope
from memosd.drivers.recall.stopwords import content_words

__all__ = ["understand"]

_DAY_NS: Final = 86_400 * 10**9


def understand(question: IndexQuestion, scopes: Sequence[Scope], lexical: Lexical) -> Understood:
    """Whom and when the query names, and the text that is left of it."""
    reading = read(question.query, _producers(scopes), _timeline(scopes, question.now_ns))
    days = [*reading.spans]
    days += [
        (
            day + anchor.offset_days_first * _DAY_NS,
            day + (anchor.offset_days_last + 1) * _DAY_NS - 1,
        )
        for anchor in reading.anchors
        for day in _days_of(anchor, scopes, lexical)
    ]
    return Understood(reading.text, reading.producers, tuple(days))


def _producers(scopes: Sequence[Scope]) -> list[str]:
    """Who told any of what is searched."""
    names: dict[str, None] = {}
    for scope in scopes:
        columns = scope.columns
        known = columns["producer"][scope.searched]
        told = np.bincount(known[known >= 0], minlength=len(columns.producers))
        every = list(columns.producers.numbers)
        names |= dict.fromkeys(every[number] for number in np.flatnonzero(told))
    return list(names)


def _timeline(scopes: Sequence[Scope], now_ns: int) -> Timeline:
    """From when to when happened what is searched."""
    happened = [scope.columns["event_time_ns"][scope.searched] for scope in scopes]
    times = np.concatenate([*happened, np.zeros(0, np.int64)])
    times = times[times != 0]
    if not len(times):
        return Timeline(0, 0, now_ns)
    return Timeline(int(times.min()), int(times.max()), now_ns)


def _days_of(anchor: Anchor, scopes: Sequence[Scope], lexical: Lexical) -> Iterator[int]:
    """When began, in ns, the day of the memory that the anchor's words find best; or nothing."""
    where = [(scope, scope.searched & (scope.columns["event_time_ns"] != 0)) for scope in scopes]
    terms = content_words(terms_of(anchor.text, lexical.tokenize))
    numbers, scores = lexical.match(terms, where, 1)
    if not len(numbers):
        return
    best = np.lexsort((numbers, scores))[-1:]  # of equals the newest
    for scope in scopes:
        rows, there = scope.columns.rows_of(numbers[best])
        for happened in scope.columns["event_time_ns"][rows[there]].tolist():
            yield happened - happened % _DAY_NS
