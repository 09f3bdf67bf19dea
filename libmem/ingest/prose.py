"""Cutting text into pieces of a size that is read, ranked and shown as one thing. Pure functions.

Sizes are characters. Invariants: a piece has at most `PIECE_MAX`; what fits into one is never cut;
no word of the text is lost.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

__all__ = ["PIECE_MAX", "fitted", "packed", "paragraphs", "sentences"]

PIECE_MAX: Final = 2000
"""The index cuts passages of this length: a piece is one passage."""

_FULL: Final = 1200
"""A piece is closed before it grows beyond this: some 250 tokens, what sentence encoders read."""

_SCRAP: Final = 200
"""A last piece shorter than this says little alone: it joins the one before."""

_PARAGRAPH: Final = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE: Final = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|(?<=[。！？])|\n")  # noqa: RUF001


def paragraphs(text: str) -> list[str]:
    """The parts between blank lines."""
    return [part.strip() for part in _PARAGRAPH.split(text) if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph, by their marks; a line's end is one too."""
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    spans = zip([0, *ends], [*ends, len(text)], strict=True)
    return [part for start, end in spans if (part := text[start:end].strip())]


def packed(blocks: Iterable[str], joint: str = "\n\n") -> list[str]:
    """Blocks of at most `PIECE_MAX`, put together in order as long as they are few enough."""
    pieces: list[str] = []
    for block in blocks:
        if pieces and len(pieces[-1]) + len(joint) + len(block) <= _FULL:
            pieces[-1] += joint + block
        else:
            pieces.append(block)
    if len(pieces) > 1 and len(pieces[-1]) < _SCRAP:
        whole = pieces[-2] + joint + pieces[-1]
        if len(whole) <= PIECE_MAX:
            pieces[-2:] = [whole]
    return pieces


def fitted(
    block: str, cut: Callable[[str], list[str]] = sentences, joint: str = " "
) -> Iterator[str]:
    """A block as it is where it fits, else in parts that `cut` finds in it."""
    if len(block) <= PIECE_MAX:
        yield block
        return
    parts = (part for whole in cut(block) for part in _chopped(whole))
    yield from packed(parts, joint)


def _chopped(text: str) -> Iterator[str]:
    """What has no seams: between words where there are any."""
    while len(text) > PIECE_MAX:
        space = text.rfind(" ", _FULL // 2, _FULL)
        end = space if space > 0 else _FULL
        yield text[:end].rstrip()
        text = text[end:].lstrip()
    if text:
        yield text
