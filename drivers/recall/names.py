"""Who is named in a query.

Pure functions, called by reading.py. The query's words are looked at once and each name once, so
that thousands of names cost a look into a table each, and no pattern is ever made of one.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from memosd.drivers.recall.dateforms import MONTHS, WEEKDAYS
from memosd.drivers.recall.days import SEASONS
from memosd.drivers.recall.passages import SPACELESS
from memosd.drivers.recall.stopwords import STOP_WORDS
from memosd.drivers.recall.words import Word, fold, fold_name, words_of

__all__ = ["Named", "named_in"]

_EVERYDAY: Final = (
    STOP_WORDS
    | set(MONTHS)
    | set(WEEKDAYS)
    | set(SEASONS)
    | set(
        "angel art bill chance chase christian dawn drew faith frank gene grace grant hope hunter "
        "ivy jack joy lily mark mercy miles olive pat patience penny rich rob rose ruby sandy sky "
        "star sue sunny violet wade".split()
    )
)
"""Names that are words as well: whoever means the name writes it as one."""

_PLACES_MAX: Final = 64
"""How often a name is looked for in one query."""

_SPACELESS: Final = re.compile(f"[{SPACELESS}]")


class Named(NamedTuple):
    """A name in the query, with its `'s`: characters, start and end."""

    start: int
    end: int
    producer: str


def named_in(query: str, words: Sequence[Word], producers: Collection[str]) -> list[Named]:
    """The producers that the query names, in order; of names within names the longest."""
    places: dict[str, list[int]] = {}
    for at, word in enumerate(words):
        places.setdefault(word.folded, []).append(at)
    found: list[Named] = []
    for producer in producers:
        key = fold(producer)
        if key in places and key.isalnum():
            found += _places(query, words, places[key], (producer, key, 1))
        elif not key.isalnum():
            found += _of_several_words(query, words, places, producer)
        if len(producer) > 1 and not producer.isascii() and _SPACELESS.search(producer):
            found += _within(query, producer)
    return _longest(query, found)


def _of_several_words(
    query: str, words: Sequence[Word], places: Mapping[str, list[int]], producer: str
) -> list[Named]:
    parts = words_of(producer)
    # A mark at its end is not always typed: `Martin Luther King Jr.`
    while parts and parts[-1].folded == ".":
        parts.pop()
    if not parts or parts[0].folded not in places:
        return []
    key = fold_name(producer[parts[0].start : parts[-1].end])
    return _places(query, words, places[parts[0].folded], (producer, key, len(parts)))


def _places(
    query: str, words: Sequence[Word], starts: Sequence[int], name: tuple[str, str, int]
) -> list[Named]:
    """Where this name (as known, folded, its number of words) stands as one."""
    producer, key, count = name
    found = []
    for at in starts[:_PLACES_MAX]:
        if at + count > len(words):
            break
        start, end = words[at].start, words[at + count - 1].end
        typed = query[start:end]
        if count > 1 and fold_name(typed) != key:
            continue
        if key in _EVERYDAY and typed != producer:
            continue
        if _is_inside(query, start, end):
            continue
        found.append(Named(start, end + _possessive(query, end), producer))
    return found


def _is_inside(query: str, start: int, end: int) -> bool:
    """A part of another name: `Ann-Marie`, `O'Neil`, `ann@example.org`?"""
    before, after = query[max(0, start - 2) : start], query[end : end + 3]
    if before[-1:] in ("-", "'", "’", "@") and before[:-1].isalnum():
        return True
    if after[:1] in ("-", "@") and after[1:2].isalnum():
        return True
    return (
        after[:1] in ("'", "’")
        and after[1:].isalnum()
        and len(after) > 2
        and (after[1:].lower() not in ("ll", "ve", "re"))
    )


def _possessive(query: str, end: int) -> int:
    """The length of an `'s` here."""
    after = query[end : end + 3]
    if after[:1] in ("'", "’") and after[1:2] in ("s", "S") and not after[2:].isalnum():
        return 2
    return 0


def _within(query: str, producer: str) -> list[Named]:
    """A name of a script without spaces, anywhere."""
    found = []
    start = query.find(producer)
    while start >= 0 and len(found) < _PLACES_MAX:
        end = start + len(producer)
        found.append(Named(start, end + _possessive(query, end), producer))
        start = query.find(producer, end)
    return found


def _longest(query: str, found: list[Named]) -> list[Named]:
    """In order and without overlaps; of names that differ in case alone, the one as written."""

    def order(named: Named) -> tuple[int, int, bool, str]:
        typed = query[named.start : named.start + len(named.producer)]
        return named.start, -named.end, typed != named.producer, named.producer

    kept: list[Named] = []
    for named in sorted(found, key=order):
        if not kept or named.start >= kept[-1].end:
            kept.append(named)
    return kept
