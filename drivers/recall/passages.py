"""What the index keeps of a text: passages, cleaned and cut.

Pure functions, called by the index when it writes and when it shows a snippet. A long text is
cut into passages because ranking by BM25, a snippet and an erasure should cost what a passage
costs, however long the document is.

Chinese and Japanese are written without spaces, so the tokenizer would see a whole clause as one
word. A zero-width space after every such character makes each a word of its own; a query looks
for pairs of neighbours (query.py). The spaces are taken out again before anybody sees a snippet.
"""

import re
from typing import Final

from libmem.abi.index import HIT_END, HIT_START

__all__ = [
    "PASSAGE_CHARS",
    "SEPARATOR",
    "SPACELESS",
    "clean",
    "cut",
    "is_question",
    "shown",
    "spaced",
]

PASSAGE_CHARS: Final = 2000
"""About 350 English words: a page of a paperback. Most memories are one passage."""

SPACELESS: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Han, as the inside of a regular expression's character class."""

SEPARATOR: Final = "\u200b"
_SPACELESS_CHAR: Final = re.compile(f"([{SPACELESS}])")
_QUESTION_MARKS: Final = ("?", "\uff1f", "\u061f")  # also full width and Arabic
_CLOSING: Final = " \t\r\n\"')*_\u2019\u201d\u00bb\u300d\u300f"
"""What may follow a question mark: quotation marks, brackets, marks of emphasis."""
_DROPPED: Final = ("\0", HIT_START, HIT_END, SEPARATOR)
_WITHOUT_DROPPED: Final = dict.fromkeys(map(ord, _DROPPED))


def spaced(text: str) -> str:
    """Put a zero-width space after every character of a spaceless script."""
    return text if text.isascii() else _SPACELESS_CHAR.sub(rf"\1{SEPARATOR}", text)


def shown(snippet: str) -> str:
    """A snippet as its reader should see it."""
    return snippet.replace(SEPARATOR, "")


def clean(text: str) -> str:
    """Without what no snippet could show."""
    for character in _DROPPED:
        if character in text:
            text = text.translate(_WITHOUT_DROPPED)
            break
    # A lone surrogate has no UTF-8; it can only come from a broken producer.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def is_question(text: str) -> bool:
    """Does it end with a question mark, a remark in square brackets after it aside?"""
    text = text.rstrip()
    if text.endswith("]"):
        text = text[: max(0, text.rfind("["))]
    return text.rstrip(_CLOSING).endswith(_QUESTION_MARKS)


def cut(text: str) -> list[str]:
    """The passages of a text, at least one; joined they are the text without what is dropped.

    A passage ends after a line, else after a word, else where it is full.
    """
    text = clean(text)
    passages = []
    start = 0
    while len(text) - start > PASSAGE_CHARS:
        end = _end_of_passage(text, start)
        passages.append(spaced(text[start:end]))
        start = end
    passages.append(spaced(text[start:]))
    return passages


def _end_of_passage(text: str, start: int) -> int:
    full = start + PASSAGE_CHARS
    for mark in ("\n", " "):
        # Not in the first half: a heading alone is no passage.
        at = text.rfind(mark, start + PASSAGE_CHARS // 2, full)
        if at >= 0:
            return at + 1
    return full
