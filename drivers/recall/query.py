"""From what a person typed to what FTS5 is asked.

Pure functions, called by the ranking. Invariant: whatever is typed, only quoted strings of token
characters reach the FTS5 parser, so user text can neither fail to parse nor act as an operator.

Scoring a passage costs about 0.5 us, so a word that half of 300,000 passages contain would cost
100 ms. `passes` therefore bounds how many passages a search scores; docs/design/0003.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Final, NamedTuple

from memosd.drivers.recall.passages import SPACELESS, spaced

__all__ = [
    "PASSAGES_SCORED",
    "TOKENIZER",
    "WORDS_MAX",
    "Pass",
    "Tokenizer",
    "any_of",
    "passes",
    "terms_of",
]

TOKENIZER: Final = ("porter", "unicode61", "remove_diacritics", "2", "categories", "L* N* Co Mn Mc")
"""English stems, no accents, no case. Marks (Mn, Mc) belong to words: Devanagari, Thai, Hebrew."""

QUERY_MAX_CHARS: Final = 10_000
"""Of a longer query only the beginning is looked at."""

TERMS_MAX: Final = 256
"""Distinct words of a query that are looked up."""

WORDS_MAX: Final = 32
"""Of those, how many of the rarest are searched for."""

PASSAGES_SCORED: Final = 5_000
"""The most passages that one pass scores: the newest ones, where more match."""

_COMMON_MAX: Final = 3
"""Common words that take part in scoring; each costs a walk along its whole posting list."""

Tokenizer = Callable[[bytes], Sequence[tuple[int, int, str]]]
"""UTF-8 -> (start, end, token), byte offsets."""

_SPACELESS_RUN: Final = re.compile(f"[{SPACELESS}]+")


class Pass(NamedTuple):
    """One question to FTS5."""

    expression: str
    weight: float
    """What the expression's BM25 is to be multiplied by."""


def terms_of(query: str, tokenize: Tokenizer) -> dict[str, str]:
    """The distinct words of a query: key -> quoted FTS5 string; empty for one without words.

    The key of a word is its stem, so words that share a stem are one. A run of a spaceless
    script becomes pairs of neighbours, each its own key.
    """
    query = query[:QUERY_MAX_CHARS]
    terms: dict[str, str] = {}
    for run in _SPACELESS_RUN.findall(query):
        for pair in [run[i : i + 2] for i in range(max(1, len(run) - 1))]:
            terms[pair] = f'"{spaced(pair)}"'
    utf8 = _SPACELESS_RUN.sub(" ", query).encode("utf-8", "replace")
    for start, end, token in tokenize(utf8):
        # The word as typed: FTS5 will fold and stem it again, and stemming twice is not the same.
        terms.setdefault(token, f'"{utf8[start:end].decode("utf-8", "replace")}"')
    return dict(islice(terms.items(), TERMS_MAX))


def any_of(terms: Sequence[str]) -> str:
    return " OR ".join(terms)


def passes(frequencies: Sequence[tuple[str, int]]) -> Iterator[Pass]:
    """Questions in order of worth; the caller stops when it has enough hits.

    `frequencies` are terms with the number of passages that contain them, rarest first, none
    zero. When all terms together match no more than PASSAGES_SCORED passages there is one pass
    and it is exact.
    """
    rare, common = _divide(frequencies)
    if rare and not common:
        yield Pass(any_of(rare), 1.0)
        return
    common = common[:_COMMON_MAX]
    if rare:
        # Only passages with a rare word, scored by all words. The left side counts in BM25 too,
        # so the common words stand twice and the sum is exactly double.
        twice = any_of([*rare, *common, *common])
        yield Pass(f"({any_of(rare)}) AND ({twice})", 0.5)
    if len(common) > 1:
        yield Pass(" AND ".join(common), 1.0)
    yield Pass(any_of(common), 1.0)


def _divide(frequencies: Sequence[tuple[str, int]]) -> tuple[list[str], list[str]]:
    """Rare terms, which match PASSAGES_SCORED passages at most between them, and the rest."""
    terms = [term for term, _ in frequencies]
    matches = list(accumulate(frequency for _, frequency in frequencies))
    rare = bisect_right(matches, PASSAGES_SCORED)
    return terms[:rare], terms[rare:]
