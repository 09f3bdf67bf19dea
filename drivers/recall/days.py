"""Days, and the spans of days that a calendar has names for.

Pure functions, called by the reading of dates. A day is a `date.toordinal`, a span its first and
last day, both included, in UTC. Invariant: every span that comes from here has first <= last, and
`nanoseconds` of any span fit into 64 bits.
"""

from calendar import monthrange
from collections.abc import Iterable
from datetime import date
from typing import Final, NamedTuple

__all__ = [
    "LENGTHS",
    "SEASONS",
    "TOLD_WITHIN_DAYS",
    "YEARS",
    "Calendar",
    "Span",
    "Timeline",
    "day",
    "month",
    "nanoseconds",
    "nearest",
    "period_away",
    "season",
    "slice_of",
    "units_away",
    "week_of",
    "weekday_away",
    "year",
]

Span = tuple[int, int]

YEARS: Final = range(1678, 2262)
"""What nanoseconds since 1970 in 64 bits can say."""

LENGTHS: Final = {"day": 1, "week": 7, "month": 30, "year": 365}
"""In days, where people count in them."""

SEASONS: Final = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
"""The first month of each, as meteorologists north of the equator have it."""

TOLD_WITHIN_DAYS: Final = 7
"""How much later than it happened a thing is told, at most (docs/design/0005, section 2)."""

_YEARS_MAX: Final = 32
"""Of a longer timeline, how many of its last years a date without a year may mean."""

_YEAR_MAX: Final = 366
"""Days."""

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
        last_year = _year_of(self.last)
        self.years = range(max(_year_of(self.first), last_year - _YEARS_MAX + 1), last_year + 1)

    def is_told(self, span: Span) -> bool:
        """Can anything be found that happened in this span, or was told soon after it?"""
        return span[0] <= self.last and span[1] + TOLD_WITHIN_DAYS >= self.first

    def latest(self, spans: Iterable[Span]) -> Span:
        """Of one or more, the last that has begun by now; else the first to come."""
        ordered = sorted(spans)
        begun = [span for span in ordered if span[0] <= self.now]
        return begun[-1] if begun else ordered[0]


def _day_of(ns: int) -> int:
    return min(max(ns // _DAY_NS + _EPOCH, _FIRST), _LAST)


def _year_of(of_day: int) -> int:
    return date.fromordinal(of_day).year


def nanoseconds(span: Span) -> tuple[int, int]:
    """From the first nanosecond of the first day to the last one of the last day."""
    first, last = (max(_FIRST, min(end, _LAST)) - _EPOCH for end in span)
    return first * _DAY_NS, (last + 1) * _DAY_NS - 1


def day(in_year: int, in_month: int, number: int) -> Span | None:
    whole = month(in_year, in_month)
    if not whole or not 1 <= number <= whole[1] - whole[0] + 1:
        return None
    return whole[0] + number - 1, whole[0] + number - 1


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
    last_month = SEASONS[name] + 2
    first = month(in_year, SEASONS[name])
    last = month(in_year + (last_month > 12), (last_month - 1) % 12 + 1)
    return (first[0], last[1]) if first and last else None


def slice_of(span: Span, which: int, count: int) -> Span:
    """Of so many slices that a span is cut into, one; `which` counts from 0."""
    length = span[1] - span[0] + 1
    first = span[0] + length * which // count
    return first, max(first, span[0] + length * (which + 1) // count - 1)


def week_of(span: Span, which: int) -> Span:
    """Of a span's weeks from its first day on, one, within it; -1: its last seven days."""
    if which < 0:
        return max(span[0], span[1] - 6), span[1]
    first = min(span[0] + 7 * which, span[1])
    return first, min(first + 6, span[1])


def units_away(now: int, unit: str, number: int) -> Span | None:
    """So many days, weeks, months or years away: a day, the week around one, a month, a year."""
    if unit == "day":
        return now + number, now + number
    if unit == "week":
        return now + 7 * number - 3, now + 7 * number + 3
    return period_away(now, unit, number)


def period_away(now: int, name: str, number: int) -> Span | None:
    """The week (from Monday on), weekend, month or year so many away from the one of today."""
    monday = now - (now - 1) % 7 + 7 * number
    if name == "week":
        return monday, monday + 6
    if name == "weekend":
        return monday + 5, monday + 6
    if name == "month":
        start = date.fromordinal(now)
        count = start.year * 12 + start.month - 1 + number
        return month(count // 12, count % 12 + 1)
    return year(_year_of(now) + number)


def weekday_away(now: int, weekday: int, direction: int) -> Span:
    """The nearest such day before (-1) or after (1) today, or this week's (0); Monday is 0."""
    on = now - (now - 1) % 7 + weekday
    if direction and (on - now) * direction <= 0:
        on += 7 * direction
    return on, on


def nearest(spans: Iterable[Span], now: int, direction: int) -> Span | None:
    """Of a month's or a season's years, the last one (-1), the next one (1), or this year's (0).

    None where that one is not among `spans`.
    """
    if direction < 0:
        return max((span for span in spans if now - _YEAR_MAX <= span[1] < now), default=None)
    if direction > 0:
        return min((span for span in spans if now < span[0] <= now + _YEAR_MAX), default=None)
    return max((span for span in spans if _year_of(span[1]) == _year_of(now)), default=None)
