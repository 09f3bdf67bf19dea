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
from memosd.drivers.recall.words import (
    APOSTROPHES,
    Word,
    fold,
    fold_name,
    possessive,
    words_of,
)

__all__ = ["Named", "named_in"]

_TEXT: Final = (
    "angel art bill chance chase christian dawn drew faith frank gene grace grant hope hunter ivy "
    "jack joy lily mark mercy miles olive pat patience penny rich rob rose ruby sandy sky star sue "
    "sunny violet wade"
)
_EVERYDAY: Final = STOP_WORDS.union(MONTHS, WEEKDAYS, SEASONS, _TEXT.split())
"""Names that are words as well: whoever means the name writes it as one."""

_PLACES_MAX: Final = 64
"""How often a name is looked for in one query."""

_CONTRACTED: Final = ("ll", "ve", "re")
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
    flat = fold_name(query)
    is_spaceless = bool(_SPACELESS.search(query))
    found: list[Named] = []
    for producer in producers:
        key = fold(producer)
        if key in places:
            found += _places(query, words, places[key], (producer, key, 1))
        elif not key.isalnum() and key.strip(" .") in flat:
            found += _of_several_words(query, words, places, producer)
        if is_spaceless and not producer.isascii():
            found += _within(query, producer)
    return _longest(query, found)


def _of_several_words(
    query: str, words: Sequence[Word], places: Mapping[str, list[int]], producer: str
) -> list[Named]:
    parts = words_of(producer)
    # The dot of `Martin Luther King Jr.` is not always typed.
    while len(parts) > 1 and parts[-1].folded == ".":
        parts.pop()
    starts = places.get(parts[0].folded) if parts else None
    if not starts:
        return []
    key = fold_name(producer[parts[0].start : parts[-1].end])
    return _places(query, words, starts, (producer, key, len(parts)))


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
        if fold_name(typed) != key or _is_inside(query, start, end):
            continue
        if not _is_everyday(key) or typed == _as_a_name(producer):
            found.append(Named(start, end + possessive(query, end), producer))
    return found


def _is_everyday(key: str) -> bool:
    return len(key) == 1 or key in _EVERYDAY


def _as_a_name(producer: str) -> str:
    return producer.title() if producer.islower() else producer


def _is_inside(query: str, start: int, end: int) -> bool:
    """A part of another name: `Ann-Marie`, `O'Neil`, `ann@example.org`?"""
    joints = ("-", "@", *APOSTROPHES)
    if start > 1 and query[start - 1] in joints and query[start - 2].isalnum():
        return True
    joint, tail = query[end : end + 1], query[end + 1 : end + 3]
    if joint in APOSTROPHES:
        # `'s`, `'d` and `'ll` belong to any name.
        return len(tail) == 2 and tail.isalnum() and tail.lower() not in _CONTRACTED
    return joint in ("-", "@") and tail[:1].isalnum()


def _within(query: str, producer: str) -> list[Named]:
    """A name of a script without spaces, anywhere; of one character, nowhere but as a word."""
    found: list[Named] = []
    start = query.find(producer) if len(producer) > 1 else -1
    if start < 0 or not _SPACELESS.search(producer):
        return found
    while start >= 0 and len(found) < _PLACES_MAX:
        end = start + len(producer)
        found.append(Named(start, end + possessive(query, end), producer))
        start = query.find(producer, end)
    return found


def _longest(query: str, found: Sequence[Named]) -> list[Named]:
    """In order and without overlaps; of names that differ in case alone, the one as written."""

    def order(named: Named) -> tuple[int, int, bool, str]:
        is_other = not query.startswith(named.producer, named.start)
        return named.start, -named.end, is_other, named.producer

    kept: list[Named] = []
    for named in sorted(found, key=order):
        if not kept or named.start >= kept[-1].end:
            kept.append(named)
    return kept
