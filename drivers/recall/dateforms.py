"""The forms in which people write a date, one method each.

Called by dates.py, which knows what stands around a date. A method is given the index of a word
and says which days the words from there on mean, or None. It looks at a few words at most, so a
query of dates alone is read in time proportional to its length.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from memosd.drivers.recall import days
from memosd.drivers.recall.days import SEASONS, Calendar, Span
from memosd.drivers.recall.words import APOSTROPHES, Word

__all__ = ["DASHES", "MONTHS", "STARTS", "WEEKDAYS", "Forms", "Found"]

_MONTH_NAMES: Final = (
    "january february march april may june july august september october november december"
)
MONTHS: Final = {
    form: number
    for number, name in enumerate(_MONTH_NAMES.split(), 1)
    for form in (name, name[:3], "sept" if name[:4] == "sept" else name)
}
WEEKDAYS: Final = {
    name: number
    for number, name in enumerate(
        ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    )
}
_NUMBER_WORDS: Final = "one two three four five six seven eight nine ten eleven twelve"
_NUMBERS: Final = {name: number for number, name in enumerate(_NUMBER_WORDS.split(), 1)} | {
    "a": 1,
    "an": 1,
}
_ORDINALS: Final = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}
_UNITS: Final = {
    form: unit for unit in ("day", "week", "month", "year") for form in (unit, f"{unit}s")
}
_FEASTS: Final = {
    ("christmas", "eve"): (12, 24),
    ("christmas", "day"): (12, 25),
    ("christmas",): (12, 25),
    ("halloween",): (10, 31),
    ("valentine", "'", "s", "day"): (2, 14),
    ("new", "year", "'", "s", "eve"): (12, 31),
    ("new", "year", "'", "s", "day"): (1, 1),
}
_NEAR: Final = {
    ("today",): 0,
    ("tonight",): 0,
    ("this", "morning"): 0,
    ("this", "afternoon"): 0,
    ("this", "evening"): 0,
    ("last", "night"): -1,
    ("yesterday",): -1,
    ("tomorrow",): 1,
    ("day", "before", "yesterday"): -2,
    ("day", "after", "tomorrow"): 2,
}
"""In days from now."""

_AWAY: Final = {"last": -1, "past": -1, "previous": -1, "this": 0, "next": 1, "coming": 1}
_PARTS: Final = {"early": 0, "mid": 1, "late": 2}
_PARTS_OF: Final = {"beginning": 0, "start": 0, "middle": 1, "end": 2}
_ALSO_WORDS: Final = {"may", "march", "mar", "jan", "dec", "fall", "spring"}
_SURELY: Final = {"in", "during", "since", "last", "next", "until", "till", "-", *_PARTS}
"""After these even `may` is a month."""

DASHES: Final = ("-", "\u2013")
_NUMERIC: Final = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?!\d)")
_DAY: Final = re.compile(r"(\d{1,2})(st|nd|rd|th)?")


STARTS: Final = frozenset(("the", "today", "tonight", "yesterday", "tomorrow", "day")).union(
    MONTHS, SEASONS, _NUMBERS, _ORDINALS, _AWAY, _PARTS, _PARTS_OF, (names[0] for names in _FEASTS)
)
"""The words, beside numbers, that a date can begin with."""


class Found(NamedTuple):
    """A date."""

    end: int
    """The first word after it."""
    spans: tuple[Span, ...]
    """One; without a year, one for each that it may be; none for a day that never was."""
    is_weak: bool = False
    """A date only where a preposition says so: `May`, `2023`."""
    is_relative: bool = False
    """Counted from now."""
    kept: Span = (0, 0)
    """Those of its words that are more than a date, and stay: `Christmas`; first and behind."""


def _found(end: int, spans: Iterable[Span | None], kept: Span = (0, 0)) -> Found:
    return Found(end, tuple(span for span in spans if span), kept=kept)


class Forms:
    """The dates in the words of one query."""

    def __init__(
        self, query: str, words: Sequence[Word], calendar: Calendar, names: Collection[str]
    ) -> None:
        self._query = query
        self._words = words
        self._calendar = calendar
        self._names = names

    def word(self, at: int) -> str:
        """Folded; empty where there is none."""
        return self._words[at].folded if 0 <= at < len(self._words) else ""

    def date(self, at: int) -> Found | None:
        """The date that begins with this word."""
        if self.word(at) == "the":
            at += 1
        word = self.word(at)
        if not word:
            return None
        if word[0].isdecimal():
            return self._numeric(at) or self._day_first(at) or self._year(at) or self._ago(at)
        if word in _PARTS or word in _PARTS_OF:
            return self._part(at)
        return self._named(at) or self._slice(at) or self._from_now(at)

    def _named(self, at: int) -> Found | None:
        return self._month_first(at) or self._season(at) or self._feast(at)

    def _numeric(self, at: int) -> Found | None:
        """2023-05-04, 13/05/2023, 05/13/2023; 04/05/2023 is either, and 04.05.2023 the fourth."""
        found = _NUMERIC.match(self.word(at))
        if not found:
            return None
        first, second, third = int(found[1]), int(found[3]), int(found[4])
        if first > 31:
            return _found(at + 1, [days.day(first, second, third)])
        readings = {days.day(third, second, first)}
        if found[2] != ".":
            readings.add(days.day(third, first, second))
        readings.discard(None)
        return _found(at + 1, readings if len(readings) == 1 else ())

    def day_number(self, at: int) -> int:
        """4 of `4` or `4th`; 0 where there is none."""
        found = _DAY.fullmatch(self.word(at))
        return int(found[1]) if found else 0

    def _day_numbers(self, at: int, joints: Collection[str]) -> tuple[int, int, int]:
        """(the word after them, first, last) of `4` or `4-6`; first is 0 where there are none."""
        first, last = self.day_number(at), self.day_number(at + 2)
        if last > first > 0 and self.word(at + 1) in joints:
            return at + 3, first, last
        return at + 1, first, first

    def _year_number(self, at: int) -> int:
        word = self.word(at)
        return int(word) if len(word) == 4 and word.isdecimal() else 0

    def _with_year(self, at: int) -> tuple[int, Sequence[int]]:
        """(the first word after a year that may follow, the years that are meant)."""
        after = at + (self.word(at) in (",", "of", "in"))
        number = self._year_number(after)
        return (after + 1, (number,)) if number in days.YEARS else (at, self._calendar.years)

    def _after_month(self, at: int) -> int:
        """Behind the month's name and the dot of its short form."""
        return at + 2 if self.word(at + 1) == "." and len(self.word(at)) < 5 else at + 1

    def _days_of(self, years: Sequence[int], in_month: int, numbers: Span) -> list[Span | None]:
        firsts = [days.day(year, in_month, numbers[0]) for year in years]
        lasts = [days.day(year, in_month, numbers[1]) for year in years]
        return [
            (first[0], last[1]) if first and last else None
            for first, last in zip(firsts, lasts, strict=True)
        ]

    def _day_first(self, at: int) -> Found | None:
        """4 May, 4th of May 2023, 4-6 May."""
        after, first, last = self._day_numbers(at, (*DASHES, "to", "and"))
        is_plain = self.word(after) != "of" and self.word(at).isdecimal()
        after += self.word(after) == "of"
        name = self.word(after)
        if not first or name not in MONTHS:
            return None
        end, years = self._with_year(self._after_month(after))
        if is_plain and years is self._calendar.years and self._is_word(after):
            return None  # `section 4 may apply`
        return _found(end, self._days_of(years, MONTHS[name], (first, last)))

    def _month_first(self, at: int) -> Found | None:
        """May 4th, May 4-6, 2023; May 2023, and May alone, which is weak."""
        name = self.word(at)
        if name not in MONTHS:
            return None
        after = self._after_month(at)
        at_day = after + (self.word(after) == "the")
        at_year, first, last = self._day_numbers(at_day, (*DASHES, "to"))
        end, years = self._with_year(at_year)
        is_plain = years is self._calendar.years and self.word(at_year - 1).isdecimal()
        if first and not (is_plain and self._is_word(at)):
            return _found(end, self._days_of(years, MONTHS[name], (first, last)))
        end, years = self._with_year(after)
        if years is not self._calendar.years:
            return _found(end, [days.month(year, MONTHS[name]) for year in years])
        is_name = self._is_name(at)
        if is_name and self.word(at + 1) in APOSTROPHES:
            return None
        if not self._is_sure(at) and (self._is_word(at) or is_name):
            return None
        spans = [days.month(year, MONTHS[name]) for year in years]
        return _found(at + 1, spans)._replace(is_weak=True)

    def _typed(self, at: int) -> str:
        return self._query[self._words[at].start : self._words[at].end]

    def _is_sure(self, at: int) -> bool:
        """Does what stands before it make it a month? `The last march` need not be one."""
        before = self.word(at - 1)
        return before in _SURELY and not (before in _AWAY and self.word(at - 2) == "the")

    def _is_word(self, at: int) -> bool:
        """Is this month written like the word that it is as well?"""
        return self.word(at) in _ALSO_WORDS and not self._typed(at).istitle()

    def _is_name(self, at: int) -> bool:
        """Is this month, or season, somebody's name as well?"""
        return self._typed(at) in self._names or self.word(at) in self._names

    def _season(self, at: int) -> Found | None:
        """Summer 2023, and summer alone, which is weak. A year has two winters."""
        name = self.word(at)
        if name not in SEASONS:
            return None
        end, years = self._with_year(at + 1)
        begun = {begins for year in years for begins in (year, year - (name == "winter"))}
        spans = [days.season(year, name) for year in sorted(begun)]
        if years is not self._calendar.years:
            return _found(end, spans)
        before = at - (self.word(at - 1) == "the")
        is_sure = self._is_sure(before) or self.word(before - 1) == "this"
        if (name in _ALSO_WORDS or self._is_name(at)) and not is_sure:
            return None  # `after the fall from the ladder`
        return _found(end, spans)._replace(is_weak=True)

    def _feast(self, at: int) -> Found | None:
        """Christmas 2022. What feast it was can be said in a memory, so its words stay."""
        for names, (in_month, number) in _FEASTS.items():
            if self._are(at, names):
                end, years = self._with_year(at + len(names))
                spans = [days.day(year, in_month, number) for year in years]
                found = _found(end, spans, kept=(at, at + len(names)))
                return found._replace(is_weak=years is self._calendar.years)
        return None

    def _are(self, at: int, names: Sequence[str]) -> bool:
        return self.word(at) == names[0] and all(
            self.word(at + i) in (APOSTROPHES if name == "'" else (name,))
            for i, name in enumerate(names)
        )

    def _year(self, at: int) -> Found | None:
        span = days.year(self._year_number(at))
        return Found(at + 1, (span,), is_weak=True) if span else None

    def _part(self, at: int) -> Found | None:
        """Early May, the end of 2023: a third of it."""
        word = self.word(at)
        if word in _PARTS:
            after = at + 1 + (self.word(at + 1) == "-")
        else:
            after = at + 2 if self.word(at + 1) == "of" else len(self._words)
        whole = self._long(after)
        which = _PARTS.get(word, _PARTS_OF.get(word, 0))
        return whole and whole._replace(
            spans=tuple(days.slice_of(span, which, 3) for span in whole.spans), is_weak=False
        )

    def _long(self, at: int) -> Found | None:
        """A month, a season or a year, in any form."""
        at += self.word(at) == "the"
        found = self._named(at) or self._year(at) or self._away(at)
        is_long = found and not any(found.kept) and all(last > first for first, last in found.spans)
        return found if is_long else None

    def _slice(self, at: int) -> Found | None:
        """The first half, the second week or the last quarter of a month, a season or a year."""
        which, name = _ORDINALS.get(self.word(at)), self.word(at + 1)
        if which is None or name not in ("half", "quarter", "week") or self.word(at + 2) != "of":
            return None
        whole = self._long(at + 3)
        if not whole:
            return None
        if name == "week":
            spans = [days.week_of(span, which) for span in whole.spans]
        else:
            count = 2 if name == "half" else 4
            spans = [days.slice_of(span, which % count, count) for span in whole.spans]
        return whole._replace(spans=tuple(spans), is_weak=False)

    def count(self, at: int) -> tuple[int, str]:
        """(N, the unit) of `N days`; (0, "") where it does not say so."""
        word, unit = self.word(at), _UNITS.get(self.word(at + 1), "")
        number = _NUMBERS.get(word, 0)
        if not number and word.isdecimal() and len(word) < 4:
            number = int(word)
        return (number, unit) if number and unit else (0, "")

    def _from_now(self, at: int) -> Found | None:
        """Counted from now: today, three days ago, last May."""
        now = self._calendar.now
        for names, offset in _NEAR.items():
            if self._are(at, names):
                day = now + offset
                return Found(at + len(names), ((day, day),), is_relative=True)
        return self._ago(at) or self._away(at)

    def _ago(self, at: int) -> Found | None:
        """Three days ago: that day, the week around it, the month or the year."""
        number, unit = self.count(at)
        if not unit or self.word(at + 2) != "ago":
            return None
        found = _found(at + 3, [days.units_away(self._calendar.now, unit, -number)])
        return found._replace(is_relative=True)

    def _away(self, at: int) -> Found | None:
        """Last week, this May, next Monday, the past three days."""
        offset = _AWAY.get(self.word(at))
        if offset is None:
            return None
        now, name = self._calendar.now, self.word(at + 1)
        number, unit = self.count(at + 1)
        if unit and offset < 0:
            found = _found(at + 3, [(now - number * days.LENGTHS[unit], now)])
        elif name in WEEKDAYS:
            found = _found(at + 2, [days.weekday_away(now, WEEKDAYS[name], offset)])
        elif name in ("week", "weekend", "month", "year"):
            found = _found(at + 2, [days.period_away(now, name, offset)])
        else:
            named = self._named(at + 1)
            if not named or not named.is_weak:
                return None
            span = days.nearest(named.spans, now, offset)
            found = _found(named.end, [span], named.kept)
        return found._replace(is_relative=True)
