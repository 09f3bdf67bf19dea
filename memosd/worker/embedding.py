"""The jobs of class `query` and `embed`: texts in, unit vectors out.

Owns how a batch is cut into slices: texts of about the same length together, as many as take some
30 ms on this machine as it is just now. Whatever their order here, vectors return in the order of
the texts.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from libmem.abi.jobs import EmbedRequest, EmbedResult, JobClass
from libmem.abi.wire import args_decoder, encode
from memosd.worker.loop import Slices, Table

__all__ = ["Embedding", "Embeds", "embedding_table"]

_SLICE_S: Final = 0.03
_FIRST_SLICE: Final = 2_000
"""Characters, before anything was measured."""
_LEAST_SLICE: Final = 600
"""Characters, however busy the machine: texts that are embedded one by one take a third longer."""
_TEXT_MAX: Final = 4_000
"""Characters that count of one text: what exceeds the model's window is cut off."""
_TEXT_COSTS: Final = 50
"""Characters that could be embedded in the time that a text takes however short it is."""
_FLOAT_BYTES: Final = 4
_request: Final = args_decoder(EmbedRequest)


class Embeds(Protocol):
    """A model, as `drivers/plaintext/bottom.py` has it."""

    def embed(self, texts: Sequence[str], *, has_pieces: bool) -> EmbedResult: ...


class Embedding:
    """One model, and how fast it is."""

    def __init__(self, model: Embeds) -> None:
        self._model = model
        self._per_slice = float(_FIRST_SLICE)

    def query(self, body: bytes) -> Slices:
        """One slice: somebody waits for it."""
        yield from ()
        request = _request.decode(body)
        return encode(self._model.embed(request.texts, has_pieces=request.has_pieces))

    def embed(self, body: bytes) -> Slices:
        """Slice by slice."""
        request = _request.decode(body)
        joint = _Joint(len(request.texts))
        order = sorted(range(len(request.texts)), key=lambda place: len(request.texts[place]))
        for places in self._slices(request.texts, order):
            start = time.perf_counter()
            texts = [request.texts[place] for place in places]
            joint.put(places, self._model.embed(texts, has_pieces=request.has_pieces))
            self._learn(sum(map(_cost, texts)), time.perf_counter() - start)
            yield
        return encode(joint.result())

    def _slices(self, texts: Sequence[str], order: list[int]) -> Iterator[list[int]]:
        """Places of texts that go together; at least one."""
        start = 0
        while start < len(order):
            end, cost = start, 0.0
            while end < len(order):
                cost += _cost(texts[order[end]])
                if cost > self._per_slice and end > start:
                    break
                end += 1
            yield order[start:end]
            start = end

    def _learn(self, cost: int, took_s: float) -> None:
        # Half of it, so that one slice during which the machine did something else tells little;
        # bounded, so that one that took no time at all does not make the next one endless.
        measured = min(cost * _SLICE_S / max(took_s, 1e-6), 4 * self._per_slice)
        self._per_slice = max((self._per_slice + measured) / 2, _LEAST_SLICE)


class _Joint:
    """The results of slices, put together."""

    def __init__(self, texts: int) -> None:
        self._pieces = [0] * texts
        self._vectors = [b""] * texts
        self._model = ""
        self._dimensions = 0

    def put(self, places: list[int], result: EmbedResult) -> None:
        """The texts' vectors, in the order of `places`."""
        self._model, self._dimensions = result.model, result.dimensions
        row_bytes = _FLOAT_BYTES * result.dimensions
        start = 0
        for place, pieces in zip(places, result.pieces, strict=True):
            end = start + (1 + pieces) * row_bytes
            self._pieces[place] = pieces
            self._vectors[place] = result.vectors[start:end]
            start = end

    def result(self) -> EmbedResult:
        return EmbedResult(
            self._model, self._dimensions, tuple(self._pieces), b"".join(self._vectors)
        )


def embedding_table(model: Embeds) -> Table:
    """What a worker with this model does, by class of jobs."""
    embedding = Embedding(model)
    return {JobClass.QUERY: embedding.query, JobClass.EMBED: embedding.embed}


def _cost(text: str) -> int:
    return _TEXT_COSTS + min(len(text), _TEXT_MAX)
