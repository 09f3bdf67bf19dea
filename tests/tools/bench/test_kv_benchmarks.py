"""The benchmarks of activation memory in a tiny size. No times are judged; results are."""

from pathlib import Path

import pytest

from memosd.tools.bench import (
    cost,
    kv,
    kv_int8,
    lora_learn,
    lora_page,
    prefix,
    share,
    shootdown,
    transmute,
)
from memosd.tools.bench.report import Report

pytestmark = pytest.mark.slow


def test_prefix(tmp_path: Path) -> None:
    plan = prefix.Plan(rounds=1, calls=8, cubes=20, tokens=1200)
    found = fields(prefix.measure(plan, tmp_path), {"find_ratio": "≤ 2"})
    assert found["find_p50_us"] <= found["find_p99_us"]
    assert list(tmp_path.iterdir()) == []


def test_kv(tmp_path: Path, smollm2: Path) -> None:
    plan = kv.Plan(rounds=1, full_rounds=1, attaches=2, tokens=64)
    bars = {
        "max_logit_diff": "≤ 0",
        "ttft_speedup": "≥ 25",
        "overhead_ratio": "≤ 1.1",
        "attach_growth": "≤ 1.5",
        "store_ratio": "≤ 1.5",
    }
    found = fields(kv.measure(plan, tmp_path), bars)
    assert found["max_logit_diff"] == 0.0
    assert found["find_ms"] + found["map_ms"] <= found["ttft_mapped_ms"]
    assert list(tmp_path.iterdir()) == []


def test_cost(tmp_path: Path, smollm2: Path) -> None:
    plan = cost.Plan(
        rounds=1, lengths=(64,), part_tokens=(64, 128), learning=1, disks=("quick", "far")
    )
    report = cost.measure(plan, tmp_path)
    found = fields(report, {"regret": "≤ 1.1", "worst_vs_recompute": "≤ 1.05"})
    # The better of the two is never worse than either.
    assert found["always_load"] >= 1.0
    assert found["always_compute"] >= 1.0
    classes = {field for field in found if field.startswith(("far_", "quick_"))}
    assert classes == {"far_64_s", "far_part_s", "quick_64_s", "quick_part_s"}
    assert list(tmp_path.iterdir()) == []


def test_cost_weighs_every_class_alike() -> None:
    plan = cost.Plan(rounds=2)
    short = [cost.Request(0.3, 0.5, s) for s in (0.2, 0.3, 0.3)] * plan.rounds
    found: cost.Found = {
        ("far", "96"): short,
        ("far", "1024"): [cost.Request(1.0, 1.0, 2.0)] * plan.rounds,
    }
    bars = {"regret": "≤ 1.1", "worst_vs_recompute": "≤ 1.05"}
    seen = fields(cost.report_of(plan, short, found), bars)
    assert seen["regret"] == pytest.approx((0.3 + 1.0) / (0.8 / 3 + 1.0))
    assert seen["always_compute"] == pytest.approx((0.8 / 3 + 2.0) / (0.8 / 3 + 1.0))
    assert seen["worst_vs_recompute"] == 1.0, "the median of ratios"


def test_share(tmp_path: Path, smollm2: Path) -> None:
    plan = share.Plan(processes=2, tokens=64, new_tokens=2)
    found = fields(share.measure(plan, tmp_path), {"pss_ratio": "≤ 1.15"})
    assert found["pss_ratio"] <= 1.15, "not a time: one copy for all"
    assert found["pss_mib"] <= found["rss_mib"]


def test_int8(tmp_path: Path, smollm2: Path) -> None:
    plan = kv_int8.Plan(tokens=128, next_tokens=4)
    report = kv_int8.measure(plan, tmp_path)
    assert report.benchmark == "kv-int8"
    found = fields(report, {"kl": "≤ 0.002", "bytes_ratio": "≤ 0.55"})
    assert 0 < found["error"] < 0.02
    assert found["kl"] < 0.02


def test_lora_page(tmp_path: Path, smollm2: Path) -> None:
    plan = lora_page.Plan(adapters=6, resident=3, uses=24, compared=2, rank=1, slots=1)
    found = fields(lora_page.measure(plan, tmp_path), {"swap_ratio": "≥ 5", "differing": "≤ 0"})
    assert found["differing"] == 0
    assert 0 < found["resident_share"] < 1
    assert list(tmp_path.iterdir()) == []


def test_lora_learn(tmp_path: Path, smollm2: Path) -> None:
    bars = {"trained_exact": "≥ 0.95", "heldout_exact": "≥ 0.85", "perplexity_ratio": "≤ 1.15",
            "train_ratio": "≤ 1.1"}  # fmt: skip
    found = fields(lora_learn.measure(lora_learn.QUICK, tmp_path), bars)
    assert 0 <= found["heldout_exact"] <= 1
    assert 0.5 < found["perplexity_ratio"] < 2, "three steps change little"


def test_transmute(tmp_path: Path, smollm2: Path) -> None:
    plan = transmute.Plan(characters=200, rounds=2, threads=1)
    found = fields(transmute.measure(plan, tmp_path), {"prefill_ratio": "≤ 1.15", "recited": "≥ 1"})
    assert found["recited"] == 1, "not a time"


def test_shootdown(tmp_path: Path) -> None:
    plan = shootdown.Plan(rounds=1, derived=20, notes=10, readers=1, seconds=0.3)
    found = fields(shootdown.measure(plan, tmp_path), {"receipt_ms": "≤ 100", "stale_reads": "≤ 0"})
    assert found["stale_reads"] == 0, "not a time"
    assert found["reads"] > 0


def fields(report: Report, bars: dict[str, str]) -> dict[str, float]:
    """The fields, once every bar is the promised one."""
    assert {each.field: str(each.bar) for each in report.rows if each.bar} == bars
    assert all(each.note for each in report.rows)
    return {each.field: each.value for each in report.rows}
