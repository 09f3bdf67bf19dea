"""Reads Markdown as far as the tests of the documents need: code blocks, links, headings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "DOCUMENTS",
    "ROOT",
    "Block",
    "Command",
    "anchors",
    "blocks",
    "commands",
    "links",
    "prose",
]

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_FENCE: Final = re.compile(r"^```(\S*) ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_PROMPT: Final = "$ "


class Block(NamedTuple):
    """A fenced block: its language, what follows it on the line, its text, where it stands."""

    language: str
    label: str
    text: str
    line: int


class Command(NamedTuple):
    """A command of a console block and the output shown below it."""

    text: str
    output: str


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], match[3], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def links(document: Path) -> list[str]:
    """The targets of a document's links, in order."""
    return _LINK.findall(prose(document))


def anchors(document: Path) -> set[str]:
    """The fragments that a document's headings can be linked by."""
    return {_anchor(title) for title in _HEADING.findall(prose(document))}


def _anchor(title: str) -> str:
    """As GitHub makes it: lower case, punctuation dropped, spaces to hyphens."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def commands(block: Block) -> Iterator[Command]:
    """What a console block has typed, each with the output it shows."""
    typed, output = "", ""
    for line in block.text.splitlines(keepends=True):
        if line.startswith(_PROMPT):
            if typed:
                yield Command(typed, output)
            typed, output = line.removeprefix(_PROMPT).strip(), ""
        else:
            output += line
    yield Command(typed, output)
