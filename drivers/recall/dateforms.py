"""The forms in which people write a date, one method each.

Called by dates.py alone, which knows what stands around a date. A method is given the index of a
word and says which days the words from there on mean, or None. It looks at a few words at most and
calls no other form twice, so a query of dates alone is read in time proportional to its length.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from memosd.drivers.recall import days
from memosd.drivers.recall.days import SEASONS, Calendar, Span
from memosd.drivers.recall.words import Word

__all__ = ["MONTHS", "NUMBERS", "UNITS", "WEEKDAYS", "Forms", "Found"]

_MONTH_NAMES: Final = (
    "january february march april may june july august september october november december"
).split()
MONTHS: Final = (
    {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
    | {name[:3]: number for number, name in enumerate(_MONTH_NAMES, 1)}
    | {"sept": 9}
)
WEEKDAYS: Final = {
    name: number
    for number, name in enumerate(
        "monday tuesday wednesday thursday friday saturday sunday".split()
    )
}
NUMBERS: Final = {
    name: number
    for number, name in enumerate(
        "one two three four five six seven eight nine ten eleven twelve".split(), 1
    )
} | {"a": 1, "an": 1}
UNITS: Final = {
    form: unit for unit in ("day", "week", "month", "year") for form in (unit, f"{unit}s")
}
"""`days` -> `day`."""

_FEASTS: Final = {
    ("christmas", "eve"): (12, 24),
    ("christmas", "day"): (12, 25),
    ("christmas",): (12, 25),
    ("halloween",): (10, 31),
    ("valentine", "'", "s", "day"): (2, 14),
    ("new", "year", "'", "s", "eve"): (12, 31),
    ("new", "year", "'", "s", "day"): (1, 1),
}
_PARTS: Final = {"early": 0, "mid": 1, "middle": 1, "late": 2, "beginning": 0, "start": 0, "end": 2}
_BARE_PARTS: Final = {"early", "mid", "late"}
"""These stand right before a month; the others take an `of`."""

_ALSO_WORDS: Final = {"may", "march", "mar", "jan", "dec"}
_DAY: Final = re.compile(r"(\d{1,2})(st|nd|rd|th)?")


class Found(NamedTuple):
    """A date."""

    end: int
    """The first word after it."""
    spans: tuple[Span, ...]
    """One; without a year, one for each that it may be."""
    is_weak: bool = False
    """A date only where a preposition says so: `May`, `2023`."""
    kept: int = 0
    """So many of its words are more than a date, and stay: `Christmas`."""


class Forms:
    """The dates in the words of one query."""

    def __init__(self, query: str, words: Sequence[Word], calendar: Calendar) -> None:
        self._query = query
        self._words = words
        self._calendar = calendar

    def word(self, at: int) -> str:
        """Folded; empty where there is none."""
        return self._words[at].folded if 0 <= at < len(self._words) else ""

    def is_capital(self, at: int) -> bool:
        """Written like a name?"""
        word = self._words[at]
        return self._query[word.start : word.end].istitle()

    def date(self, at: int) -> Found | None:
        """The date that begins with this word."""
        if self.word(at) == "the":
            at += 1
        word = self.word(at)
        if not word:
            return None
        if word[0].isdecimal():
            return self._numeric(at) or self._day_first(at) or self._year(at) or self._ago(at)
        if word in _PARTS:
            return self._part(at)
        if word in ("last", "this", "next", "past", "previous", "coming"):
            return self._relative(at)
        return self._named(at) or self._near(at) or self._ago(at)

    def _named(self, at: int) -> Found | None:
        return self._month_first(at) or self._season(at) or self._feast(at)

    def _dated(self, end: int, spans: Iterable[Span | None], kept: int = 0) -> Found | None:
        known = tuple(span for span in spans if span)
        return Found(end, known, kept=kept) if known else None

    def _numeric(self, at: int) -> Found | None:
        """2023-05-04, 13/05/2023, 05/13/2023; 04/05/2023 is either, and 04.05.2023 the fourth."""
        if not self._words[at].is_numeric_date:
            return None
        word = self.word(at).partition("t")[0]
        first, second, third = (int(part) for part in re.split(r"[-/.]", word))
        if first > 31:
            return self._dated(at + 1, [days.day(first, second, third)])
        readings = {days.day(third, second, first)}
        if "." not in word:
            readings.add(days.day(third, first, second))
        readings.discard(None)
        return self._dated(at + 1, readings) if len(readings) == 1 else None

    def _day_number(self, at: int) -> int:
        found = _DAY.fullmatch(self.word(at)) if self.word(at)[:1].isdecimal() else None
        return int(found[1]) if found else 0

    def _year_number(self, at: int) -> int:
        word = self.word(at)
        return int(word) if len(word) == 4 and word.isascii() and word.isdecimal() else 0

    def _with_year(self, at: int) -> tuple[int, Iterable[int]]:
        """(the first word after a year that may follow, the years that are meant)."""
        for skipped in (at, at + 1):
            if self._year_number(skipped) in days.YEARS and (
                skipped == at or self.word(at) in (",", "of", "in")
            ):
                return skipped + 1, (self._year_number(skipped),)
        return at, self._calendar.years

    def _after_month(self, at: int) -> int:
        """Behind the month's name and the dot of its short form."""
        return at + 2 if self.word(at + 1) == "." and len(self.word(at)) < 5 else at + 1

    def _day_first(self, at: int) -> Found | None:
        """4 May, 4th of May 2023."""
        number = self._day_number(at)
        after = at + 2 if self.word(at + 1) == "of" else at + 1
        name = self.word(after)
        if not number or name not in MONTHS:
            return None
        end, years = self._with_year(self._after_month(after))
        is_plain = after == at + 1 and self.word(at).isdecimal() and years is self._calendar.years
        if is_plain and name in _ALSO_WORDS and not self.is_capital(after):
            return None  # `section 4 may apply`
        return self._dated(end, [days.day(year, MONTHS[name], number) for year in years])

    def _month_first(self, at: int) -> Found | None:
        """May 4th, May 4, 2023; May 2023, and May alone, which is weak."""
        name = self.word(at)
        if name not in MONTHS:
            return None
        after = self._after_month(at)
        at_day = after + 1 if self.word(after) == "the" else after
        number = self._day_number(at_day)
        if number and (name not in _ALSO_WORDS or self.is_capital(at)):
            end, years = self._with_year(at_day + 1)
            return self._dated(end, [days.day(year, MONTHS[name], number) for year in years])
        end, years = self._with_year(after)
        found = self._dated(end, [days.month(year, MONTHS[name]) for year in years])
        if years is not self._calendar.years or not found:
            return found
        # The dot may end the sentence, and is no loss.
        return self._weak(found._replace(end=at + 1), at, _ALSO_WORDS)

    def _weak(self, found: Found, at: int, also_words: Iterable[str]) -> Found | None:
        """Alone, a word that is a month as well is one after `in` and the like, or as a name."""
        before = self.word(at - 1)
        sure = before in ("in", "during", "since", "last", "next", "until", "till", *_BARE_PARTS)
        if self.word(at) in also_words and not sure and not self.is_capital(at):
            return None
        return found._replace(is_weak=True)

    def _season(self, at: int) -> Found | None:
        """Summer 2023, and summer alone, which is weak. A winter has two years."""
        name = self.word(at)
        if name not in SEASONS:
            return None
        end, years = self._with_year(at + 1)
        begun = {begins for year in years for begins in (year, year - (name == "winter"))}
        found = self._dated(end, [days.season(year, name) for year in sorted(begun)])
        if found and years is self._calendar.years:
            return found._replace(is_weak=True)
        return found

    def _feast(self, at: int) -> Found | None:
        for names, (in_month, number) in _FEASTS.items():
            if self.word(at) != names[0]:
                continue
            if all(self.word(at + i) in (name, "’") for i, name in enumerate(names)):
                end, years = self._with_year(at + len(names))
                spans = [days.day(year, in_month, number) for year in years]
                found = self._dated(end, spans, kept=len(names))
                is_weak = years is self._calendar.years
                return found._replace(is_weak=is_weak) if found else None
        return None

    def _year(self, at: int) -> Found | None:
        span = days.year(self._year_number(at))
        return Found(at + 1, (span,), is_weak=True) if span else None

    def _part(self, at: int) -> Found | None:
        """Early May, the end of 2023: a third of it."""
        after = at + 1
        if self.word(at) in _BARE_PARTS:
            after += self.word(after) == "-"
        elif self.word(after) != "of":
            return None
        else:
            after += 1
        after += self.word(after) == "the"
        if self.word(after) in ("last", "this", "next"):
            whole = self._relative(after)
        else:
            whole = self._named(after) or self._year(after)
        if not whole or whole.kept:
            return None
        which = _PARTS[self.word(at)]
        long = [days.third(span, which) for span in whole.spans if span[0] < span[1]]
        return self._dated(whole.end, long)

    def _near(self, at: int) -> Found | None:
        """Today, and the days around it."""
        now = self._calendar.now
        for names, offset in (
            (("today",), 0),
            (("tonight",), 0),
            (("yesterday",), -1),
            (("tomorrow",), 1),
            (("day", "before", "yesterday"), -2),
            (("day", "after", "tomorrow"), 2),
        ):
            if all(self.word(at + i) == name for i, name in enumerate(names)):
                return Found(at + len(names), ((now + offset, now + offset),))
        return None

    def count(self, at: int) -> tuple[int, str]:
        """(N, the unit) of `N days`; (0, "") where it does not say so."""
        word, unit = self.word(at), UNITS.get(self.word(at + 1), "")
        number = NUMBERS.get(word, 0)
        if not number and word.isascii() and word.isdecimal() and len(word) < 4:
            number = int(word)
        return (number, unit) if number and unit else (0, "")

    def _ago(self, at: int) -> Found | None:
        """Three days ago: that day, the days around it, the month or the year."""
        number, unit = self.count(at)
        if not unit or self.word(at + 2) != "ago":
            return None
        now = self._calendar.now
        if unit == "day":
            span: Span | None = (now - number, now - number)
        elif unit == "week":
            span = (now - 7 * number - 3, now - 7 * number + 3)
        elif unit == "month":
            span = days.months_from(now, -number)
        else:
            span = days.year(days.year_of(now) - number)
        return self._dated(at + 3, [span])

    def _relative(self, at: int) -> Found | None:
        """Last week, this May, next Monday, the past three days."""
        word = {"past": "last", "previous": "last", "coming": "next"}.get(
            self.word(at), self.word(at)
        )
        offset = {"last": -1, "this": 0, "next": 1}[word]
        name = self.word(at + 1)
        if name in UNITS or name in WEEKDAYS or name in ("weekend", "night"):
            return self._dated(at + 2, [self._unit_away(name, offset)])
        number, unit = self.count(at + 1)
        if unit and offset < 0:
            long = number * {"day": 1, "week": 7, "month": 30, "year": 365}[unit]
            return self._dated(at + 3, [(self._calendar.now - long, self._calendar.now)])
        found = self._named(at + 1)
        if not found or not found.is_weak:
            return None
        return self._dated(found.end, [self._named_away(found.spans, offset)], found.kept)

    def _unit_away(self, name: str, offset: int) -> Span | None:
        now = self._calendar.now
        monday = days.week(now)[0]
        if name in WEEKDAYS:
            on = monday + WEEKDAYS[name]
            if offset:
                # The nearest one that is not today.
                on += 7 * offset * ((on - now) * offset <= 0)
            return on, on
        if name == "weekend":
            saturday = monday + 5 + 7 * offset
            return saturday, saturday + 1
        if name == "night":
            return (now + offset, now + offset) if offset <= 0 else None
        if name == "week":
            return days.week(now, offset)
        if name == "month":
            return days.months_from(now, offset)
        return days.year(days.year_of(now) + offset) if name == "year" else None

    def _named_away(self, spans: Sequence[Span], offset: int) -> Span | None:
        """Of the same month, season or feast in several years, the one meant."""
        now = self._calendar.now
        if offset < 0:
            return max((span for span in spans if span[1] < now), default=None)
        if offset > 0:
            return min((span for span in spans if span[0] > now), default=None)
        return max((s for s in spans if days.year_of(s[0]) == days.year_of(now)), default=None)
