"""What counts as a word, in texts and in queries."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memosd.drivers.recall.index import RecallIndex
from memosd.drivers.recall.passages import PASSAGE_CHARS, cut, is_question, shown
from tests.drivers.recall.lexicon import document, found, ids, write


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Running shoes", "run"),
        ("a run of luck", "RUNNING"),
        ("Café au lait", "cafe"),
        ("cafe au lait", "CAFÉ"),
        ("cafe\u0301 au lait", "café"),
        ("Straße und Größe", "grosse größe"),
        ("жёлтый цветок", "ЦВЕТОК"),
        ("ελληνική γλώσσα", "ΓΛΏΣΣΑ"),
        ("हिन्दी भाषा", "हिन्दी"),
        ("안녕하세요 세계", "세계"),
        ("他喜欢机器学习和围棋", "机器学习"),
        ("他喜欢机器学习和围棋", "棋"),
        ("カタカナのテスト", "テスト"),
        ("𠀀𠀁 rare Han", "𠀀𠀁"),
        ("snake_case and dotted.name", "case name"),
        ("it costs 1234 euros", "1234"),
        ('{"key": "value"}', 'key"value'),
        ("C:\\path\\to", "path"),
    ],
)
def test_a_word_is_found(index: RecallIndex, text: str, query: str) -> None:
    write(index, a=text, b="something else")
    assert ids(index, query) == ["a"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("he runs", "hers"),
        ("机器学习", "器机"),  # neighbours in another order
        ("हिन्दी", "ह"),  # not a letter of a word
        ("a fox", ""),
        ("a fox", "   \n"),
        ("a fox", "😀 !? --"),
        ("a fox", '"" "'),
    ],
)
def test_another_word_is_not(index: RecallIndex, text: str, query: str) -> None:
    write(index, a=text)
    assert ids(index, query) == []


def test_neighbours_of_a_spaceless_script_are_one_mark(index: RecallIndex) -> None:
    write(index, a="他喜欢机器学习。器")
    (hit,) = found(index, "机器学习", {1: ""}, 1)
    assert hit.snippet == "他喜欢\x02机器学习\x03。器"


HOSTILE = [
    '"heron',
    '""heron"',
    "heron AND",
    "NOT heron",
    "heron NEAR(stork, 2)",
    "NEAR(heron",
    "text: heron",
    "{text} : heron",
    "-text: heron",
    "^heron",
    "heron*",
    "(heron",
    "heron)",
    "heron + + stork",
    "heron'; DROP TABLE document; --",
    "heron\0stork",
    "heron\x02\x03",
    "😀heron😀",
    "heron\ud800",
    "\u200bheron\u200b",
    "heron " * 1700,
    "heron " + " ".join(f"word{n}" for n in range(1200)),
    "heron " + "(" * 9990,
    "heron " + "é" * 9990,
    "heron " + "語" * 9990,
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_a_query_is_plain_words_whatever_it_looks_like(index: RecallIndex, query: str) -> None:
    write(index, a="grey heron", b="not and near text drop table", c="else")
    assert "a" in ids(index, query)
    assert ids(index, "heron") == ["a"]


@pytest.mark.parametrize("word", ["AND", "OR", "NOT", "NEAR"])
def test_an_operator_is_a_word(index: RecallIndex, word: str) -> None:
    write(index, a=f"it says {word.lower()} here", b="it does say", c="else")
    assert ids(index, word) == ["a"]
    assert ids(index, f"{word} else") != []


@given(st.text(max_size=9000), st.integers(0, 40))
def test_passages_lose_nothing_but_what_cannot_be_shown(text: str, repeat: int) -> None:
    whole = (text + " ") * repeat + text
    dropped = str.maketrans("", "", "\0\x02\x03\u200b")
    kept = whole.translate(dropped)
    passages = cut(whole)
    assert "".join(map(shown, passages)) == kept
    assert all(len(shown(passage)) <= PASSAGE_CHARS for passage in passages)


def test_passages_end_between_words_and_better_between_lines() -> None:
    first, *_ = cut("word " * 300 + "\n" + "word " * 300)
    assert first == "word " * 300 + "\n"
    assert all(passage.endswith(" ") for passage in cut("seven77 " * 3000))


def test_a_broken_surrogate_is_no_reason_to_fail(index: RecallIndex) -> None:
    write(index, a="heron \ud800 stork")
    assert ids(index, "stork") == ["a"]


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Where were you?", True),
        ('She asked: "Where?"  \n', True),
        ("你去哪儿了\uff1f", True),
        ("أين كنت؟", True),
        ("Did you see it? [a photo of a heron]", True),
        ("I saw it [what?]", False),
        ("Where? There.", False),
        ("]", False),
        ("", False),
    ],
)
def test_a_question_ends_with_its_mark(text: str, asks: bool) -> None:
    assert is_question(text) == asks


def test_numbers_between_two_passages_take_no_memory(index: RecallIndex) -> None:
    def write_below(folder: str, cube: str, text: str) -> None:
        index.apply(1, [document(cube, text, name=f"/ns1/{folder}/{cube}")], [])

    write_below("old", "a", "heron")
    write_below("old", "b", "stork")
    write_below("else", "c", "heron")
    session = index._session
    assert session is not None
    session.rows._next += 100_000_000  # that many came and went
    write_below("old", "d", "the heron")
    write_below("else", "e", "heron")
    tracemalloc.start()
    try:
        hits = found(index, "heron", {1: "/ns1/old"})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(hit.id for hit in hits) == [b"a", b"d"]
    assert peak_bytes < 1 << 20
