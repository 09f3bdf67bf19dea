"""Every benchmark in a tiny size: its fields, and that they fit together. No times are judged."""

from dataclasses import replace
from pathlib import Path

import pytest

from libmem.abi.errors import MemError
from memosd.tools.bench import boot, fairness, mapping, pressure, put, reclaim, rpc, scale
from memosd.tools.bench.report import Report

pytestmark = pytest.mark.slow


def test_rpc(tmp_path: Path) -> None:
    report = rpc.measure(rpc.Plan(rounds=2, calls=20), tmp_path)
    found = _checked(report, {"ratio_p50": "≤ 1.6"})
    for label in ("p50", "p99"):
        # Of two rounds: the ratio of the means lies between the ratios.
        low, high = _extremes(report, f"ratio_{label}")
        ratio = found[f"stat_{label}_us"] / found[f"echo_{label}_us"]
        assert low * 0.999 <= ratio <= high * 1.001
    assert found["stat_p50_us"] <= found["stat_p99_us"]
    assert found["echo_p50_us"] <= found["echo_p99_us"]
    assert list(tmp_path.iterdir()) == []


def test_put(tmp_path: Path) -> None:
    plan = put.Plan(rounds=2, seconds=0.1, clients=4, processes=2, batch=4)
    report = put.measure(plan, tmp_path)
    found = _checked(report, {"group_ratio": "≥ 6", "batch_ratio": "≥ 10"})
    assert {"group_per_s", "batch_per_s", "lmdb_sync_per_s"} <= set(found)
    for side in ("group", "batch"):
        # The index may add to the time, never take from it.
        assert found[f"{side}_settled_per_s"] <= found[f"{side}_per_s"]
    assert list(tmp_path.iterdir()) == []


def test_mmap(tmp_path: Path) -> None:
    plan = mapping.Plan(rounds=2, attaches=2, size_bytes=(2 << 20) + 60)
    report = mapping.measure(plan, tmp_path)
    bars = {
        "attach_ms_p50": "≤ 1",
        "pickle_ratio": "≥ 50",
        "create_ratio": "≤ 1.3",
        "fault_ratio": "≤ 1.5",
    }
    found = _checked(report, bars)
    assert found["attach_ms_p50"] <= found["attach_ms_p99"]
    for field in ("create_durable_ratio", "fault_cold_ratio", "read_ms", "memfd_fill_ms"):
        assert found[field] > 0
    assert list(tmp_path.iterdir()) == []


def test_reclaim(tmp_path: Path) -> None:
    plan = reclaim.Plan(seconds=1.0, clients=2, budget_bytes=8 << 20)
    report = reclaim.measure(plan, tmp_path)
    found = {each.field: each.value for each in report.rows}
    bars = {each.field: str(each.bar) for each in report.rows if each.bar}
    assert bars == {"overruns": "≤ 0", "errors": "≤ 0", "fault_p99_ratio": "≤ 5"}
    assert (found["overruns"], found["errors"]) == (0, 0)
    assert 0 < found["peak_share"] <= 1
    assert 0 <= found["hits"] < 1
    assert found["fault_p50_ms"] <= found["fault_p99_ms"]
    assert list(tmp_path.iterdir()) == []


def test_scale(tmp_path: Path) -> None:
    plan = replace(
        scale.QUICK, cubes=150, baseline=30, writers=2, batch=40, boots=2, rounds=2, stats=10
    )
    report = scale.measure(plan, tmp_path)
    found = _checked(report, {"boot_s": "≤ 3", "rss_mib": "≤ 500", "stat_ratio": "≤ 1.5"})
    assert found["settled_per_s"] <= found["writes_per_s"]
    assert found["rss_mib"] == max(found["rss_boot_mib"], found["rss_used_mib"])
    assert found["private_mib"] <= found["rss_used_mib"] * 1.01
    assert found["bytes_per_cube"] == pytest.approx(found["disk_mib"] * 2**20 / plan.cubes)
    # The text alone is 160 bytes, and it is in the table and in the index.
    assert found["bytes_per_cube"] > 160
    assert list(tmp_path.iterdir()) == []


def test_fairness(tmp_path: Path) -> None:
    plan = fairness.Plan(rounds=1, seconds=0.3, budget_cubes=8, calm_cubes=3)
    report = fairness.measure(plan, tmp_path)
    found = {each.field: each.value for each in report.rows}
    assert found["hit_loss"] == found["hit_loss_most"] == 0, "counted, not timed"
    assert found["hits_alone"] == 1
    assert found["flood_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_boot(tmp_path: Path) -> None:
    report = boot.measure(boot.Plan(rounds=1), tmp_path)
    found = _checked(report, {"import_ms": "≤ 80", "ready_s": "≤ 1"})
    assert {"import_floor_ms", "interpreter_s"} <= set(found)
    assert list(tmp_path.iterdir()) == []


def test_pressure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "_PATIENCE_S", 2.0)
    plan = pressure.Plan(budget_mib=64, slack_mib=16, cube_mib=4)
    report = pressure.measure(plan, tmp_path)
    found = {each.field: each.value for each in report.rows}
    assert {each.field: str(each.bar) for each in report.rows if each.bar} == {
        "back_s": "≤ 2", "errors": "≤ 0", "deaths": "≤ 0",
    }  # fmt: skip
    assert (found["errors"], found["deaths"]) == (0, 0)
    assert 4 <= found["least_budget_mib"] <= 64
    assert found["lowest_mib"] + found["under_line_mib"] >= found["line_mib"] - 1
    assert 0 < found["regained_share"] <= 1
    assert list(tmp_path.iterdir()) == []


def test_pressure_needs_memory(tmp_path: Path) -> None:
    with pytest.raises(MemError, match="too little memory"):
        pressure.measure(pressure.Plan(budget_mib=1 << 30, slack_mib=1), tmp_path)


def test_a_broken_interpreter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "_TIMED_IMPORT", "raise SystemExit('no {}')")
    with pytest.raises(MemError, match="no libmem"):
        boot.measure(boot.Plan(rounds=1), tmp_path)


def _checked(report: Report, bars: dict[str, str]) -> dict[str, float]:
    """The fields, once every bar is the promised one and every number makes sense."""
    found = {each.field: each.value for each in report.rows}
    assert len(found) == len(report.rows)
    assert {each.field: str(each.bar) for each in report.rows if each.bar} == bars
    assert all(value > 0 for value in found.values())
    for each in report.rows:
        assert each.note
        if each.low is not None and each.high is not None:
            assert each.low <= each.value <= each.high
    return found


def _extremes(report: Report, field: str) -> tuple[float, float]:
    [found] = [each for each in report.rows if each.field == field]
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high
