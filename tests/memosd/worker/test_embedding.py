"""Batches in slices: every text gets its own vectors, whatever it was embedded with."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.jobs import EmbedRequest, EmbedResult, JobClass
from libmem.abi.wire import args_decoder, encode
from memosd.worker.embedding import embedding_table
from memosd.worker.loop import Slices

MODEL = "f" * 64


class Model:
    """Vectors of two numbers, the text's length and the row's; a sentence for each full stop."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def embed(self, texts: Sequence[str], *, has_pieces: bool) -> EmbedResult:
        self.batches.append(list(texts))
        pieces = tuple(text.count(".") if has_pieces else 0 for text in texts)
        return EmbedResult(MODEL, 2, pieces, b"".join(map(rows, texts, pieces)))


def rows(text: str, pieces: int) -> bytes:
    """What belongs to one text."""
    return b"".join(struct.pack("<2f", len(text), row) for row in range(1 + pieces))


def done(slices: Slices) -> tuple[EmbedResult, int]:
    """The result, and how often others could go first."""
    yields = 0
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return args_decoder(EmbedResult).decode(end.value), yields
        yields += 1


def test_a_query_is_one_slice() -> None:
    model = Model()
    request = EmbedRequest(("who saw it?",), has_pieces=False)
    result, yields = done(embedding_table(model)[JobClass.QUERY](encode(request)))
    assert result == EmbedResult(MODEL, 2, (0,), rows("who saw it?", 0))
    assert yields == 0


@given(st.lists(st.text("a.", max_size=3000), max_size=12), st.booleans())
def test_each_text_gets_its_own_vectors(texts: list[str], has_pieces: bool) -> None:
    model = Model()
    request = EmbedRequest(tuple(texts), has_pieces)
    result, yields = done(embedding_table(model)[JobClass.EMBED](encode(request)))
    pieces = tuple(text.count(".") if has_pieces else 0 for text in texts)
    assert result.pieces == pieces
    assert result.vectors == b"".join(map(rows, texts, pieces))
    assert yields == len(model.batches)
    lengths = [len(text) for batch in model.batches for text in batch]
    assert lengths == sorted(lengths)  # like with like: nothing is padded for nothing


@pytest.mark.parametrize(("text_s", "slices"), [(1.0, 8), (0.005, 5), (0.0001, 1)])
def test_slices_grow_and_shrink_to_what_30_ms_hold(
    monkeypatch: pytest.MonkeyPatch, text_s: float, slices: int
) -> None:
    model = Model()
    now_s = 0.0

    def embed(texts: Sequence[str], *, has_pieces: bool) -> EmbedResult:
        nonlocal now_s
        now_s += text_s * len(texts)
        return Model.embed(model, texts, has_pieces=has_pieces)

    monkeypatch.setattr(model, "embed", embed)
    monkeypatch.setattr("memosd.worker.embedding.time.perf_counter", lambda: now_s)
    work = embedding_table(model)[JobClass.EMBED]
    for _ in range(5):
        model.batches.clear()
        done(work(encode(EmbedRequest(("a" * 100,) * 30))))
    sizes = [len(batch) for batch in model.batches]
    assert abs(len(sizes) - slices) <= 1


def test_nothing_is_nothing() -> None:
    result, _ = done(embedding_table(Model())[JobClass.EMBED](encode(EmbedRequest(()))))
    assert (result.pieces, result.vectors) == ((), b"")
