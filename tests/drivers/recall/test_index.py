"""What the lexical index finds, where it looks and what it shows."""

import pytest

from libmem.abi.errors import Errno
from libmem.abi.index import HIT_END, HIT_START
from memosd.drivers.recall.index import RecallIndex
from tests.drivers.memory import raises
from tests.drivers.recall.lexicon import document, found, ids, write


def marked(snippet: str) -> list[str]:
    """The matched words of a snippet."""
    return [part.partition(HIT_END)[0] for part in snippet.split(HIT_START)[1:]]


def test_any_word_finds_and_more_words_rank_higher(index: RecallIndex) -> None:
    write(index, fox="a fox", dog="a dog", both="a dog with a fox", none="a hedgehog", more="owl")
    assert ids(index, "fox dog") == ["both", "dog", "fox"]


def test_a_shorter_text_ranks_higher_and_scores_are_positive(index: RecallIndex) -> None:
    write(index, long="otter " + "word " * 50, short="otter", a="x", b="y", c="z")
    hits = found(index, "otter", {1: ""}, 10)
    assert [hit.id for hit in hits] == [b"short", b"long"]
    assert hits[0].score > hits[1].score > 0


def test_among_equals_the_last_written_comes_first(index: RecallIndex) -> None:
    write(index, first="same words", second="same words", third="same words")
    write(index, first="same words now", second="other")
    write(index, first="same words")
    assert ids(index, "same words") == ["first", "third"]


def test_the_limit_holds_over_all_namespaces_together(index: RecallIndex) -> None:
    index.apply(
        1, [document(f"{ns}{n}", "heron", namespace=ns) for ns in (1, 2) for n in "abc"], []
    )
    assert len(ids(index, "heron", limit=4)) == 4
    assert ids(index, "heron", limit=0) == []


def test_only_the_given_namespaces_are_searched(index: RecallIndex) -> None:
    index.apply(1, [document("one", "heron"), document("two", "heron", namespace=2)], [])
    assert ids(index, "heron", {2: ""}) == ["two"]
    assert ids(index, "heron", {3: ""}) == []
    assert ids(index, "heron", {}) == []


def test_a_prefix_is_a_subtree(index: RecallIndex) -> None:
    names = ["/n/a", "/n/a/x", "/n/a/x/y", "/n/ab", "/n/a-b", "/n/a b/c", "/n", "/n/b/a", "/n/a0"]
    cubes = [document(name, "heron " * 3000, name=name) for name in names]
    index.apply(1, cubes, [])
    assert set(ids(index, "heron", {1: "/n/a"})) == {"/n/a", "/n/a/x", "/n/a/x/y"}
    assert ids(index, "heron", {1: "/n/a/x/y"}) == ["/n/a/x/y"]
    assert ids(index, "heron", {1: "/n/a%"}) == []
    assert set(ids(index, "heron", {1: "/n"})) == set(names)


def test_a_new_text_replaces_the_old_one(index: RecallIndex) -> None:
    index.apply(1, [document("a", "heron")], [])
    index.apply(2, [document("a", "stork", version=2)], [])
    assert ids(index, "heron") == []
    assert [hit.version for hit in found(index, "stork", {1: ""}, 5)] == [2]


def test_a_renamed_cube_is_found_under_its_new_name_only(index: RecallIndex) -> None:
    index.apply(1, [document("a", "heron", name="/n/old/a")], [])
    index.apply(2, [document("a", "heron", name="/n/new/a", version=2)], [])
    assert ids(index, "heron", {1: "/n/old"}) == []
    assert [hit.version for hit in found(index, "heron", {1: "/n/new"}, 5)] == [2]


def test_a_cube_that_moves_to_another_namespace_leaves_its_own(index: RecallIndex) -> None:
    index.apply(1, [document("a", "heron"), document("b", "heron")], [])
    index.apply(2, [document("a", "heron", namespace=2)], [])
    assert ids(index, "heron", {1: ""}) == ["b"]
    assert ids(index, "heron", {2: ""}) == ["a"]


def test_removals_come_before_documents_and_the_last_document_wins(index: RecallIndex) -> None:
    index.apply(1, [document("a", "heron"), document("a", "stork"), document("b", "owl")], [])
    assert ids(index, "heron stork") == ["a"]
    index.apply(2, [document("a", "heron")], [b"a", b"a", b"b", b"unknown"])
    assert ids(index, "heron stork owl") == ["a"]


def test_apply_can_be_repeated(index: RecallIndex) -> None:
    for _ in range(3):
        index.apply(7, [document("a", "heron heron"), document("b", "heron")], [b"c"])
    assert ids(index, "heron") == ["a", "b"]


def test_a_cube_without_text_is_kept_and_found_by_nothing(index: RecallIndex) -> None:
    write(index, empty="", after="heron")
    assert ids(index, "heron") == ["after"]
    index.apply(2, [document("empty", "heron")], [b"after"])
    assert ids(index, "heron") == ["empty"]


def test_a_snippet_shows_the_words_where_most_match(index: RecallIndex) -> None:
    filler = "nothing to see here " * 40
    write(index, a=f"heron {filler} stork and heron {filler}")
    (hit,) = found(index, "herons storks", {1: ""}, 1)
    assert marked(hit.snippet) == ["stork", "heron"]
    assert hit.snippet.startswith("…")
    assert hit.snippet.endswith("…")


def test_a_snippet_of_a_long_text_comes_from_the_passage_that_matches(index: RecallIndex) -> None:
    filler = "nothing to see here\n" * 2000
    write(index, a=f"{filler}a heron by the water\n{filler}", b=filler)
    (hit,) = found(index, "heron", {1: ""}, 10)
    assert "a \x02heron\x03 by the water" in hit.snippet


def test_a_long_text_is_one_hit(index: RecallIndex) -> None:
    write(index, long="heron by the water\n" * 2000, short="heron")
    assert sorted(ids(index, "heron", limit=2)) == ["long", "short"]


def test_marks_in_the_source_text_do_not_reach_the_snippet(index: RecallIndex) -> None:
    write(index, a="a \x02false\x03 he\x00ron and a stork")
    (hit,) = found(index, "stork", {1: ""}, 1)
    assert hit.snippet == "a false heron and a \x02stork\x03"
    assert ids(index, "heron") == ["a"]


def test_statistics_stay_in_their_namespace(index: RecallIndex) -> None:
    """Whatever others write, this namespace's order, scores and snippets do not move."""
    mine = [
        document("rare", "quartz among common words"),
        document("often", "common words common words common"),
        *(document(f"other{n}", f"filler number {n}") for n in range(5)),
    ]
    index.apply(1, mine, [])
    alone = found(index, "quartz common", {1: ""}, 10)
    theirs = [document(f"x{n}", "quartz " * 9 + "long " * n, namespace=2) for n in range(50)]
    index.apply(2, theirs, [])
    assert found(index, "quartz common", {1: ""}, 10) == alone


def test_a_namespace_whose_last_cube_is_gone_can_be_used_again(index: RecallIndex) -> None:
    for stamp in range(1, 7, 2):
        index.apply(stamp, [document("a", "heron", namespace=3)], [])
        assert ids(index, "heron", {3: ""}) == ["a"]
        index.apply(stamp + 1, [], [b"a"])
        assert ids(index, "heron", {3: ""}) == []


def test_a_closed_index_says_so(index: RecallIndex) -> None:
    index.close()
    with raises(Errno.ESTALE):
        found(index, "heron", {1: ""}, 1)
    with raises(Errno.ESTALE):
        index.apply(1, [], [])
    index.close()


def test_clear_forgets_everything(index: RecallIndex) -> None:
    index.apply(9, [document("a", "heron")], [])
    index.clear()
    assert ids(index, "heron") == []
    assert index.open() == 0


def test_a_long_question_over_many_audiences_looks_up_so_many_words(
    index: RecallIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.apply(1, [document(f"{n}", "heron", owner=(n, n)) for n in range(600)], [])
    looked_up: list[str] = []

    def look_up(_self: object, term: str, _audience: int) -> int:
        looked_up.append(term)
        return 0

    monkeypatch.setattr("memosd.drivers.recall.lexical.Lexical._frequency", look_up)
    ids(index, " ".join(f"word{n}" for n in range(256)))
    assert len(looked_up) == 600 * 32
    looked_up.clear()
    ids(index, " ".join(f"word{n}" for n in range(20)))
    assert len(looked_up) == 600 * 20
