"""The dates that a query names, and what stands around them: prepositions, `two days before`.

Pure functions, called by reading.py. What no memory can have happened at is not understood: its
words stay in the query, where they can still be found in a text. The same goes for `yesterday`
beside a date in full, which is the day before some other day than today.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from memosd.drivers.recall.dateforms import DASHES, MONTHS, STARTS, WEEKDAYS, Forms, Found
from memosd.drivers.recall.days import LENGTHS, Calendar, Span, Timeline, nanoseconds
from memosd.drivers.recall.stopwords import STOP_WORDS
from memosd.drivers.recall.words import Word, possessive

__all__ = ["DATES_MAX", "Anchor", "Dates", "dates_of"]

DATES_MAX: Final = 16
"""Dates that are read in one query."""

_IN: Final = frozenset(("in", "on", "at", "during", "around", "over", "throughout", "from"))
_OF: Final = frozenset(("of", "by"))
"""Before a month or a year they say when, before another date that is weak they do not."""

_OPEN: Final = frozenset(("since", "before", "after", "until", "till"))
_JOINTS: Final = frozenset(("and", "to", "until", "till", "through", *DASHES))
_STARTS: Final = STARTS | _IN | _OF | _OPEN | {"for", "between"}
_STARTS_MAX: Final = 256
"""Words that a date could begin with, of which so many are looked at: a page of text has fewer."""

_ENDS: Final = frozenset('.,;:?!()[]"')
_ANCHOR_WORDS_MAX: Final = 12
_COUNTED: Final = {"weekend"}.union(LENGTHS, WEEKDAYS)
_SUNDAY: Final = WEEKDAYS["sunday"]


class Anchor(NamedTuple):
    """Days counted from something that happened: `two days before the trip`."""

    text: str
    """What happened."""
    offset_days_first: int
    offset_days_last: int
    """The days meant, counted from it; both included."""


class Dates(NamedTuple):
    """What was understood."""

    spans: tuple[tuple[int, int], ...] = ()
    """First and last ns, inclusive, of whole days."""
    anchors: tuple[Anchor, ...] = ()
    leaving: tuple[tuple[int, int], ...] = ()
    """The parts of the query that said so: characters, start and end."""


class _Offset(NamedTuple):
    """`Two days before`, `the Sunday after`."""

    end: int
    """The first word of what is counted from."""
    first: int
    last: int
    unit: str
    """Of what is counted; a name of a day stands for the one day in `first` to `last`."""


class _Taken(NamedTuple):
    date: Found
    leaving: tuple[tuple[int, int], ...]


def dates_of(
    query: str, words: Sequence[Word], timeline: Timeline, names: Collection[str] = ()
) -> Dates:
    """Read every date; none where nothing has an event time.

    `names` are whoever may be meant by `May`.
    """
    if not timeline.first_ns and not timeline.last_ns:
        return Dates()
    return _Reader(query, words, Calendar(timeline), names).read()


class _Reader:
    """Goes through the words once."""

    def __init__(
        self, query: str, words: Sequence[Word], calendar: Calendar, names: Collection[str]
    ) -> None:
        self._query = query
        self._words = words
        self._calendar = calendar
        self._forms = Forms(query, words, calendar, names)
        self._taken: list[_Taken] = []
        self._anchors: list[Anchor] = []

    def read(self) -> Dates:
        at = 0
        for start in self._starts():
            if len(self._taken) + len(self._anchors) == DATES_MAX:
                break
            if start < at:
                continue
            at = start
            found = self._prefixed(at) or self._counted(at) or self._bare(at)
            if found:
                self._take(at, found)
                at = found.end
            else:
                at = self._anchored(at) or at + 1
        is_absolute = any(not taken.date.is_relative for taken in self._taken)
        counted = [t for t in self._taken if not (is_absolute and t.date.is_relative)]
        spans = dict.fromkeys(nanoseconds(span) for taken in counted for span in taken.date.spans)
        leaving = tuple(part for taken in counted for part in taken.leaving)
        return Dates(tuple(spans), tuple(self._anchors), leaving)

    def _starts(self) -> Iterator[int]:
        """Where a date may begin."""
        starts = (
            at
            for at, word in enumerate(self._words)
            if word.folded in _STARTS or word.folded[:1].isdecimal()
        )
        return islice(starts, _STARTS_MAX)

    def _take(self, at: int, found: Found) -> None:
        told = tuple(span for span in found.spans if self._calendar.is_told(span))
        start, end = self._words[at].start, self._words[found.end - 1].end
        is_part = self._query[end : end + 1] == "-" and self._query[end + 1 : end + 2].isalnum()
        if is_part or not told:
            return  # `in spring-fed lakes`
        end += possessive(self._query, end)
        leaving: tuple[tuple[int, int], ...] = ((start, end),)
        if any(found.kept):
            first, behind = found.kept
            leaving = ((start, self._words[first].start), (self._words[behind - 1].end, end))
        self._taken.append(_Taken(found._replace(spans=told), leaving))

    def _bare(self, at: int) -> Found | None:
        found = self._forms.date(at)
        return found if found and not found.is_weak else None

    def _prefixed(self, at: int) -> Found | None:
        """A date with the preposition that introduces it."""
        word = self._forms.word(at)
        if word in ("between", "from"):
            found = self._between(at + 1)
            if found:
                return found
        if word in _OPEN:
            found = self._counted(at + 1) or self._forms.date(at + 1)
            return self._open(word, found) if found else None
        if word in _IN:
            return self._counted(at + 1) or self._forms.date(at + 1)
        if word in _OF and (self._forms.word(at + 1) in MONTHS or self._is_year(at + 1)):
            return self._forms.date(at + 1)
        return self._bare(at + 1) if word in ("for", "between", *_OF) else None

    def _is_year(self, at: int) -> bool:
        return self._forms.word(at)[:1].isdecimal()

    def _open(self, word: str, found: Found) -> Found:
        """Since, before, after or until a date."""
        if not found.spans:
            return found
        date = self._calendar.latest(found.spans)
        first, last = {
            "since": (date[0], self._calendar.last),
            "before": (self._calendar.first, date[0] - 1),
            "after": (date[1] + 1, self._calendar.last),
        }.get(word, (self._calendar.first, date[1]))
        return found._replace(spans=((first, last),) if first <= last else ())

    def _between(self, at: int) -> Found | None:
        """X and Y, X to Y; the year that one lacks is the other's, or the nearest."""
        start = self._forms.date(at)
        if not start or self._forms.word(start.end) not in _JOINTS:
            return None
        end = self._forms.date(start.end + 1)
        if not end:
            return None
        lasts = sorted(end.spans)
        pairs = [
            (first[0], later[0][1])
            for first in sorted(start.spans)
            if (later := [last for last in lasts if last[1] >= first[0]])
        ]
        if len(lasts) == 1:
            pairs = pairs[-1:]
        is_relative = start.is_relative and end.is_relative
        return Found(end.end, tuple(pairs), is_relative=is_relative) if pairs else None

    def _offset(self, at: int) -> _Offset | None:
        forms = self._forms
        number, unit = forms.count(at + (forms.word(at) == "the"))
        if unit:
            end = at + (forms.word(at) == "the") + 2
            slack = LENGTHS[unit] // 2 if unit != "day" else 0
            near, far = number * LENGTHS[unit] - slack, number * LENGTHS[unit] + slack
        else:
            unit, end = forms.word(at + 1), at + 2
            if forms.word(at) not in ("the", "last") or unit not in _COUNTED:
                return None
            near, far = 1, LENGTHS.get(unit, 7)
        if forms.word(end) == "before":
            return _Offset(end + 1, -far, -near, unit)
        return _Offset(end + 1, near, far, unit) if forms.word(end) == "after" else None

    def _counted(self, at: int) -> Found | None:
        """Days counted from a date: `two days before 4 May`, `the Sunday after 4 May`."""
        offset = self._offset(at)
        date = self._forms.date(offset.end) if offset else None
        if not offset or not date:
            return None
        spans = tuple(
            _narrowed((last + offset.first, last + offset.last), offset)
            if offset.first > 0
            else _narrowed((first + offset.first, first + offset.last), offset)
            for first, last in date.spans
        )
        return date._replace(spans=spans, is_weak=False, kept=(0, 0))

    def _anchored(self, at: int) -> int:
        """Note days counted from what is no date; the first word after it, 0 where there is none.

        Its words stay: only a memory can say when it was.
        """
        offset = self._offset(at)
        if not offset:
            return 0
        end = offset.end
        limit = min(len(self._words), end + _ANCHOR_WORDS_MAX)
        while end < limit and self._words[end].folded not in _ENDS:
            end += 1
        event = self._words[offset.end : end]
        # `The day after that`, `the week before last`: nothing to look for.
        if all(word.folded in STOP_WORDS or word.folded in ("last", "next") for word in event):
            return 0
        text = self._query[event[0].start : event[-1].end]
        self._anchors.append(Anchor(text, offset.first, offset.last))
        return end


def _narrowed(span: Span, offset: _Offset) -> Span:
    """Of seven days the one with the name that is counted, or the weekend that lies beside them."""
    if offset.unit in WEEKDAYS:
        return _on(span, WEEKDAYS[offset.unit])
    if offset.unit == "weekend":
        # Its nearer day is within the seven: the Sunday before, the Saturday after.
        sunday = _on(span, _SUNDAY)[0] if offset.first < 0 else _on(span, _SUNDAY - 1)[0] + 1
        return sunday - 1, sunday
    return span


def _on(week: Span, weekday: int) -> Span:
    on = week[0] + (weekday - (week[0] - 1)) % 7
    return on, on
