"""The table and the JSON object."""

import io
import json
from pathlib import Path

import pytest

from memosd.tools.bench.report import (
    Machine,
    Report,
    at_least,
    at_most,
    dump,
    print_table,
    row,
    to_json,
)
from memosd.tools.bench.samples import Sample

MACHINE = Machine("A processor", 2, 24.0, "Linux 6.1", "3.11.2", "ext4")
MET = row("fast_ratio", Sample(1.25, 1.0, 1.5), "ours / theirs", at_most(1.6))
MISSED = row("group_ratio", Sample(4.5, 4.0, 5.0), "clients / LMDB", at_least(6))
PLAIN = row("writes_per_s", 12345.678, "all of them")


@pytest.mark.parametrize(
    ("bar", "value", "is_met"),
    [
        (at_most(1.6), 1.6, True),
        (at_most(1.6), 1.61, False),
        (at_least(6), 6.0, True),
        (at_least(6), 5.99, False),
    ],
)
def test_a_bar_includes_its_limit(bar: object, value: float, is_met: bool) -> None:
    assert row("field", value, "", bar).is_met is is_met  # type: ignore[arg-type]


def test_the_object_has_the_fields_at_its_top() -> None:
    found = json.loads(dump(to_json(Report("rpc", (MET, PLAIN), ("a note",)), MACHINE)))
    assert found["benchmark"] == "rpc"
    assert found["fast_ratio"] == 1.25
    assert found["writes_per_s"] == pytest.approx(12345.678, rel=1e-4)
    assert found["bars"] == {"fast_ratio": {"bar": "≤ 1.6", "is_met": True}}
    assert found["spread"] == {"fast_ratio": [1.0, 1.5]}
    assert found["is_met"] is True
    assert found["notes"] == ["a note"]
    assert found["machine"]["cores"] == 2


def test_a_missed_bar_shows_in_both() -> None:
    report = Report("put", (MET, MISSED))
    found = to_json(report, MACHINE)
    assert found["is_met"] is False
    assert found["bars"]["group_ratio"] == {"bar": "≥ 6", "is_met": False}
    line = next(line for line in _table(report).splitlines() if "group_ratio" in line)
    assert "NO" in line
    assert "≥ 6" in line


def test_the_table_holds_every_row_whole() -> None:
    report = Report("put", (MET, MISSED, PLAIN), ("32 clients",))
    text = _table(report)
    for each in report.rows:
        assert each.field in text
        assert each.note in text
    assert "12,346" in text
    assert "1.00 … 1.50" in text
    assert "32 clients" in text
    assert str(MACHINE) in text


def test_a_table_in_a_file_has_no_colour_and_no_cut() -> None:
    text = _table(Report("put", (MISSED,)))
    assert "\x1b" not in text
    assert "…" in text  # only of the spread
    assert text.count("…") == 2  # the heading and one row


def test_this_machine_is_described(tmp_path: Path) -> None:
    machine = Machine.here(tmp_path)
    assert machine.cores >= 1
    assert machine.memory_gib > 0
    assert machine.file_system not in {"", "?"}


def _table(report: Report) -> str:
    out = io.StringIO()
    print_table(report, MACHINE, out)
    return out.getvalue()
