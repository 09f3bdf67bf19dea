"""A query as words, each with its place in it.

Pure functions, called by what reads a query (reading.py). One pass over the text, and no pattern
here can go back over what it has read: whatever is typed, the time is proportional to its length.
"""

import re
import unicodedata
from itertools import islice
from typing import Final, NamedTuple

__all__ = ["APOSTROPHES", "WORDS_READ", "Word", "fold", "fold_name", "possessive", "words_of"]

WORDS_READ: Final = 2_000
"""Words and marks that are looked at; in a longer query nobody is named behind them."""

_LETTER: Final = (
    r"\w\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
    r"\u0e00-\u109f\u1780-\u17d3\u200c\u200d"
)
"""What a word is made of: `\\w`, and the marks of the scripts that need them, which `\\w` lacks."""

_WORD: Final = re.compile(
    r"(?<![\w.])\d{1,4}([-/.])\d{1,2}\1\d{1,4}(?:T\d\d:\d\d(?::\d\d)?Z?)?(?!\w|[-/.]\d)"
    rf"|[{_LETTER}]+|[^\s{_LETTER}]"
)
APOSTROPHES: Final = ("'", "\u2019")
_ACCENTS: Final = re.compile("[\u0300-\u036f]+")


class Word(NamedTuple):
    """A word, a date in digits, or one mark."""

    folded: str
    start: int
    end: int
    """query[start:end] is the word as it was typed."""


def fold(text: str) -> str:
    """Without case and Latin accents."""
    if text.isascii():
        return text.lower()
    return _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()


def fold_name(name: str) -> str:
    """As `fold`, each run of spaces one space."""
    return " ".join(fold(name).split())


def possessive(query: str, at: int) -> int:
    """The length of an `'s` that stands here; 0 where there is none."""
    is_one = query[at : at + 1] in APOSTROPHES and query[at + 1 : at + 2] in ("s", "S")
    return 2 if is_one and not query[at + 2 : at + 3].isalnum() else 0


def words_of(query: str) -> list[Word]:
    """The words and marks of a query, in order; of the first WORDS_READ."""
    places = [found.span() for found in islice(_WORD.finditer(query), WORDS_READ)]
    return [Word(fold(query[start:end]), start, end) for start, end in places]
