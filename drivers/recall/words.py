"""A query as words, each with its place in it.

Pure functions, called by what reads a query (reading.py). One pass over the text, and no pattern
here can go back over what it has read: whatever is typed, the time is proportional to its length.
"""

import re
import unicodedata
from typing import Final, NamedTuple

__all__ = ["Word", "fold", "fold_name", "words_of"]

_LETTER: Final = (
    r"\w\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
    r"\u0e00-\u109f\u1780-\u17d3\u200c\u200d"
)
"""What a word is made of: `\\w`, and the marks of the scripts that need them, which `\\w` lacks."""

_WORD: Final = re.compile(
    r"(?P<number>(?<![\w.])\d{1,4}(?P<mark>[-/.])\d{1,2}(?P=mark)\d{1,4}"
    r"(?:T\d\d:\d\d(?::\d\d)?Z?)?(?![\w]|[-/.]\d))"
    rf"|[{_LETTER}]+|[^\s{_LETTER}]"
)
_ACCENTS: Final = re.compile("[\u0300-\u036f]+")


class Word(NamedTuple):
    """A word, a date in digits, or one mark."""

    folded: str
    start: int
    end: int
    """query[start:end] is the word as it was typed."""
    is_numeric_date: bool


def fold(text: str) -> str:
    """Without case and Latin accents."""
    if text.isascii():
        return text.lower()
    return _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()


def fold_name(name: str) -> str:
    """As `fold`, each run of spaces or hyphens one space."""
    folded = fold(name)
    return folded if folded.isalnum() else " ".join(folded.replace("-", " ").split())


def words_of(query: str) -> list[Word]:
    """The words and marks of a query, in order."""
    return [
        Word(fold(found[0]), found.start(), found.end(), found["number"] is not None)
        for found in _WORD.finditer(query)
    ]
