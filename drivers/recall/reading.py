"""What a query says beside its words: whom it names, and when.

Pure functions, called by the index when it plans a search. Invariant: what is understood leaves
the text that is searched for, but the text never becomes empty by it, and nothing that is typed
makes `read` raise. docs/design/0005, section 2.
"""

import re
from collections.abc import Collection, Iterable, Set
from typing import Final, NamedTuple

from memosd.drivers.recall.dates import Anchor, dates_of
from memosd.drivers.recall.days import Timeline
from memosd.drivers.recall.names import named_in
from memosd.drivers.recall.words import words_of

__all__ = ["Anchor", "Reading", "Timeline", "read"]

_SPACE_BEFORE_MARK: Final = re.compile(r" ([?,.!])")
_LEADING_MARKS: Final = re.compile(r"^(?:[,;:.?!]+ )+")


class Reading(NamedTuple):
    """What was understood of a query."""

    text: str
    """What is left to look for by its words and its meaning; all of it where nothing is left."""
    producers: tuple[str, ...] = ()
    """Whom it names, as they are known, in order."""
    spans: tuple[tuple[int, int], ...] = ()
    """When: first and last ns since the epoch, inclusive, of whole UTC days."""
    anchors: tuple[Anchor, ...] = ()
    """When, counted from something that happened; its words are still in `text`."""


def read(query: str, producers: Collection[str], timeline: Timeline) -> Reading:
    """Read the names of `producers` and the dates of `timeline` out of a query."""
    producers = producers if isinstance(producers, Set) else frozenset(producers)
    words = words_of(query)
    dates = dates_of(query, words, timeline, producers)
    # A word that is part of a date names nobody: `in May`.
    named = [
        name
        for name in named_in(query, words, producers)
        if not any(start < name.end and name.start < end for start, end in dates.leaving)
    ]
    leaving = [*dates.leaving, *((name.start, name.end) for name in named)]
    text = _without(query, leaving) if leaving else query
    return Reading(
        text if any(map(str.isalnum, text)) else query,
        tuple(dict.fromkeys(name.producer for name in named)),
        dates.spans,
        dates.anchors,
    )


def _without(query: str, parts: Iterable[tuple[int, int]]) -> str:
    """The rest of a query, with single spaces and none before a mark."""
    left, at = [], 0
    for start, end in sorted(parts):
        left.append(query[at:start])
        at = end
    left.append(query[at:])
    rest = _SPACE_BEFORE_MARK.sub(r"\1", " ".join(" ".join(left).split()))
    return _LEADING_MARKS.sub("", rest).rstrip(",;: ")
