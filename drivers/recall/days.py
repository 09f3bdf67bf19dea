"""Days, and the spans of days that a calendar has names for.

Pure functions, called by the reading of dates. A day is a `date.toordinal`, a span its first and
last day, both included, in UTC. Invariant: every span that comes from here has first <= last and
lies within YEARS, so that its nanoseconds fit into 64 bits.
"""

from calendar import monthrange
from collections.abc import Iterable
from datetime import date
from typing import Final, NamedTuple

__all__ = [
    "SEASONS",
    "TOLD_WITHIN_DAYS",
    "YEARS",
    "Calendar",
    "Span",
    "Timeline",
    "day",
    "month",
    "months_from",
    "nanoseconds",
    "season",
    "third",
    "week",
    "year",
]

Span = tuple[int, int]

YEARS: Final = range(1678, 2262)
"""What nanoseconds since 1970 in 64 bits can say."""

SEASONS: Final = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
"""The first month of each, as meteorologists north of the equator have it."""

TOLD_WITHIN_DAYS: Final = 7
"""How much later than it happened a thing is told, at most."""

_YEARS_MAX: Final = 32
"""Of a longer timeline, how many of its last years a date without a year may mean."""

_DAY_NS: Final = 86_400_000_000_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
_FIRST: Final = date(YEARS[0], 1, 1).toordinal()
_LAST: Final = date(YEARS[-1], 12, 31).toordinal()


class Timeline(NamedTuple):
    """When what can be found happened, in ns since the epoch."""

    first_ns: int = 0
    last_ns: int = 0
    """With `first_ns` 0 as well: nothing has an event time."""
    now_ns: int = 0
    """From when `yesterday` counts; 0: from `last_ns`."""


class Calendar:
    """A timeline in days."""

    def __init__(self, timeline: Timeline) -> None:
        ends = sorted((_day_of(timeline.first_ns), _day_of(timeline.last_ns)))
        self.first, self.last = ends
        self.now = _day_of(timeline.now_ns or timeline.last_ns)
        last_year = date.fromordinal(self.last).year
        first_year = max(date.fromordinal(self.first).year, last_year - _YEARS_MAX + 1)
        self.years = range(first_year, last_year + 1)

    def is_told(self, span: Span) -> bool:
        """Can anything be found that happened, or was told, in this span?"""
        return span[0] <= self.last and span[1] + TOLD_WITHIN_DAYS >= self.first

    def latest(self, spans: Iterable[Span]) -> Span | None:
        """The last that has begun by now; the first to come where none has."""
        ordered = sorted(spans)
        begun = [span for span in ordered if span[0] <= self.now]
        return begun[-1] if begun else next(iter(ordered), None)


def _day_of(ns: int) -> int:
    return min(max(ns // _DAY_NS + _EPOCH, _FIRST), _LAST)


def nanoseconds(span: Span) -> tuple[int, int]:
    """From the first nanosecond of the first day to the last one of the last day."""
    first, last = (max(_FIRST, min(end, _LAST)) - _EPOCH for end in span)
    return first * _DAY_NS, (last + 1) * _DAY_NS - 1


def day(in_year: int, in_month: int, number: int) -> Span | None:
    if in_year not in YEARS or not 1 <= in_month <= 12:
        return None
    if not 1 <= number <= monthrange(in_year, in_month)[1]:
        return None
    ordinal = date(in_year, in_month, number).toordinal()
    return ordinal, ordinal


def month(in_year: int, number: int) -> Span | None:
    if in_year not in YEARS or not 1 <= number <= 12:
        return None
    first = date(in_year, number, 1).toordinal()
    return first, first + monthrange(in_year, number)[1] - 1


def year(number: int) -> Span | None:
    if number not in YEARS:
        return None
    return date(number, 1, 1).toordinal(), date(number, 12, 31).toordinal()


def season(in_year: int, name: str) -> Span | None:
    """Winter is the one that begins in that year."""
    first, last_month = month(in_year, SEASONS[name]), SEASONS[name] + 2
    last = month(in_year + (last_month > 12), (last_month - 1) % 12 + 1)
    return (first[0], last[1]) if first and last else None


def week(of_day: int, offset: int = 0) -> Span:
    """The week, from Monday on, that the day is in, or one so many weeks away from it."""
    first = of_day - (of_day - 1) % 7 + 7 * offset
    return first, first + 6


def months_from(of_day: int, offset: int) -> Span | None:
    """The month so many months away from the one that the day is in."""
    start = date.fromordinal(of_day)
    count = start.year * 12 + start.month - 1 + offset
    return month(count // 12, count % 12 + 1)


def third(span: Span, which: int) -> Span:
    """The first (0), middle (1) or last (2) third of a span's days."""
    days = span[1] - span[0] + 1
    first = span[0] + days * which // 3
    return first, max(first, span[0] + days * (which + 1) // 3 - 1)


def year_of(of_day: int) -> int:
    return date.fromordinal(of_day).year
