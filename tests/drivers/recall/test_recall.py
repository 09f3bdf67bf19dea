"""What ranks a passage beside its words, and that nothing else does."""

from typing import Any

import numpy as np
import pytest

from libmem.abi.index import (
    IndexFilter,
    IndexHit,
    IndexQuestion,
    IndexVectors,
    IndexWeights,
)
from libmem.abi.structs import SearchMode
from memosd.drivers.recall.index import RecallIndex
from tests.drivers.recall.lexicon import MODEL, document, embed_all, search, vectors

DAY_NS = 86_400 * 10**9
PARTS = {"words", "meaning", "before", "after", "session", "producer", "date"} | {
    "recency",
    "importance",
}


def direction(*numbers: float) -> IndexVectors:
    """One unit vector."""
    values = np.array(numbers) / np.linalg.norm(numbers)
    return IndexVectors(MODEL, len(numbers), values.astype("<f4").tobytes())


def embed(index: RecallIndex, meanings: dict[str, IndexVectors]) -> None:
    """Give passages their vectors, by their texts."""
    index.use_model(MODEL)
    waiting = index.waiting(1000, 1 << 30, set())
    index.keep({each.number: meanings[each.text] for each in waiting if each.text in meanings})


def talk(index: RecallIndex, *turns: tuple[str, str], session: str = "s", **facets: Any) -> None:
    """One conversation: each turn a cube named after its position."""
    index.apply(
        1,
        [
            document(f"{at}", text, producer=who, session=session, position=at, **facets)
            for at, (who, text) in enumerate(turns)
        ],
        [],
    )


# -- each signal -------------------------------------------------------------------------------


def test_words_and_meaning_add_up(index: RecallIndex) -> None:
    talk(index, ("", "a heron"), ("", "a grey bird"), ("", "an engine"), session="")
    embed(index, {"a heron": direction(1, 0), "a grey bird": direction(1, 0.1)})
    embed(index, {"an engine": direction(-0.1, 1)})
    hits = search(index, "heron", direction(1, 0))
    assert list(hits) == ["0", "1"]
    assert hits["0"].score == pytest.approx(1.0)
    assert hits["0"].signals.keys() == {"bm25", "words", "meaning", "rank_words", "rank_meaning"}
    assert hits["1"].signals["rank_meaning"] == 2


def test_the_parts_of_a_score_add_up_to_it(index: RecallIndex) -> None:
    talk(
        index,
        ("Anna", "Who saw the heron?"),
        ("Ben", "I did, by the lake. It was a heron."),
        ("Anna", "Lovely bird"),
        event_time_ns=30 * DAY_NS,
        priority=80,
    )
    embed_all(index)
    weights = IndexWeights(recency=0.2, half_life_ns=DAY_NS, importance=0.1, at_ns=31 * DAY_NS)
    query = "What did Ben say of the heron on 31 January 1970?"
    plan = index.plan(IndexQuestion(query, {1: ""}, 10, weights=weights))
    for hit in index.rank(plan, vectors("heron", index)):
        parts = [value for name, value in hit.signals.items() if name in PARTS]
        assert sum(parts) == pytest.approx(hit.score, abs=1e-5)
    assert plan.understood.producers == ("Ben",)


def test_an_answer_gets_more_of_its_question_than_another_neighbour(index: RecallIndex) -> None:
    talk(index, ("A", "Seen any heron?"), ("B", "Yes."), ("A", "A stork."), ("B", "No."))
    hits = search(index, "heron stork")
    assert hits["1"].signals["before"] == pytest.approx(0.3 * base(hits["0"]))
    assert hits["3"].signals["before"] == pytest.approx(0.15 * base(hits["2"]))
    assert hits["1"].signals["after"] == pytest.approx(0.15 * base(hits["2"]))


def base(hit: IndexHit) -> float:
    return hit.signals.get("words", 0.0) + hit.signals.get("meaning", 0.0)


def test_only_the_next_place_in_the_same_session_is_a_neighbour(index: RecallIndex) -> None:
    places = [("one", 1), ("one", 3), ("two", 2), ("", 2)]
    others = [
        document(f"{s}{p}", "nothing", session=s, position=p, namespace=n)
        for s, p in places
        for n in (1, 2)
        if n == 1
    ]
    elsewhere = document("elsewhere", "nothing", session="one", position=2, namespace=2)
    index.apply(1, [*others, elsewhere, document("x", "heron", session="one", position=2)], [])
    hits = search(index, "heron", spaces={1: "", 2: ""})
    assert set(hits) == {"x", "one1", "one3"}


def test_neighbours_follow_when_cubes_come_and_go(index: RecallIndex) -> None:
    talk(index, ("", "heron"), ("", "nothing"))
    assert "1" in search(index, "heron")
    index.apply(2, [document("1", "nothing", session="s", position=5)], [])
    assert "before" not in search(index, "heron").get("1", EMPTY).signals
    index.apply(3, [document("later", "nothing", session="s", position=1)], [b"1"])
    assert search(index, "heron")["later"].signals["before"] > 0


EMPTY = IndexHit(b"", 0, 0.0, "")


def test_the_passages_of_a_long_text_are_neighbours(index: RecallIndex) -> None:
    pages = [f"page{n} " * 280 + "\n" for n in range(3)]
    index.apply(1, [document("long", "".join(pages)), document("other", "else")], [])
    (hit,) = search(index, "page1", beside=1).values()
    assert [(beside.distance, beside.text[:5]) for beside in hit.beside] == [
        (-1, "page0"),
        (1, "page2"),
    ]


def test_what_stands_beside_a_hit_crosses_cubes(index: RecallIndex) -> None:
    talk(index, ("A", "one"), ("B", "two"), ("A", "heron"), ("B", "four"), ("A", "five"))
    hit = search(index, "heron", beside=2, mode=SearchMode.WORDS)["2"]
    assert [(each.distance, each.text, each.producer) for each in hit.beside] == [
        (-2, "one", "A"),
        (-1, "two", "B"),
        (1, "four", "B"),
        (2, "five", "A"),
    ]
    assert hit.passage == "heron"


def test_what_lies_outside_the_subtree_takes_no_neighbours_place(index: RecallIndex) -> None:
    """Two people's sessions of one name: a newer turn at a place is not in the way of one's own."""
    ours = ["Where is the heron?", "By the lake"]
    talks = [
        document(f"{who}{at}", text, name=f"/ns1/{who}/{at}", session="monday", position=at)
        for who, texts in (("ann", ours), ("ben", ["Good morning", "Rain"]))
        for at, text in enumerate(texts)
    ]
    index.apply(1, talks[:2], [])
    alone = search(index, "heron", spaces={1: "/ns1/ann"}, beside=1)
    index.apply(2, talks[2:], [])
    assert alone["ann1"].signals["before"] == pytest.approx(0.3)
    among = search(index, "heron", spaces={1: "/ns1/ann"}, beside=1)
    assert among["ann1"].signals["before"] == pytest.approx(0.3)
    for cube, hit in alone.items():
        assert among[cube].beside == hit.beside


def test_whom_the_query_names_is_preferred(index: RecallIndex) -> None:
    talk(index, ("Anna", "I like herons"), ("Ben", "I like herons"), session="")
    hits = search(index, "What does Anna like?")
    assert next(iter(hits)) == "0"
    assert hits["0"].signals["producer"] == pytest.approx(0.4)
    both = search(index, "What do Anna and Ben like?")
    assert all("producer" not in hit.signals for hit in both.values())


def test_names_and_words_of_a_spaceless_script(index: RecallIndex) -> None:
    talk(index, ("小明", "我喜欢围棋"), ("小红", "我喜欢围棋"), ("小红", "天气很好"), session="")
    plan = index.plan(IndexQuestion("小明喜欢围棋吗\uff1f", {1: ""}, 10))
    assert plan.understood.producers == ("小明",)
    assert [hit.id for hit in index.rank(plan, None)][:2] == [b"0", b"1"]


def test_when_the_query_says_is_preferred(index: RecallIndex) -> None:
    days = {"before": 9, "then": 10, "told": 17, "late": 18}
    index.apply(
        1, [document(cube, "heron", event_time_ns=n * DAY_NS) for cube, n in days.items()], []
    )
    hits = search(index, "heron on 11 January 1970")
    assert {cube for cube, hit in hits.items() if "date" in hit.signals} == {"then", "told"}


def test_a_day_counted_from_a_memory(index: RecallIndex) -> None:
    index.apply(
        1,
        [
            document("trip", "we went on the trip to Oslo", event_time_ns=100 * DAY_NS),
            document("two", "bought a tent", event_time_ns=98 * DAY_NS),
            document("other", "bought a stove", event_time_ns=50 * DAY_NS),
        ],
        [],
    )
    plan = index.plan(IndexQuestion("What was bought two days before the trip?", {1: ""}, 5))
    assert plan.understood.days == ((98 * DAY_NS, 99 * DAY_NS - 1),)
    order = [hit.id for hit in index.rank(plan, None)]
    assert order.index(b"two") < order.index(b"other")


def test_recency_and_importance_count_only_among_what_is_found(index: RecallIndex) -> None:
    index.apply(
        1,
        [
            document("old", "heron", event_time_ns=1 * DAY_NS, priority=0),
            document("new", "heron", written_ns=9 * DAY_NS, priority=100),
            document("newest", "else", written_ns=10 * DAY_NS, priority=100),
        ],
        [],
    )
    weights = IndexWeights(recency=0.5, half_life_ns=DAY_NS, importance=0.2, at_ns=10 * DAY_NS)
    hits = search(index, "heron", weights=weights)
    assert list(hits) == ["new", "old"]
    assert hits["new"].signals["recency"] == pytest.approx(0.25)
    assert hits["new"].signals["importance"] == pytest.approx(0.2)


def test_a_filter_chooses_hits_and_leaves_them_their_context(index: RecallIndex) -> None:
    talk(index, ("Anna", "Who saw the heron?"), ("Ben", "I did."), ("Anna", "Oh."))
    hits = search(index, "heron", filter=IndexFilter(producers=("Ben",)))
    assert list(hits) == ["1"]
    assert hits["1"].signals["before"] > 0


# -- without vectors, with some, with another model's ------------------------------------------


def test_without_a_vector_words_decide(index: RecallIndex) -> None:
    talk(index, ("", "a heron"), ("", "a heron and a stork"), ("", "an engine"), session="")
    embed_all(index)
    for vector in (None, direction(1, 2, 3), vectors("x", index)._replace(model="b" * 64)):
        hits = search(index, "heron stork", vector)
        assert list(hits) == ["1", "0"]
        assert hits["1"].score == pytest.approx(1.0)
        assert search(index, "stork", vector, mode=SearchMode.MEANING) == {}


def test_by_meaning_alone(index: RecallIndex) -> None:
    talk(index, ("", "a heron"), ("", "an engine"), ("", "no vector yet"), session="")
    embed(index, {"a heron": direction(1, 0), "an engine": direction(1, 1)})
    hits = search(index, "vector", direction(0, 1), mode=SearchMode.MEANING)
    assert {cube: hit.score for cube, hit in hits.items()} == pytest.approx(
        {"1": 0.5**0.5, "0": 0.0}, abs=0.01
    )


def test_what_waits_for_its_vector_is_found_by_its_words(index: RecallIndex) -> None:
    talk(index, *[("", f"engine number {n}") for n in range(20)], session="")
    embed_all(index)
    index.apply(2, [document("new", "a heron by the lake")], [])
    assert next(iter(search(index, "heron", vectors("heron", index)))) == "new"


def test_the_best_sentence_counts(index: RecallIndex) -> None:
    talk(index, ("", "both in one"), ("", "the middle"), session="")
    two = np.array([[1, 1], [1, 0], [0, 1]]) / np.array([[2**0.5], [1], [1]])
    of_two = IndexVectors(MODEL, 2, two.astype("<f4").tobytes())
    embed(index, {"both in one": of_two, "the middle": direction(1, 1)})
    assert list(search(index, "x", direction(0, 1))) == ["0", "1"]


def test_what_is_gone_meanwhile_is_no_hit(index: RecallIndex) -> None:
    talk(index, ("", "heron"), ("", "heron heron"), session="")
    plan = index.plan(IndexQuestion("heron", {1: ""}, 5))
    index.match(plan)
    index.apply(2, [document("1", "else")], [b"0"])
    assert index.rank(plan, None) == []


# -- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 3, 10_000])
@pytest.mark.parametrize("mode", list(SearchMode))
def test_no_more_than_were_asked_for(index: RecallIndex, limit: int, mode: SearchMode) -> None:
    talk(index, *[("", f"heron {n}") for n in range(5)])
    embed_all(index)
    hits = search(index, "heron", vectors("heron", index), limit=limit, mode=mode)
    assert len(hits) <= min(limit, 5)
    if mode is not SearchMode.MEANING:
        assert len(hits) == min(limit, 5)


@pytest.mark.parametrize("query", ["", "   ", "?", "the", "Anna", "in May 2023"])
def test_an_empty_rest_is_no_reason_to_fail(index: RecallIndex, query: str) -> None:
    talk(index, ("Anna", "the heron in May"), event_time_ns=DAY_NS)
    embed_all(index)
    for vector in (None, vectors("x", index)):
        search(index, query, vector)


def test_in_an_empty_index_nothing_is_found(index: RecallIndex) -> None:
    assert search(index, "heron", direction(1, 0)) == {}
    index.use_model(MODEL)
    assert search(index, "heron", direction(1, 0), mode=SearchMode.MEANING) == {}


def test_a_document_of_ten_megabytes(index: RecallIndex) -> None:
    lines = [f"line {n} of a long log, nothing to see\n" for n in range(270_000)]
    lines[200_000] = "here is the heron\n"
    index.apply(1, [document("log", "".join(lines)), document("short", "a stork")], [])
    hits = search(index, "heron", beside=1)
    assert list(hits) == ["log"]
    assert "heron" in hits["log"].passage
    assert len(hits["log"].beside) == 2
    index.apply(2, [], [b"log"])
    assert search(index, "heron") == {}


def test_the_best_have_their_neighbours_where_not_all_can(index: RecallIndex) -> None:
    for start in range(0, 400, 100):
        turns = [
            document(f"{n}", "heron " + "x" * 1900, session="s", position=n)
            for n in range(start, start + 100)
        ]
        index.apply(start, turns, [])
    hits = list(search(index, "heron", limit=400, beside=16, mode=SearchMode.WORDS).values())
    assert len(hits) == 400
    texts = [sum(len(each.text) for each in hit.beside) for hit in hits]
    assert texts[0] > 16 * 1900
    assert sum(texts) < 2 << 20
    first_without = texts.index(0)
    assert not any(texts[first_without:])


def test_what_is_known_of_a_namespace_does_not_grow_with_changes(index: RecallIndex) -> None:
    session = index._session
    for turn in range(2500):
        index.apply(turn, [document("a", "heron", session=f"s{turn}", position=turn)], [])
    assert session is not None
    assert len(session.catalogue.spaces[1].stretches) < 2 * 1200
    assert search(index, "heron", filter=IndexFilter(sessions=("s2499",)))
    assert not search(index, "heron", filter=IndexFilter(sessions=("s2498",)))
