"""How vectors come, stay, go with their passages, and wait to be made."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi import failpoints
from libmem.abi.errors import Errno
from libmem.abi.index import IndexCounts, IndexQuestion, IndexVectors
from libmem.abi.structs import SearchMode
from memosd.drivers.recall.index import RecallIndex
from memosd.drivers.recall.vectors import cosines, quantized
from tests.drivers.memory import python, raises
from tests.drivers.recall.lexicon import ask, document, stored, vectors, write

A, B = "a" * 64, "b" * 64
ANY = 1 << 30


def numbers(index: RecallIndex) -> dict[str, int]:
    """The passages that wait, by their texts."""
    return {each.text: each.number for each in index.waiting(1000, ANY, set())}


def keep_all(index: RecallIndex, model: str = A) -> Mapping[int, IndexVectors]:
    index.use_model(model)
    kept = {each.number: vectors(each.text, index) for each in index.waiting(1000, ANY, set())}
    index.keep(kept)
    return kept


def closest(index: RecallIndex, text: str, model: str = A) -> list[str]:
    vector = vectors(text, index)._replace(model=model)
    question = IndexQuestion("-", {1: ""}, 10, mode=SearchMode.MEANING)
    return [hit.id.decode() for hit in ask(index, question, vector)]


@given(st.integers(1, 1040), st.integers(0, 2**32))
def test_eight_bits_are_close_to_the_numbers(dimensions: int, seed: int) -> None:
    made = np.random.default_rng(seed).standard_normal((4, dimensions))
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    rows = quantized(IndexVectors(A, dimensions, made.astype("<f4").tobytes()))
    assert cosines(rows, rows) == pytest.approx(made @ made[0], abs=0.02)


def test_what_is_no_number_is_taken_for_nothing() -> None:
    values = np.array([[np.nan, 1.0], [0.0, 0.0], [np.inf, 1.0]], "<f4")
    rows = quantized(IndexVectors(A, 2, values.tobytes()))
    assert cosines(rows, rows) == pytest.approx([1.0, 0.0, 1.0])


def test_a_comparison_takes_no_reference_with_it() -> None:
    rows = quantized(IndexVectors(A, 2, np.ones((3, 2), "<f4").tobytes()))
    before = sys.getrefcount(None)
    for _ in range(1000):
        cosines(rows, rows)
    assert abs(sys.getrefcount(None) - before) < 100, "the process dies when there are none left"


def test_vectors_outlive_the_process(index: RecallIndex, path: Path) -> None:
    write(index, a="heron", b="stork")
    keep_all(index)
    index._let_go()  # without `close` the log stays as it is, as after a crash
    assert index.open() == 1
    assert index.counts == IndexCounts(2, 0, A)
    assert closest(index, "stork")[0] == "b"


_CRASH = """
import sys
from pathlib import Path
from tests.drivers.recall.lexicon import write
from tests.drivers.recall.test_vectors import keep_all
from memosd.drivers.recall.index import RecallIndex
index = RecallIndex(Path(sys.argv[1]))
index.open()
write(index, a="heron", b="stork")
keep_all(index)
index.apply(2, [], [b"a"])
"""


@pytest.mark.parametrize(
    ("point", "left"), [("index.commit.before=exit@2", 2), ("index.commit.after=exit@2", 1)]
)
def test_a_crash_leaves_no_vector_without_its_passage(
    index: RecallIndex, path: Path, point: str, left: int
) -> None:
    index.close()
    crashed = python(_CRASH, str(path), failpoints=point)
    assert crashed.returncode == failpoints.EXIT_STATUS, crashed.stderr
    index.open()
    assert index.counts == IndexCounts(left, 0, A)
    assert len(closest(index, "heron")) == left


def test_a_vector_leaves_no_trace(index: RecallIndex, path: Path) -> None:
    """Neither of a cube that is gone, nor of a text that was replaced, nor of another model."""
    write(index, gone="heron", new="stork", stays="otter")
    steps = {
        text: quantized(vectors(text, index, 64)).steps for text in ("heron", "stork", "otter")
    }
    for model in (A, B):
        index.use_model(model)
        index.keep({number: vectors(text, index, 64) for text, number in numbers(index).items()})
    assert all(row.tobytes() in stored(path) for rows in steps.values() for row in rows)
    index.apply(2, [document("new", "another")], [b"gone"])
    for text in ("heron", "stork"):
        assert not any(row.tobytes() in stored(path) for row in steps[text])
    index.close()
    assert all(row.tobytes() in stored(path) for row in steps["otter"])


def test_a_vector_that_comes_late_meets_no_other_text(index: RecallIndex) -> None:
    write(index, a="heron")
    index.use_model(A)
    late = {number: vectors(text, index) for text, number in numbers(index).items()}
    index.apply(2, [], [b"a"])
    write(index, a="stork")
    index.keep(late)
    assert index.counts == IndexCounts(1, 1, A)


def test_a_vector_that_comes_after_a_new_beginning_meets_no_other_text(index: RecallIndex) -> None:
    index.use_model(A)
    write(index, a="heron", b="stork")
    late = {each.number: vectors("heron", index) for each in index.waiting(9, 999, set())}
    index.clear()
    index.use_model(A)
    failpoints.arm("index.commit.before=eio@1")
    with raises(Errno.EIO):
        write(index, c="falcon", d="kestrel")
    write(index, c="falcon", d="kestrel")
    index.keep(late)
    assert index.counts.waiting == 2
    index.close()
    index.open()
    assert index.counts.waiting == 2


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_vector_that_comes_late_meets_no_text_of_a_new_file(
    index: RecallIndex, path: Path, is_closed: bool
) -> None:
    """Its job outlived the file, and so did a search: a new one's numbers are none of the old."""
    write(index, old="heron")
    index.use_model(A)
    late = {number: vectors(text, index) for text, number in numbers(index).items()}
    plan = index.plan(IndexQuestion("heron", {1: ""}, 10))
    index.match(plan)
    if is_closed:
        index.close()
        path.unlink()
        index.open()
    else:
        index.clear()
    write(index, new="stork")
    index.use_model(A)
    index.keep(late)
    assert numbers(index).keys() == {"stork"}
    assert index.rank(plan, None) == []


def test_a_new_name_or_mode_keeps_the_vector_and_a_new_text_does_not(index: RecallIndex) -> None:
    write(index, a="heron")
    keep_all(index)
    index.apply(2, [document("a", "heron", name="/ns1/z", mode=0o644, priority=9)], [])
    assert index.counts.waiting == 0
    index.apply(3, [document("a", "stork")], [])
    assert index.counts.waiting == 1


def test_what_stays_of_a_long_text_keeps_its_vectors(index: RecallIndex) -> None:
    pages = [f"page{n} " * 280 + "\n" for n in range(3)]
    index.apply(1, [document("a", "".join(pages))], [])
    keep_all(index)
    index.apply(2, [document("a", "".join(pages[1:]) + "page9 " * 280, producer="Anna")], [])
    assert [each.text[:5] for each in index.waiting(10, ANY, set())] == ["page9"]
    assert closest(index, pages[2]) == ["a"]
    assert index.open() == 2
    assert index.counts == IndexCounts(3, 1, A)


def test_another_model_begins_anew_and_the_first_is_remembered(index: RecallIndex) -> None:
    write(index, a="heron", b="stork")
    keep_all(index, A)
    index.use_model(B)
    assert index.counts == IndexCounts(2, 2, B)
    assert closest(index, "stork", A) == []
    only_b = {number: vectors(text, index, 4) for text, number in numbers(index).items()}
    index.keep({max(only_b): only_b[max(only_b)]})
    index.use_model(A)
    assert index.counts == IndexCounts(2, 1, A), "that of `a` is still there"
    assert index.open() == 1
    assert index.counts == IndexCounts(2, 1, A)


def test_vectors_of_a_model_that_is_not_in_use_are_passed_over(index: RecallIndex) -> None:
    write(index, a="heron")
    number = numbers(index)["heron"]
    index.keep({number: vectors("heron", index)})
    index.use_model(A)
    index.keep({number: vectors("heron", index)._replace(model=B)})
    assert index.counts == IndexCounts(1, 1, A)


@pytest.mark.parametrize(
    "bad", [IndexVectors(A, 8, b"12345"), IndexVectors(A, 0, b""), IndexVectors(A, 4, bytes(16))]
)
def test_what_are_no_such_vectors_is_refused(index: RecallIndex, bad: IndexVectors) -> None:
    write(index, a="heron")
    keep_all(index)
    write(index, b="stork")
    number = numbers(index)["stork"]
    with raises(Errno.EINVAL):
        index.keep({number: bad})
    assert index.counts == IndexCounts(2, 1, A)
    index.keep({number: vectors("stork", index)})
    assert index.counts.waiting == 0


def test_a_vector_that_is_damaged_is_noticed(index: RecallIndex) -> None:
    write(index, a="heron")
    keep_all(index)
    assert index._session is not None
    index._session.db.execute("UPDATE vector SET whole = x'00'")
    index.close()
    assert index.open() == 0


# -- what waits --------------------------------------------------------------------------------


def test_namespaces_have_their_turns_and_the_newest_goes_first(index: RecallIndex) -> None:
    index.apply(
        1,
        [document(f"{ns}{n}", f"{ns}{n}", namespace=ns) for ns in (1, 2) for n in range(4)],
        [],
    )
    first = index.waiting(3, ANY, set())
    assert [each.text for each in first] == ["13", "23", "12"]
    assert [each.namespace for each in first] == [1, 2, 1]
    in_hand = {each.number for each in first}
    assert [each.text for each in index.waiting(3, ANY, in_hand)] == ["22", "11", "21"]


def test_the_first_vectors_of_a_model_disturb_no_other_namespace(index: RecallIndex) -> None:
    texts = [document("a", "heron"), document("b", "heron", namespace=2)]
    index.apply(1, texts, [])
    index.use_model(A)
    first = index.waiting(1, ANY, set())
    index.keep({each.number: vectors(each.text, index) for each in first})
    question = IndexQuestion("heron", {1: "", 2: ""}, 9)
    assert len(ask(index, question, vectors("heron", index))) == 2


def test_so_many_characters_are_handed_out(index: RecallIndex) -> None:
    write(index, a="a" * 100, b="b" * 100, c="c" * 100)
    assert len(index.waiting(10, 250, set())) == 2
    assert len(index.waiting(10, 1, set())) == 1
    assert index.waiting(0, 250, set()) == []


def test_of_an_empty_text_no_vector_is_wanted(index: RecallIndex) -> None:
    write(index, empty="", spaces=" \n ", text="他喜欢")
    assert [each.text for each in index.waiting(10, ANY, set())] == ["他喜欢"]
    assert index.counts == IndexCounts(3, 1, "")


def test_what_waits_is_the_text_without_its_producer(index: RecallIndex) -> None:
    index.apply(1, [document("a", "a heron", producer="Anna")], [])
    assert [each.text for each in index.waiting(10, ANY, set())] == ["a heron"]


@pytest.mark.parametrize("mode", [SearchMode.HYBRID, SearchMode.MEANING])
def test_a_vector_that_meets_none_is_told(index: RecallIndex, mode: SearchMode) -> None:
    def is_told(vector: IndexVectors | None, under: str = "") -> bool:
        plan = index.plan(IndexQuestion("heron", {1: under}, 10, mode=mode))
        index.match(plan)
        index.rank(plan, vector)
        return plan.lacks_vectors

    write(index, a="heron", b="stork")
    keep_all(index)
    query = vectors("heron", index)._replace(model=A)
    assert not is_told(query)
    assert not is_told(None), "its reply says why there is none"
    index.use_model(B)
    assert is_told(query._replace(model=B))
    assert is_told(query), "of a model that is not in use"
    assert not is_told(query._replace(model=B), under="/elsewhere"), "there is nothing at all"
    first = index.waiting(1, ANY, set())[0]
    index.keep({first.number: vectors(first.text, index)._replace(model=B)})
    assert not is_told(query._replace(model=B))
