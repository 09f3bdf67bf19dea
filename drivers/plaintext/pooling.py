"""From token vectors to the vectors of a text and of its sentences.

Pure arithmetic over one forward pass; docs/design/0005-recall-ranking.md says why these.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

__all__ = ["Span", "end_tokens", "pooled", "sentences"]

Span = tuple[int, int]
"""Tokens from, and up to but without."""

_ENDS: Final = frozenset(
    ".!?[]"
    "\u3002\uff01\uff1f\uff0e\uff61"  # ideographic and fullwidth
    "\u2026\u061f\u06d4\u0964\u0965"  # ellipsis, Arabic, Devanagari
)
"""A sentence ends behind one of these. Brackets hold what is said beside it."""
_MARKERS: Final = "▁Ġ"
"""How tokenizers write a space before a token."""
_TOKENS_MIN: Final = 3
"""A shorter piece ("Wow!") says nothing that a question could be about."""
_TINY: Final = 1e-12


def end_tokens(vocabulary: Mapping[str, int]) -> frozenset[int]:
    """The tokens that end a sentence."""
    plain = ((token.strip(_MARKERS), number) for token, number in vocabulary.items())
    return frozenset(number for token, number in plain if token and _ENDS.issuperset(token))


def sentences(ids: Sequence[int], text: Span, ends: frozenset[int]) -> list[Span]:
    """Its sentences; none where it is one itself. `text`: where the special tokens end and begin
    again."""
    start, found = text[0], []
    for index in range(*text):
        if ids[index] in ends or index == text[1] - 1:
            if index + 1 - start >= _TOKENS_MIN:
                found.append((start, index + 1))
            start = index + 1
    return [] if found == [text] else found


def pooled(hidden: Any, spans: Iterable[Span]) -> Any:
    """The unit mean of each span's rows: float32 [tokens, dimensions] -> [spans, dimensions]."""
    means = np.stack([hidden[start:end].mean(0) for start, end in spans])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), _TINY)
