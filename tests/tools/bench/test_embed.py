"""The benchmark of embedding in a tiny size. No times are judged; results are."""

import sys
from pathlib import Path

import pytest

from memosd.tools.bench import embed

pytestmark = pytest.mark.slow


def test_embed(tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    report = embed.measure(embed.Plan(rounds=1, texts=8, queries=2), tmp_path)
    bars = {each.field: str(each.bar) for each in report.rows if each.bar}
    assert bars == {"embed_ratio": "≥ 2", "query_ms_p50": "≤ 15"}
    found = {each.field: each.value for each in report.rows}
    assert found["cosine"] > 0.99, "the peer computes the same"
    ratio = found["embed_per_s"] / found["peer_per_s"]
    assert found["embed_ratio"] == pytest.approx(ratio)
    assert list(tmp_path.iterdir()) == []
