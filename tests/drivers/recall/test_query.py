"""How many passages a search may score, and that it stays exact where it can."""

import pytest

from memosd.drivers.recall.index import RecallIndex
from memosd.drivers.recall.query import PASSAGES_SCORED, WORDS_MAX, Pass, passes
from tests.drivers.recall.lexicon import document, found, ids, write

MANY = PASSAGES_SCORED + 1


def test_few_matches_take_one_exact_pass() -> None:
    assert list(passes([("a", 1), ("b", PASSAGES_SCORED - 1)])) == [Pass("a OR b", 1.0)]


def test_rare_words_lead_and_common_ones_score() -> None:
    assert list(passes([("a", 1), ("b", 2), ("c", MANY)])) == [
        Pass("(a OR b) AND (a OR b OR c OR c)", 0.5),
        Pass("c", 1.0),
    ]


def test_common_words_alone_are_first_taken_together() -> None:
    assert list(passes([("a", MANY), ("b", MANY)])) == [Pass("a AND b", 1.0), Pass("a OR b", 1.0)]


def test_of_many_common_words_the_rarest_count() -> None:
    common = [(letter, MANY + at) for at, letter in enumerate("abcdefgh")]
    assert "d" not in "".join(question.expression for question in passes(common))


@pytest.fixture
def two_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search scores two passages in each pass."""
    monkeypatch.setattr("memosd.drivers.recall.query.PASSAGES_SCORED", 2)
    monkeypatch.setattr("memosd.drivers.recall.lexical.PASSAGES_SCORED", 2)


def fill(index: RecallIndex) -> None:
    texts = [f"common number{n}" for n in range(8)]
    texts += ["common quartz", "quartz alone in a longer text", "nothing", "else"]
    index.apply(1, [document(f"{n:02}", text) for n, text in enumerate(texts)], [])


def scores(index: RecallIndex, query: str) -> dict[bytes, float]:
    return {hit.id: hit.score for hit in found(index, query, {1: ""}, 100)}


def test_whatever_has_a_rare_word_gets_its_true_score(
    index: RecallIndex, request: pytest.FixtureRequest
) -> None:
    fill(index)
    exact = scores(index, "quartz common")
    request.getfixturevalue("two_at_most")
    bounded = scores(index, "quartz common")
    assert bounded[b"08"] == pytest.approx(exact[b"08"])
    assert bounded[b"09"] == pytest.approx(exact[b"09"])


@pytest.mark.usefixtures("two_at_most")
def test_common_words_find_the_newest_once_rare_ones_are_used_up(index: RecallIndex) -> None:
    fill(index)
    assert ids(index, "quartz common", limit=3) == ["08", "09", "07"]
    assert set(ids(index, "common")) == {"08", "07"}


@pytest.mark.usefixtures("two_at_most")
def test_a_subtree_is_searched_before_the_bound_applies(index: RecallIndex) -> None:
    old = [document(f"old{n}", "common", name=f"/n/old/{n}") for n in range(2)]
    index.apply(1, old + [document(f"{n}", "common", name=f"/n/new/{n}") for n in range(9)], [])
    assert set(ids(index, "common", {1: "/n/old"})) == {"old0", "old1"}


def test_frequencies_are_looked_up_again_when_much_has_changed(
    index: RecallIndex, two_at_most: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memosd.drivers.recall.lexical._REPLAN_AFTER", 3)
    write(index, a="common", b="common", c="common")
    assert ids(index, "common", limit=1) == ["c"]
    index.apply(2, [], [b"b", b"c"])
    write(index, d="rare", e="rare", f="rare")
    # Now `common` is the rare word: the one cube that has it is found although it is the oldest.
    assert ids(index, "common rare", limit=1) == ["a"]


def test_a_long_query_looks_for_its_rarest_words(index: RecallIndex) -> None:
    everywhere = [f"word{n}" for n in range(WORDS_MAX + 20)]
    write(index, a=" ".join(everywhere), b=" ".join(everywhere), c="quartz", d="else")
    assert "c" in ids(index, " ".join([*everywhere, "quartz"]))
