"""Markdown cut along its structure. Pure functions; the parser is markdown-it.

A section, what stands between two headings, gives one or more pieces with the path of its headings
as title. Paragraphs, lists, quotes, code and tables stay whole as far as they fit; their source is
kept as it was written.
"""

import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from libmem.ingest.prose import PIECE_MAX, fitted, packed

if TYPE_CHECKING:
    from markdown_it.token import Token

__all__ = ["Section", "sections"]

_FRONT_MATTER: Final = re.compile(r"\A---\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_HEADING_MAX: Final = 200
_PROSE: Final = frozenset({"paragraph_open", "blockquote_open"})


class Section(NamedTuple):
    """A piece of a document, and under which headings it stands: `Guide > Install`."""

    title: str
    text: str


class _Block(NamedTuple):
    """A part of the source: `kind` is markdown-it's name of what opens it."""

    kind: str
    text: str
    heading: str = ""
    level: int = 0


_END: Final = _Block("heading_open", "", "", 1)


def sections(text: str) -> Iterator[Section]:
    """The pieces of a document, in order."""
    path: list[tuple[int, str]] = []
    waiting: list[str] = []
    for block in chain(_blocks(text), [_END]):
        if not block.level:
            waiting += _fitted(block)
            continue
        if not waiting and path and block.level <= path[-1][0]:
            # Nothing stands below it: it is all that its section says.
            waiting, path = [path[-1][1]], path[:-1]
        title = " > ".join(heading for _, heading in path if heading)
        yield from (Section(title, piece) for piece in packed(filter(None, waiting)))
        path = [part for part in path if part[0] < block.level]
        path.append((block.level, block.heading[:_HEADING_MAX]))
        waiting = list(fitted(block.heading)) if len(block.heading) > _HEADING_MAX else []


def _blocks(text: str) -> Iterator[_Block]:
    """The outermost blocks. What the parser takes in silence (definitions of links) stays too."""
    from markdown_it import MarkdownIt

    front = _FRONT_MATTER.match(text)
    if front is not None:
        yield _Block("front_matter", front[1].strip())
        text = text[front.end() :]
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    at = 0
    for number, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        start, end = token.map
        yield from _plain("paragraph_open", lines[at:start])
        at = max(at, end)
        if token.type == "heading_open":
            yield _Block(token.type, "", _plain_text(tokens[number + 1]), int(token.tag[1]))
        elif token.type != "hr":
            yield from _plain(token.type, lines[start:end])
    yield from _plain("paragraph_open", lines[at:])


def _plain(kind: str, lines: list[str]) -> Iterator[_Block]:
    source = "\n".join(lines).strip("\n").rstrip()
    if source:
        yield _Block(kind, source)


def _plain_text(inline: "Token") -> str:
    """A heading's words without their markup."""
    words = "".join(child.content or " " for child in inline.children or ())
    return " ".join(words.split())


def _fitted(block: _Block) -> Iterator[str]:
    if block.kind in _PROSE:
        return fitted(block.text)
    if block.kind == "table_open":
        return _table(block.text)
    return fitted(block.text, str.splitlines, "\n")


def _table(source: str) -> Iterator[str]:
    """A table in parts, each with the head: rows mean nothing without it."""
    head, _, rows = source.partition("\n")
    rule, _, rows = rows.partition("\n")
    room = PIECE_MAX - len(head) - len(rule) - 2
    if len(source) <= PIECE_MAX or room < PIECE_MAX // 2:
        yield from fitted(source, str.splitlines, "\n")
        return
    part: list[str] = []
    for row in rows.splitlines():
        if part and sum(map(len, part)) + len(part) + len(row) > room:
            yield "\n".join((head, rule, *part))
            part = []
        part += fitted(row) if len(row) > room else (row,)
    yield from fitted("\n".join((head, rule, *part)), str.splitlines, "\n")
