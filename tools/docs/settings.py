"""`docs/man/memosd.toml.5`: the configuration, out of the shipped file that is its manual.

Pure but for reading that file; called by `__main__` alone. The shape it relies on: a table opens
with `[name]`, prose stands in comment lines above one or more keys, an empty line parts blocks.
A block of prose without keys below its table's line is that table's own.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from memosd.tools.docs.roff import Page

__all__ = ["render"]

_TITLE: Final = re.compile(r"# --- (.*?) -*$")
_TABLE: Final = re.compile(r"\[(\w+)\]$")
_INTRODUCTION: Final = """\
memosd reads this file once, at its start, when it is called with \
"memosd --config FILE"; the service unit names /etc/memosd/memosd.toml. The file is TOML. \
Every key may be left out and then has the value shown here, so an empty file is a complete one. \
A key that memosd does not know is refused with the nearest one that it does know; \
"memosd --config FILE --check" only looks.

Sizes are a number of bytes or a string with a unit: "512 MiB", "1.5 GiB" (powers of 1024; B, \
KiB, MiB, GiB, TiB). Keys that end in _s are seconds and may have a fraction."""


class _Block(NamedTuple):
    """Lines between empty lines: what they say and the keys they say it of."""

    title: str
    table: str
    keys: tuple[str, ...]
    prose: str


def render(version: str, shipped: Path) -> str:
    """The page, from `etc/memosd.toml` at `shipped`."""
    page = Page("memosd.toml", 5, version)
    page.section("Name")
    page.text("memosd.toml - configuration of memosd(8)")
    page.section("Description")
    page.text(_INTRODUCTION)
    for block in _blocks(shipped.read_text(encoding="utf-8")):
        if block.title:
            page.section(block.title)
        if block.table:
            page.text(f"Table [{block.table}].")
        if block.keys:
            page.item(block.keys, block.prose)
        elif block.prose:
            page.text(block.prose)
    page.section("See also")
    page.text("memosd(8), memctl(1)")
    return page.render()


def _blocks(text: str) -> Iterator[_Block]:
    """The blocks from the first table's title on; what stands above it is about the file."""
    has_begun = False
    for lines in (block.split("\n") for block in re.split(r"\n{2,}", text.strip())):
        titles = [match[1] for line in lines if (match := _TITLE.match(line))]
        has_begun = has_begun or bool(titles)
        if not has_begun:
            continue
        tables = [match[1] for line in lines if (match := _TABLE.match(line))]
        prose = [line[1:].strip() for line in lines if line[:1] == "#" and not _TITLE.match(line)]
        keys = [line for line in lines if line and line[0] not in "#["]
        yield _Block("".join(titles), "".join(tables), tuple(keys), "\n".join(prose))
