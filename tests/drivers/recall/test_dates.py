"""Which days a query means."""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memosd.drivers.recall.days import YEARS, Timeline, nanoseconds
from memosd.drivers.recall.reading import Anchor, Reading, read

DAY_NS = 86_400_000_000_000


def ns(day: str, hour: int = 12) -> int:
    return int(datetime.fromisoformat(day).replace(hour=hour, tzinfo=UTC).timestamp()) * 10**9


TIMELINE = Timeline(ns("2022-03-10"), ns("2023-11-20"), ns("2023-11-15"))
"""Two years; now is a Wednesday."""


def days(reading: Reading) -> list[tuple[str, str]]:
    def iso(at_ns: int) -> str:
        return date.fromordinal(at_ns // DAY_NS + date(1970, 1, 1).toordinal()).isoformat()

    return [(iso(first), iso(last)) for first, last in reading.spans]


@pytest.mark.parametrize(
    "written",
    [
        "4 May 2023",
        "4 may 2023",
        "4th of May 2023",
        "4th May, 2023",
        "the 4th of May, 2023",
        "May 4 2023",
        "May 4th, 2023",
        "may 4, 2023",
        "May the 4th, 2023",
        "MAY 4, 2023",
        "2023-05-04",
        "2023/5/4",
        "2023-05-04T10:30:00Z",
        "04.05.2023",
    ],
)
def test_a_day_in_full(written: str) -> None:
    reading = read(f"What did she buy on {written}?", (), TIMELINE)
    assert days(reading) == [("2023-05-04", "2023-05-04")]
    assert reading.text == "What did she buy?"


@pytest.mark.parametrize(
    ("written", "spans"),
    [
        ("13/05/2023", [("2023-05-13", "2023-05-13")]),
        ("05/13/2023", [("2023-05-13", "2023-05-13")]),
        ("05/05/2023", [("2023-05-05", "2023-05-05")]),
        ("Sept. 4, 2022", [("2022-09-04", "2022-09-04")]),
        ("4 May", [("2022-05-04", "2022-05-04"), ("2023-05-04", "2023-05-04")]),
        ("4-6 May 2023", [("2023-05-04", "2023-05-06")]),
        ("May 4 to 6, 2023", [("2023-05-04", "2023-05-06")]),
        ("May 2023", [("2023-05-01", "2023-05-31")]),
        ("May of 2023", [("2023-05-01", "2023-05-31")]),
        ("in february 2023", [("2023-02-01", "2023-02-28")]),
        ("in May", [("2022-05-01", "2022-05-31"), ("2023-05-01", "2023-05-31")]),
        ("in may", [("2022-05-01", "2022-05-31"), ("2023-05-01", "2023-05-31")]),
        ("in 2023", [("2023-01-01", "2023-12-31")]),
        ("summer 2023", [("2023-06-01", "2023-08-31")]),
        ("in the fall", [("2022-09-01", "2022-11-30"), ("2023-09-01", "2023-11-30")]),
        ("over the summer", [("2022-06-01", "2022-08-31"), ("2023-06-01", "2023-08-31")]),
        ("the fall of 2022", [("2022-09-01", "2022-11-30")]),
        ("winter 2023", [("2022-12-01", "2023-02-28")]),  # the next one is behind the last memory
        ("early May 2023", [("2023-05-01", "2023-05-10")]),
        ("mid-May 2023", [("2023-05-11", "2023-05-20")]),
        ("late May 2023", [("2023-05-21", "2023-05-31")]),
        ("at the end of 2022", [("2022-09-01", "2022-12-31")]),
        ("the first half of May 2023", [("2023-05-01", "2023-05-15")]),
        ("in the second week of May 2023", [("2023-05-08", "2023-05-14")]),
        ("in the last week of May 2023", [("2023-05-25", "2023-05-31")]),
    ],
)
def test_absolute(written: str, spans: list[tuple[str, str]]) -> None:
    reading = read(f"What did she buy {written}?", (), TIMELINE)
    assert days(reading) == spans
    assert reading.text == "What did she buy?"


@pytest.mark.parametrize(
    ("written", "first", "last"),
    [
        ("today", "2023-11-15", "2023-11-15"),
        ("yesterday", "2023-11-14", "2023-11-14"),
        ("the day before yesterday", "2023-11-13", "2023-11-13"),
        ("tomorrow", "2023-11-16", "2023-11-16"),
        ("last night", "2023-11-14", "2023-11-14"),
        ("last week", "2023-11-06", "2023-11-12"),
        ("this week", "2023-11-13", "2023-11-19"),
        ("next week", "2023-11-20", "2023-11-26"),
        ("last weekend", "2023-11-11", "2023-11-12"),
        ("this weekend", "2023-11-18", "2023-11-19"),
        ("last month", "2023-10-01", "2023-10-31"),
        ("this month", "2023-11-01", "2023-11-30"),
        ("last year", "2022-01-01", "2022-12-31"),
        ("this year", "2023-01-01", "2023-12-31"),
        ("last Monday", "2023-11-13", "2023-11-13"),
        ("last Wednesday", "2023-11-08", "2023-11-08"),
        ("this wednesday", "2023-11-15", "2023-11-15"),
        ("last Friday", "2023-11-10", "2023-11-10"),
        ("next Friday", "2023-11-17", "2023-11-17"),
        ("last May", "2023-05-01", "2023-05-31"),
        ("last summer", "2023-06-01", "2023-08-31"),
        ("this spring", "2023-03-01", "2023-05-31"),
        ("last November", "2022-11-01", "2022-11-30"),
        ("this May", "2023-05-01", "2023-05-31"),
        ("early last May", "2023-05-01", "2023-05-10"),
        ("3 days ago", "2023-11-12", "2023-11-12"),
        ("a week ago", "2023-11-05", "2023-11-11"),
        ("two weeks ago", "2023-10-29", "2023-11-04"),
        ("twelve months ago", "2022-11-01", "2022-11-30"),
        ("one year ago", "2022-01-01", "2022-12-31"),
        ("in the past ten days", "2023-11-05", "2023-11-15"),
    ],
)
def test_relative(written: str, first: str, last: str) -> None:
    reading = read(f"What did she buy {written}?", (), TIMELINE)
    assert days(reading) == [(first, last)]
    assert reading.text == "What did she buy?"


@pytest.mark.parametrize(
    ("written", "first", "last"),
    [
        ("since May 2023", "2023-05-01", "2023-11-20"),
        ("since May", "2023-05-01", "2023-11-20"),
        ("since December", "2022-12-01", "2023-11-20"),
        ("since 2023", "2023-01-01", "2023-11-20"),
        ("since last week", "2023-11-06", "2023-11-20"),
        ("before 4 May 2023", "2022-03-10", "2023-05-03"),
        ("after 4 May 2023", "2023-05-05", "2023-11-20"),
        ("until May 2023", "2022-03-10", "2023-05-31"),
        ("between May and July 2023", "2023-05-01", "2023-07-31"),
        ("between 4 May 2022 and June", "2022-05-04", "2022-06-30"),
        ("between 4 and 6 May 2023", "2023-05-04", "2023-05-06"),
        ("between November 2022 and 4 May 2023", "2022-11-01", "2023-05-04"),
        ("from summer 2022 to 2023", "2022-06-01", "2023-12-31"),
        ("from May to 4 June 2023", "2023-05-01", "2023-06-04"),
        ("two days before 4 May 2023", "2023-05-02", "2023-05-02"),
        ("the day after 4 May 2023", "2023-05-05", "2023-05-05"),
        ("the week before 4 May 2023", "2023-04-27", "2023-05-03"),
        ("on the Sunday before 4 May 2023", "2023-04-30", "2023-04-30"),
        ("the Thursday before 4 May 2023", "2023-04-27", "2023-04-27"),
        ("the Sunday after May 2023", "2023-06-04", "2023-06-04"),
        ("the weekend before 8 May 2023", "2023-05-06", "2023-05-07"),
        ("the weekend before 7 May 2023", "2023-04-29", "2023-04-30"),
        ("the weekend after 6 May 2023", "2023-05-13", "2023-05-14"),
        ("last weekend before 8 May 2023", "2023-05-06", "2023-05-07"),
    ],
)
def test_around_a_date(written: str, first: str, last: str) -> None:
    reading = read(f"What did she buy {written}?", (), TIMELINE)
    assert days(reading) == [(first, last)]
    assert reading.text == "What did she buy?"


def test_a_span_without_years_is_one_of_each_year() -> None:
    assert days(read("What broke between April and 4 June?", (), TIMELINE)) == [
        ("2022-04-01", "2022-06-04"),
        ("2023-04-01", "2023-06-04"),
    ]


def test_dates_add_up() -> None:
    reading = read("Did it rain on 4 May 2023 or on 6 June 2023, in Rome?", (), TIMELINE)
    assert days(reading) == [("2023-05-04", "2023-05-04"), ("2023-06-06", "2023-06-06")]
    assert reading.text == "Did it rain or, in Rome?"


@pytest.mark.parametrize(
    "query",
    [
        "May I come in?",
        "this may be the last march of the penguins",
        "She may 5 times a day",
        "section 3 may apply",
        "a poem by may sarton",
        "in fallow fields",
        "a few days ago",
        "recently and lately",
        "what happened at 04/05/2023?",
        "on 31 February 2023",
        "on 2023-02-30 or 2023-13-01",
        "in the year 0 or 99999",
        "in 0000",
        "on May 45, 99999",
        "version 1.2.2023.4",
        "in 1500 words",
        "the end of the story",
        "plans for the summer",
        "the heat of summer",
        "after the fall from the ladder",
        "water from spring",
        "in fall-back mode",
        "last but not least",
        "the second week of school",
        "between us and them",
        "from A to B",
        "one day",
        "the day after that",
        "the week before last",
        "",
        "?!",
    ],
)
def test_no_date(query: str) -> None:
    reading = read(query, (), TIMELINE)
    assert reading == Reading(query)


@pytest.mark.parametrize(
    "query",
    [
        "What is planned for July 2025?",
        "What came after 20 November 2023 or before 10 March 2022?",
        "Who was king in 1815?",
        "a song of December 2021",
    ],
)
def test_when_nothing_can_have_happened_stays_words(query: str) -> None:
    assert read(query, (), TIMELINE) == Reading(query)


def test_told_within_the_week_after() -> None:
    assert days(read("on 4 March 2022, what?", (), TIMELINE)) == [("2022-03-04", "2022-03-04")]
    assert not read("on 2 March 2022, what?", (), TIMELINE).spans


def test_no_dates_where_nothing_has_an_event_time() -> None:
    query = "What did she buy yesterday, on 4 May 2023 or two days before the trip?"
    assert read(query, (), Timeline(0, 0, TIMELINE.now_ns)) == Reading(query)


def test_without_now_relative_dates_count_from_the_last_memory() -> None:
    timeline = TIMELINE._replace(now_ns=0)
    assert days(read("Who called yesterday?", (), timeline)) == [("2023-11-19", "2023-11-19")]


def test_last_may_is_not_any_may() -> None:
    query = "Who called last May?"
    assert read(query, (), TIMELINE._replace(now_ns=ns("2026-01-01"))) == Reading(query)


def test_beside_a_date_in_full_yesterday_is_not_the_day_before_today() -> None:
    reading = read("What did she finish last Friday on 23 January, 2023?", (), TIMELINE)
    assert days(reading) == [("2023-01-23", "2023-01-23")]
    assert reading.text == "What did she finish last Friday?"


def test_a_feast_is_more_than_its_date() -> None:
    reading = read("What did he get for Halloween 2022?", (), TIMELINE)
    assert days(reading) == [("2022-10-31", "2022-10-31")]
    assert reading.text == "What did he get Halloween?"
    reading = read("What did we eat on New Year\u2019s Eve?", (), TIMELINE)
    assert days(reading) == [("2022-12-31", "2022-12-31")]
    assert reading.text == "What did we eat New Year\u2019s Eve?"


def test_a_date_has_its_possessive() -> None:
    assert read("Who won yesterday's match?", (), TIMELINE).text == "Who won match?"


def test_a_month_that_is_somebody() -> None:
    query = "What do you think of May?"
    assert read(query, ("June",), TIMELINE).spans
    named = read(query, ("May",), TIMELINE)
    assert (named.spans, named.producers) == ((), ("May",))
    assert read("What lies in May's room?", ("may",), TIMELINE).producers == ("may",)
    both = read("What did May buy in May?", ("May",), TIMELINE)
    assert (len(both.spans), both.producers, both.text) == (2, ("May",), "What did buy?")


@pytest.mark.parametrize(
    ("query", "anchor"),
    [
        ("What did she buy two days before the trip?", Anchor("the trip", -2, -2)),
        ("The day after the party, who left?", Anchor("the party", 1, 1)),
        ("Who came the week after Anna's wedding?", Anchor("Anna's wedding", 1, 7)),
        ("Who came a week after she left Rome?", Anchor("she left Rome", 4, 10)),
        ("Who came the month before the move", Anchor("the move", -30, -1)),
        ("Who came 3 months after the move", Anchor("the move", 75, 105)),
        ("Who came the Sunday before the move", Anchor("the move", -7, -1)),
    ],
)
def test_days_counted_from_what_happened(query: str, anchor: Anchor) -> None:
    reading = read(query, (), TIMELINE)
    assert reading.anchors == (anchor,)
    assert reading.text == query


_PIECES = (
    "May may 4 4th 31 2023 2022-05-04 04/05/2023 99999 0 the a of in on since before after "
    "between and from to until last next this early end first week weekend days two ago "
    "yesterday summer winter Sunday Christmas Eve New Year 's ' , . - party ?"
)


@given(
    st.lists(
        st.sampled_from(_PIECES.split()),
        max_size=30,
    ),
    st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3),
)
def test_every_span_has_a_beginning_before_its_end(
    words: list[str], timeline: tuple[int, int, int]
) -> None:
    query = " ".join(words)
    reading = read(query, ("May", "Eve"), Timeline(*timeline))
    assert all(first <= last for first, last in reading.spans)
    assert all(first >= -(2**63) and last < 2**63 for first, last in reading.spans)
    assert all(anchor.offset_days_first <= anchor.offset_days_last for anchor in reading.anchors)
    assert bool(reading.text) == bool(query)


@given(st.dates(date(YEARS[0], 1, 1), date(YEARS[-1], 12, 31)))
def test_a_day_written_is_the_day_read(day: date) -> None:
    at_ns = nanoseconds((day.toordinal(), day.toordinal()))[0]
    timeline = Timeline(at_ns, at_ns + 1, at_ns)
    month = day.strftime("%B")
    for written in (day.isoformat(), f"{day.day} {month} {day.year}", f"{month} {day.day}"):
        assert read(f"a walk on {written}", (), timeline).spans == ((at_ns, at_ns + DAY_NS - 1),)
