"""Bottom half of plaintext: vectors of texts. Runs in a worker process, which it may fill.

Owns how texts are batched. Invariant: the vectors of a text do not depend on the texts beside it,
within the last digits; whatever the text, it has some.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from libmem.abi.jobs import EmbedResult
from memosd.drivers.plaintext.encoder import Encoder, Tokens
from memosd.drivers.plaintext.pooling import Span, end_tokens, pooled, sentences

__all__ = ["Embedder"]

_BATCH_TOKENS: Final = 320
"""Padding included. What lies between two products of so many tokens still fits a core's cache;
twice as many are a fifth slower."""


class Embedder:
    """A sentence encoder and its pooling. One at a time: it sets torch's threads for the process.

    `fingerprint`: 64 hexadecimal digits; two that have the same make comparable vectors.
    """

    def __init__(self, source: str, threads: int) -> None:
        """`source`: a folder or a hub id. Errors: as `Encoder`."""
        torch.set_num_threads(threads)
        self._encoder = Encoder(source)
        self._ends = end_tokens(self._encoder.vocabulary)
        self.fingerprint = self._encoder.fingerprint
        self.dimensions = self._encoder.dimensions
        self.precision = self._encoder.precision

    def embed(self, texts: Sequence[str], *, has_pieces: bool) -> EmbedResult:
        """Of each text the whole, then its sentences, where asked for. Errors: ENOMEM as
        MemoryError or torch's RuntimeError."""
        tokens = self._encoder.tokens(texts)
        spans = [self._spans(each, has_pieces) for each in tokens]
        rows: list[Any] = [None] * len(texts)
        for batch in _batches(tokens):
            hidden = self._encoder.hidden([tokens[index].ids for index in batch])
            for index, vectors in zip(batch, hidden, strict=True):
                rows[index] = pooled(vectors, spans[index])
        vectors = np.concatenate(rows) if rows else np.empty((0, self.dimensions))
        return EmbedResult(
            self.fingerprint,
            self.dimensions,
            tuple(len(each) - 1 for each in spans),
            vectors.astype("<f4").tobytes(),
        )

    def _spans(self, tokens: Tokens, has_pieces: bool) -> list[Span]:
        whole = (0, len(tokens.ids))
        if not has_pieces:
            return [whole]
        return [whole, *sentences(tokens.ids, tokens.inner, self._ends)]


def _batches(tokens: Sequence[Tokens]) -> Iterator[list[int]]:
    """Texts of like length together: the least padding."""
    batch: list[int] = []
    for index in sorted(range(len(tokens)), key=lambda index: len(tokens[index].ids)):
        if batch and (len(batch) + 1) * len(tokens[index].ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
