"""Whom a query names, and what is left of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memosd.drivers.recall.reading import Reading, Timeline, read
from memosd.drivers.recall.stopwords import content_words

NEVER = Timeline()
YEAR = Timeline(1_672_531_200 * 10**9, 1_704_067_199 * 10**9, 1_704_067_199 * 10**9)


@pytest.mark.parametrize(
    ("query", "producers", "named", "text"),
    [
        ("What did Anna buy?", ["Anna"], ("Anna",), "What did buy?"),
        ("what did anna buy?", ["Anna"], ("Anna",), "what did buy?"),
        ("What is Anna's dog called?", ["Anna"], ("Anna",), "What is dog called?"),
        ("What is Anna\u2019s dog called?", ["Anna"], ("Anna",), "What is dog called?"),
        ("What'll Anna'll do?", ["Anna"], ("Anna",), "What'll 'll do?"),
        (".NET is what?", ["Anna"], (), ".NET is what?"),
        (".NET by Anna ?", ["Anna"], ("Anna",), ".NET by?"),
        ("Anna. Where is she?", ["Anna"], ("Anna",), "Where is she?"),
        ("Anna, is it so?", ["Anna"], ("Anna",), "is it so?"),
        ("Did Bob meet Anna, or Anna Bob?", ["Anna", "Bob"], ("Bob", "Anna"), "Did meet, or?"),
        ("Where is Anna?", ["Ann"], (), "Where is Anna?"),
        ("Where is Ann?", ["Anna"], (), "Where is Ann?"),
        ("Where is Ann-Marie?", ["Ann"], (), "Where is Ann-Marie?"),
        ("Where is Ann-Marie?", ["Ann", "Ann-Marie"], ("Ann-Marie",), "Where is?"),
        ("Where is O'Neil?", ["Neil"], (), "Where is O'Neil?"),
        ("Where is D'Angelo?", ["D"], (), "Where is D'Angelo?"),
        ("Where is O'Neil?", ["O'Neil"], ("O'Neil",), "Where is?"),
        ("mail ann@example.org", ["ann"], (), "mail ann@example.org"),
        ("mail ann@example.org", ["ann@example.org"], ("ann@example.org",), "mail"),
        ("ask Anna  Lee now", ["Anna", "Anna Lee"], ("Anna Lee",), "ask now"),
        ("ask Anna, Lee is out", ["Anna Lee"], (), "ask Anna, Lee is out"),
        ("ask Martin King Jr now", ["Martin King Jr."], ("Martin King Jr.",), "ask now"),
        ("ask gpt-4 now", ["gpt-4", "gpt"], ("gpt-4",), "ask now"),
        ("ask gpt-4-turbo now", ["gpt-4"], (), "ask gpt-4-turbo now"),
        ("ask user_1 now", ["user_1", "user"], ("user_1",), "ask now"),
        ("C is not C++", ["C++"], ("C++",), "C is not"),
        ("ask jose now", ["José"], ("José",), "ask now"),
        ("ask JOSÉ now", ["José"], ("José",), "ask now"),
        ("ask Jose\u0301 now", ["José"], ("José",), "ask now"),
        ("anna or Anna?", ["Anna", "anna"], ("anna", "Anna"), "or?"),
        ("小明喜欢什么", ["小明"], ("小明",), "喜欢什么"),
        ("What did 小明 say?", ["小明"], ("小明",), "What did say?"),
        ("小明喜欢什么", ["明"], (), "小明喜欢什么"),
        ("हिन्दी क्या है", ["हिन्दी"], ("हिन्दी",), "क्या है"),
        ("हिन्दी क्या है", ["हिन"], (), "हिन्दी क्या है"),
        ("Где Анна?", ["анна"], ("анна",), "Где?"),
    ],
)
def test_names(query: str, producers: list[str], named: tuple[str, ...], text: str) -> None:
    assert read(query, producers, NEVER) == Reading(text, named)


@pytest.mark.parametrize(
    ("query", "producer", "is_named"),
    [
        ("will she come?", "Will", False),
        ("When did Will come?", "Will", True),
        ("When did Will come?", "will", True),
        ("When will she come?", "will", False),
        ("what does she hope for", "Hope", False),
        ("what does Hope do", "Hope", True),
        ("may she go?", "May", False),
        ("Did May go?", "May", True),
        ("plan b or Plan B", "B", True),
        ("plan b", "B", False),
        ("Anna's dog", "S", False),
    ],
)
def test_a_name_that_is_a_word_is_written_like_one(
    query: str, producer: str, is_named: bool
) -> None:
    assert read(query, (producer,), NEVER).producers == ((producer,) if is_named else ())


@pytest.mark.parametrize("query", ["Anna?", "Anna and Anna", "in May 2023", "Anna, in May 2023!"])
def test_something_is_left_to_look_for(query: str) -> None:
    reading = read(query, ("Anna", "and"), YEAR)
    assert reading.producers or reading.spans
    assert reading.text in (query, "and")


def test_names_and_dates_together() -> None:
    reading = read("In May 2023, what did Anna's dog  do ?", ("Anna",), YEAR)
    assert reading.text == "what did dog do?"
    assert reading.producers == ("Anna",)
    assert len(reading.spans) == 1


def test_thousands_of_names() -> None:
    producers = {
        f"{word}{mark}{i}" for word in ("user", "文") for mark in " -" for i in range(2_000)
    }
    reading = read("What did user 77, user-78 and 文 79 say?", producers, NEVER)
    assert reading.producers == ("user 77", "user-78", "文 79")


@given(
    st.text(max_size=60),
    st.sets(st.one_of(st.text(max_size=6), st.sampled_from(["Anna", "May", "小明", "a b"]))),
)
def test_nothing_that_is_typed_is_refused(query: str, producers: set[str]) -> None:
    reading = read(query, producers, YEAR)
    assert bool(reading.text) == bool(query)
    assert any(map(str.isalnum, query)) == any(map(str.isalnum, reading.text))
    assert set(reading.producers) <= producers


@given(st.text(alphabet="aA'\u2019-.@ é文ß", max_size=12), st.text(max_size=8), st.text(max_size=8))
def test_a_name_between_spaces_is_named(name: str, before: str, after: str) -> None:
    name = " ".join(name.split())
    if len(name) < 2 or not name[0].isalpha() or not name[-1].isalpha():
        return
    reading = read(f"{before} {name} {after}", (name,), NEVER)
    assert reading.producers == (name,)


@pytest.mark.parametrize("unit", ["a ", "?", "in May ", "May 4 ", "1.", "2023-05-", "the end of "])
def test_a_long_query_is_read_in_bounds(unit: str) -> None:
    query = (unit * 10_000)[:10_000]
    reading = read(query, ("a b", "May"), YEAR)
    assert len(reading.spans) <= 16
    assert reading.text


def test_stop_words_leave_the_words_of_a_search() -> None:
    terms = {"what": '"What"', "did": '"did"', "dog": '"dogs"', "the": '"THE"', "who": '"who"'}
    assert content_words(terms) == {"dog": '"dogs"'}
    del terms["dog"]
    assert content_words(terms) == terms
    assert content_words({}) == {}
