"""The dates that a query names.

Pure functions, called by reading.py. What no memory can have happened at is not understood: its
words stay in the query, where they can still be found in a text. At most DATES_MAX dates are read.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from memosd.drivers.recall.dateforms import WEEKDAYS, Forms, Found
from memosd.drivers.recall.days import Calendar, Span, Timeline, nanoseconds
from memosd.drivers.recall.words import Word

__all__ = ["DATES_MAX", "Anchor", "Dates", "dates_of"]

DATES_MAX: Final = 16

_IN: Final = frozenset("in on at during of by around over throughout for".split())
_OPEN: Final = frozenset("since before after until till".split())
_ENDS: Final = frozenset('.,;:?!()[]"')
_ANCHOR_WORDS_MAX: Final = 12
_LONG: Final = {"day": 1, "week": 7, "month": 30, "year": 365}


class Anchor(NamedTuple):
    """Days counted from something that happened: `two days before the trip`."""

    text: str
    """What happened."""
    offset_days_first: int
    offset_days_last: int
    """The days meant, counted from it; both included."""


class Dates(NamedTuple):
    """What was understood."""

    spans: tuple[tuple[int, int], ...]
    """First and last ns, inclusive, of whole days."""
    anchors: tuple[Anchor, ...]
    leaving: tuple[tuple[int, int], ...]
    """The parts of the query that said so: characters, start and end."""


def dates_of(query: str, words: Sequence[Word], timeline: Timeline) -> Dates:
    """Read every date; none where nothing has an event time."""
    if not timeline.first_ns and not timeline.last_ns:
        return Dates((), (), ())
    return _Reader(query, words, Calendar(timeline)).read()


class _Reader:
    """Goes through the words once."""

    def __init__(self, query: str, words: Sequence[Word], calendar: Calendar) -> None:
        self._query = query
        self._words = words
        self._calendar = calendar
        self._forms = Forms(query, words, calendar)
        self._spans: dict[Span, None] = {}
        self._anchors: list[Anchor] = []
        self._leaving: list[tuple[int, int]] = []

    def read(self) -> Dates:
        at = 0
        while at < len(self._words) and len(self._leaving) + len(self._anchors) < DATES_MAX:
            found = self._prefixed(at) or self._counted(at) or self._bare(at)
            if found and self._take(at, found):
                at = found.end
            else:
                at = self._anchored(at) or at + 1
        spans = tuple(nanoseconds(span) for span in self._spans)
        return Dates(spans, tuple(self._anchors), tuple(self._leaving))

    def _take(self, at: int, found: Found) -> bool:
        told = [span for span in found.spans if self._calendar.is_told(span)]
        if not told:
            return False
        self._spans.update(dict.fromkeys(told))
        self._leaving.append((self._words[at].start, self._words[found.end - 1].end))
        return True

    def _bare(self, at: int) -> Found | None:
        found = self._forms.date(at)
        return found if found and not found.is_weak else None

    def _prefixed(self, at: int) -> Found | None:
        """A date with the preposition that introduces it."""
        word = self._forms.word(at)
        if word == "between" or word == "from":
            between = self._between(at + 1)
            if between:
                return between
        if word in _OPEN:
            found = self._forms.date(at + 1)
            return self._open(word, found) if found else None
        return self._forms.date(at + 1) if word in _IN or word == "from" else None

    def _open(self, word: str, found: Found) -> Found | None:
        """Since, before, after, until a date."""
        date = self._calendar.latest(found.spans)
        if not date:
            return None
        first, last = {
            "since": (date[0], self._calendar.last),
            "before": (self._calendar.first, date[0] - 1),
            "after": (date[1] + 1, self._calendar.last),
        }.get(word, (self._calendar.first, date[1]))
        return found._replace(spans=((first, last),)) if first <= last else None

    def _between(self, at: int) -> Found | None:
        """X and Y, X to Y."""
        start = self._forms.date(at)
        if not start or self._forms.word(start.end) not in ("and", "to", "until", "till", "-", "–"):
            return None
        end = self._forms.date(start.end + 1)
        if not end:
            return None
        if len(end.spans) == 1:
            begun = [span for span in start.spans if span[0] <= end.spans[0][1]]
            pairs = [(begun[-1], end.spans[0])] if begun else []
        else:
            pairs = [
                (first, later[0])
                for first in start.spans
                if (later := [last for last in end.spans if last[1] >= first[0]])
            ]
        spans = tuple((first[0], last[1]) for first, last in pairs)
        return Found(end.end, spans) if spans else None

    def _offset(self, at: int) -> tuple[int, Span] | None:
        """`Two days before`, `the week after`: (the word after it, days before and after)."""
        forms = self._forms
        after = at + (forms.word(at) == "the")
        number, unit = forms.count(after)
        if unit:
            middle, slack = number * _LONG[unit], _LONG[unit] // 2 if unit != "day" else 0
            near, far = middle - slack, middle + slack
            after += 2
        elif after > at and (forms.word(after) in _LONG or forms.word(after) in WEEKDAYS):
            near, far = 1, _LONG.get(forms.word(after), 7)
            after += 1
        else:
            return None
        if forms.word(after) == "before":
            return after + 1, (-far, -near)
        return (after + 1, (near, far)) if forms.word(after) == "after" else None

    def _counted(self, at: int) -> Found | None:
        """Days counted from a date: `two days before 4 May`, `the Sunday after 4 May`."""
        offset = self._offset(at)
        date = self._forms.date(offset[0]) if offset else None
        if not offset or not date:
            return None
        near, far = offset[1]
        spans = tuple((first + near, last + far) for first, last in date.spans)
        weekday = WEEKDAYS.get(self._forms.word(at + 1))
        if weekday is not None:
            spans = tuple(
                (on, on)
                for first, last in spans
                for on in range(first, min(last, first + 6) + 1)
                if (on - 1) % 7 == weekday
            )
        return date._replace(spans=spans, is_weak=False, kept=0)

    def _anchored(self, at: int) -> int:
        """Note days counted from what is no date; the first word after it, 0 where there is none.

        Its words stay: only a memory can say when it was.
        """
        offset = self._offset(at)
        if not offset:
            return 0
        end = offset[0]
        while end < len(self._words) and end - offset[0] < _ANCHOR_WORDS_MAX:
            if self._words[end].folded in _ENDS:
                break
            end += 1
        if end == offset[0]:
            return 0
        text = self._query[self._words[offset[0]].start : self._words[end - 1].end]
        self._anchors.append(Anchor(text, *offset[1]))
        return end
