"""Progress bars of long work, on standard error and for people only.

Invariant: nothing is drawn unless standard error is a terminal, so that pipes, logs and programs
never meet a bar. Used by the commands that move or verify many bytes.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["bytes_bar", "counter"]

Advance = Callable[[int], None]
"""Call with how much was done since the last call."""

_WORTH_BYTES: Final = 8 << 20
"""Below this the work is over before a bar would be read."""


def _ignore(_done: int) -> None:
    pass


@contextmanager
def bytes_bar(label: str, total_bytes: int, *, is_quiet: bool = False) -> Iterator[Advance]:
    """A bar of bytes with speed and time left; yields what to call as they move."""
    if is_quiet or total_bytes < _WORTH_BYTES or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total_bytes)
        yield lambda done: progress.advance(task, done)


@contextmanager
def counter(label: str, total: int, *, is_quiet: bool = False) -> Iterator[Advance]:
    """A bar of countable things, `n/total`."""
    if is_quiet or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)
