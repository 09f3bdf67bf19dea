"""The passage of a passage that a search result shows.

Pure, called by the ranking. FTS5 has a snippet() of its own, but it opens every word's posting
list again for every hit, which for a long query takes longer than the search did.
"""

from collections.abc import Sequence, Set
from typing import Final

from libmem.abi.index import HIT_END, HIT_START
from memosd.drivers.recall.passages import SEPARATOR, shown
from memosd.drivers.recall.query import Tokenizer

__all__ = ["snippet"]

_WORDS: Final = 32
_LEAD: Final = 4
"""Words shown before the first match, so that it is read in its context."""

_ELLIPSIS: Final = "…"


def snippet(text: str, keys: Set[str], tokenize: Tokenizer) -> str:
    """Some 32 words of `text` with as many different words of `keys` as can be, each marked.

    `keys` are what `query.terms_of` made of the query; `text` is a passage as it is stored.
    """
    utf8 = text.encode()
    tokens = tokenize(utf8)
    if not tokens:
        return shown(text[: _WORDS * 8])
    matches = _matches(tokens, keys)
    first = _start_of_window(matches)
    last = min(first + _WORDS, len(tokens)) - 1
    parts = []
    at = 0 if first == 0 else tokens[first][0]
    for index in range(first, last + 1):
        start, end, _ = tokens[index]
        word = utf8[start:end].decode()
        parts.append(utf8[at:start].decode())
        parts.append(f"{HIT_START}{word}{HIT_END}" if matches[index] else word)
        at = end
    is_whole = last == len(tokens) - 1
    parts.append(utf8[at:].decode() if is_whole else _ELLIPSIS)
    # Characters of a spaceless script that match side by side are one match.
    shown_text = shown("".join(parts).replace(f"{HIT_END}{SEPARATOR}{HIT_START}", ""))
    return shown_text if first == 0 else _ELLIPSIS + shown_text


def _matches(tokens: Sequence[tuple[int, int, str]], keys: Set[str]) -> list[str]:
    """For every token the key that it matches, "" for none."""
    matches = [token if token in keys else "" for _, _, token in tokens]
    for index in range(len(tokens) - 1):
        (_, end, left), (start, _, right) = tokens[index], tokens[index + 1]
        # Only the separator between them: a pair of a spaceless script.
        if start - end == len(SEPARATOR.encode()) and left + right in keys:
            matches[index] = matches[index + 1] = left + right
    return matches


def _start_of_window(matches: Sequence[str]) -> int:
    """Where the window with the most different matches begins."""
    best, most = 0, 0
    for index, match in enumerate(matches):
        if match:
            start = max(0, index - _LEAD)
            different = len(set(matches[start : start + _WORDS]) - {""})
            if different > most:
                best, most = start, different
    return min(best, max(0, len(matches) - _WORDS))
