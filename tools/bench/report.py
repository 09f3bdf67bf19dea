"""What a benchmark found, as a table for people and as one JSON object for programs.

Owns the shape of both. Invariant: the table and the JSON object hold the same rows; a missed bar
stands in both as plainly as a met one.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

import psutil

from memosd.tools.bench.samples import Sample

__all__ = [
    "Bar",
    "Machine",
    "Report",
    "Row",
    "at_least",
    "at_most",
    "dump",
    "print_table",
    "row",
    "to_json",
]

_WIDTH: Final = 120


class Bar(NamedTuple):
    """What a value must reach: no more than the limit where it is a ceiling, else no less."""

    limit: float
    is_ceiling: bool

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.is_ceiling else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.is_ceiling else '≥'} {self.limit:g}"


def at_most(limit: float) -> Bar:
    return Bar(limit, is_ceiling=True)


def at_least(limit: float) -> Bar:
    return Bar(limit, is_ceiling=False)


class Row(NamedTuple):
    """One measured field. Low and high are the extremes over the rounds."""

    field: str
    value: float
    low: float | None = None
    high: float | None = None
    bar: Bar | None = None
    note: str = ""

    @property
    def is_met(self) -> bool:
        return self.bar is None or self.bar.is_met(self.value)


def row(field: str, value: Sample | float, note: str = "", bar: Bar | None = None) -> Row:
    """A row from a sample, with its spread, or from a single number."""
    if isinstance(value, Sample):
        return Row(field, value.median, value.low, value.high, bar, note)
    return Row(field, value, bar=bar, note=note)


class Report(NamedTuple):
    """A benchmark's rows, those with a bar first, and what one should know to read them."""

    benchmark: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        return all(each.is_met for each in self.rows)


class Machine(NamedTuple):
    """Where it ran, without naming anybody's machine."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    file_system: str

    @classmethod
    def here(cls, directory: Path) -> "Machine":
        """This machine, with the file system that holds `directory`."""
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
            python=platform.python_version(),
            file_system=_file_system(directory),
        )

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib:g} GiB, {self.system}, "
            f"Python {self.python}, {self.file_system}"
        )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """The type of the mount that holds `directory`, such as ext4."""
    place = directory.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (place, *place.parents) if folder in mounts), "?")


def to_json(report: Report, machine: Machine) -> dict[str, Any]:
    """The fields at the top level, beside them their bars and spreads under the same names. A field
    `a.0.5.b` is `b` of `0.5` of `a`."""
    barred = [each for each in report.rows if each.bar is not None]
    return {
        "benchmark": report.benchmark,
        **_nested(report.rows),
        "is_met": report.is_met,
        "bars": {each.field: {"bar": str(each.bar), "is_met": each.is_met} for each in barred},
        "spread": {
            each.field: [_rounded(each.low), _rounded(each.high)]
            for each in report.rows
            if each.low is not None and each.high is not None
        },
        "notes": list(report.notes),
        "machine": machine._asdict(),
    }


def _nested(rows: tuple[Row, ...]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for each in rows:
        first, *between = each.field.split(".")
        last = between.pop() if between else ""
        if not last:
            nested[first] = _rounded(each.value)
            continue
        inner = nested.setdefault(first, {})
        if between:
            inner = inner.setdefault(".".join(between), {})
        inner[last] = _rounded(each.value)
    return nested


def print_table(report: Report, machine: Machine, out: TextIO) -> None:
    """The rows as a table: value, spread over the rounds, bar, and whether it is met."""
    from rich.console import Console
    from rich.table import Table

    # A file or a pipe has no width: wide enough that nothing is cut or wrapped.
    console = Console(file=out, highlight=False, width=None if out.isatty() else _WIDTH)
    table = Table(
        title=f"memos-bench {report.benchmark}", title_justify="left", caption=str(machine)
    )
    table.add_column("field", no_wrap=True)
    for heading in ("value", "low … high", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    table.add_column("what it is")
    for each in report.rows:
        table.add_row(
            each.field,
            _shown(each.value),
            f"{_shown(each.low)} … {_shown(each.high)}"
            if each.low is not None and each.high is not None
            else "",
            str(each.bar or ""),
            "" if each.bar is None else "[green]yes[/]" if each.is_met else "[bold red]NO[/]",
            each.note,
        )
    console.print(table)
    for note in report.notes:
        console.print(f"  · {note}", markup=False)


def _shown(value: float) -> str:
    """Three significant digits, and all digits before the point, with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")


def _rounded(value: float) -> float:
    """Enough digits for any comparison, few enough for a person."""
    return float(f"{value:.6g}")


def dump(payload: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(payload, ensure_ascii=False)
