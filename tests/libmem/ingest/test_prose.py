"""Cutting prose: sizes hold, nothing is lost, what fits stays whole."""

from hypothesis import given
from hypothesis import strategies as st

from libmem.ingest.prose import PIECE_MAX, fitted, packed, paragraphs, sentences

texts = st.text(st.sampled_from("ab .!?\n\t。é"), max_size=6000)


def words(text: str) -> list[str]:
    return list("".join(text.split()))


@given(texts)
def test_no_piece_is_too_long_and_none_is_lost(text: str) -> None:
    pieces = packed(part for block in paragraphs(text) for part in fitted(block))
    assert all(0 < len(piece) <= PIECE_MAX for piece in pieces)
    assert words("".join(pieces)) == words(text)


@given(st.lists(st.text("a b", min_size=1, max_size=PIECE_MAX), max_size=9))
def test_what_fits_is_never_cut(blocks: list[str]) -> None:
    pieces = packed(blocks, "|")
    assert "|".join(pieces) == "|".join(blocks)
    assert all(list(fitted(block)) == [block] for block in blocks)


def test_sentences_end_at_their_marks() -> None:
    text = 'He said "No." Then he left! Really? 山川。草木。 It costs 3.50 a piece.\nA line'
    assert sentences(text) == [
        'He said "No."', "Then he left!", "Really?", "山川。", "草木。", "It costs 3.50 a piece.",
        "A line",
    ]  # fmt: skip


def test_a_text_without_seams_is_cut_all_the_same() -> None:
    assert [len(part) for part in fitted("x" * 3000)] == [1200, 1800]


def test_small_blocks_come_together_and_a_scrap_joins_the_last() -> None:
    assert packed(["a" * 500, "b" * 500, "c" * 500]) == ["a" * 500 + "\n\n" + "b" * 500, "c" * 500]
    assert packed(["a" * 1100, "b" * 150]) == ["a" * 1100 + "\n\n" + "b" * 150]
    assert packed([]) == []
