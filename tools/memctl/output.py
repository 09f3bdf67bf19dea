"""What memctl prints: JSON lines for programs, tables for people, plain columns for pipes.

Owns standard output of a command. Invariant: with `is_json` nothing but JSON goes there, one
object per line, with every field of a struct present and bytes as hex; without a terminal there is
neither colour nor a width, so that what a script reads does not depend on a window.
rich is imported at the first styled output only: it costs a tenth of memctl's start.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from memosd.tools.memctl.units import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Column", "Output", "json_line", "plain"]

T = TypeVar("T")

_BATCH_ROWS: Final = 1000
"""Rows that are held to measure column widths; a longer table streams on with those."""


class Column(NamedTuple, Generic[T]):
    """One column of a table of T."""

    title: str
    cell: Callable[[T], str]
    is_right: bool = False
    style: str = ""


def plain(value: object) -> Any:
    """`value` in JSON's types: structs as objects with all fields, bytes as hex, enums as values.

    msgspec's own conversion leaves defaults out and writes base64; programs want neither.
    """
    match value:
        case msgspec.Struct():
            return {field: plain(getattr(value, field)) for field in value.__struct_fields__}
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case Enum():
            return value.value
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case str() | int() | float() | None:  # bool is an int
            return value
        case _:
            return str(value)  # what else an attribute may hold, such as a time


def json_line(value: object) -> str:
    """`value` as one line of JSON."""
    return msgspec.json.encode(plain(value)).decode()


class Output:
    """A command's standard output. Created by the command layer, one per command."""

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.is_tty = sys.stdout.isatty() and not is_json

    @cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        return Console(highlight=False, markup=False, emoji=False)

    def record(self, value: object, text: str) -> None:
        """One result: `value` for programs, `text` for people."""
        print(json_line(value) if self.is_json else text)

    def event(self, value: object, text: str) -> None:
        """One result of a stream, visible at once."""
        self.record(value, text)
        sys.stdout.flush()

    def styled(self, parts: Sequence[tuple[str, str]]) -> None:
        """One line of (text, style) parts; styles show on a terminal only."""
        if not self.is_tty:
            print("".join(text for text, _ in parts))
            return
        from rich.text import Text

        self._console.print(Text.assemble(*parts), soft_wrap=True)

    def render(self, renderable: "RenderableType") -> None:
        """Something of rich's; for a terminal only."""
        self._console.print(renderable)

    def table(self, columns: Sequence[Column[T]], items: Iterable[T]) -> int:
        """Print a row per item and return their number; nothing at all without items.

        Streams: at most _BATCH_ROWS items are held.
        """
        if self.is_json:
            return self._json_rows(items)
        rows = ([printable(column.cell(item)) for column in columns] for item in items)
        batches = iter(lambda: list(itertools.islice(rows, _BATCH_ROWS)), [])
        draw = self._rich_rows if self.is_tty else self._plain_rows
        return draw(columns, batches)

    @staticmethod
    def _json_rows(items: Iterable[object]) -> int:
        count = 0
        for item in items:
            print(json_line(item))
            count += 1
        return count

    @staticmethod
    def _plain_rows(columns: Sequence[Column[T]], batches: Iterator[list[list[str]]]) -> int:
        count = 0
        widths = [len(column.title) for column in columns]
        for batch in batches:
            lines = batch
            if not count:
                for at, width in enumerate(widths):
                    widths[at] = max(width, *(len(row[at]) for row in batch))
                lines = [[column.title for column in columns], *batch]
            for row in lines:
                cells = [
                    cell.rjust(width) if column.is_right else cell.ljust(width)
                    for cell, width, column in zip(row, widths, columns, strict=True)
                ]
                print("  ".join(cells).rstrip())
            count += len(batch)
        return count

    def _rich_rows(self, columns: Sequence[Column[T]], batches: Iterator[list[list[str]]]) -> int:
        from rich.table import Table
        from rich.text import Text

        count = 0
        for batch in batches:
            table = Table(box=None, pad_edge=False, header_style="bold", show_header=not count)
            for column in columns:
                table.add_column(
                    column.title,
                    justify="right" if column.is_right else "left",
                    style=column.style,
                    # The last column is the name or the prose: it alone gives way.
                    no_wrap=column is not columns[-1],
                    overflow="fold",
                )
            for row in batch:
                table.add_row(*map(Text, row))
            self.render(table)
            count += len(batch)
        return count
