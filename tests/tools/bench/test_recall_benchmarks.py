"""The benchmarks of recall in a tiny size: their fields, and that what they find is so."""

import json
from pathlib import Path

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.tools.bench import backlog, recall, search_scale
from memosd.tools.bench.report import Report
from tests.tools.bench.test_conversations import TALK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("minilm"), pytest.mark.timeout(300)]


def fields(report: Report) -> dict[str, float]:
    return {row.field: row.value for row in report.rows}


def test_recall(tmp_path: Path) -> None:
    data = tmp_path / "talks.json"
    question = {"question": "Who said goodbye?", "category": 4, "evidence": ["D2:1"]}
    data.write_text(json.dumps([{**TALK, "qa": [question]}]))
    store = tmp_path / "store"
    store.mkdir()
    found = fields(recall.measure(recall.Plan(data, memories=10), store))
    # Three turns in all: whatever ranks them, ten hits hold them.
    for ranking in ("recall", "dense", "rrf"):
        assert found[f"{ranking}_at_10"] == 1.0
    assert 0 < found["search_ms_p50"] <= found["search_ms_p99"]
    assert list(store.iterdir()) == []


def test_recall_needs_conversations(tmp_path: Path) -> None:
    with pytest.raises(MemError) as caught:
        recall.measure(recall.FULL, tmp_path)
    assert caught.value.errno is Errno.EINVAL
    assert "--data" in caught.value.message


def test_search_scale(tmp_path: Path) -> None:
    found = fields(search_scale.measure(search_scale.Plan(memories=60, searches=20), tmp_path))
    assert found["found"] >= 0.9
    assert found["rebuild_words_s"] <= found["rebuild_s"]
    assert 0 < found["rss_daemon_mib"] < found["rss_mib"]
    assert list(tmp_path.iterdir()) == []


def test_backlog(tmp_path: Path) -> None:
    found = fields(backlog.measure(backlog.Plan(backlog=1500, writes=5, rounds=1), tmp_path))
    assert found["write_ratio"] == pytest.approx(found["write_ms_p50"] / found["idle_ms_p50"])
    assert found["backlog_s"] > 0
    assert list(tmp_path.iterdir()) == []
