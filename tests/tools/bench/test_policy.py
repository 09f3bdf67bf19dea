"""Traces and their replay: both formats are read, and the optimum is one."""

import itertools
import json
from pathlib import Path

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.table import POLICIES
from memosd.tools.bench.policy import Plan, distinct_sizes, measure
from memosd.tools.bench.replay import belady_hits, replay_hits
from memosd.tools.bench.report import Machine, to_json
from memosd.tools.bench.synthetic import SYNTHETIC
from memosd.tools.bench.traces import Request, read_trace


def write(path: Path, *lines: dict[str, object]) -> Path:
    """A trace of these lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def chain(path: Path, *requests: list[int]) -> list[Request]:
    """Requests of these blocks."""
    lines = ({"timestamp": at, "hash_ids": ids} for at, ids in enumerate(requests))
    return read_trace(write(path / "trace", *lines))


def access(op: str, key: str, parent: str = "") -> dict[str, object]:
    """One recorded access."""
    return {
        "t": 1.5, "op": op, "key": key, "size": 10, "parent": parent,
        "group": 0, "priority": 50, "cost": 0.5,
    }  # fmt: skip


def test_what_is_removed_counts_in_the_capacity_with_its_size(tmp_path: Path) -> None:
    gone = {**access("remove", "0a"), "size": 0}
    requests = read_trace(write(tmp_path / "t", access("insert", "0a"), gone, access("use", "0b")))
    assert sorted(distinct_sizes(requests).values()) == [10, 10]


def test_blocks_stand_on_those_before_them(tmp_path: Path) -> None:
    first, second = chain(tmp_path, [1, 2], [1, 3])
    assert first.blocks[0] == second.blocks[0]
    assert second.blocks[1].parent == first.blocks[0].key


def test_recorded_accesses_are_read_and_replayed(tmp_path: Path) -> None:
    lines = [access("insert", "aa"), access("use", "aa"), access("remove", "aa")]
    requests = read_trace(write(tmp_path / "trace", *lines, access("insert", "aa")))
    assert requests[0].blocks[0].restore_s == 0.5
    assert [request.is_removal for request in requests] == [False, False, True, False]
    for make in POLICIES.values():
        assert replay_hits(make, requests, 100) == pytest.approx(1 / 3)
    assert belady_hits(requests, 100) == pytest.approx(1 / 3)


@pytest.mark.parametrize("line", ["{", '{"t": 1}', '{"hash_ids": 3}', "[]", '{"op": "dance"}'])
def test_what_is_no_access_is_told_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace"
    path.write_text(json.dumps({"timestamp": 0, "hash_ids": [1]}) + "\n" + line + "\n")
    with pytest.raises(MemError) as caught:
        read_trace(path)
    assert caught.value.errno is Errno.EINVAL
    assert ":2:" in caught.value.message


def test_only_an_unbroken_prefix_hits(tmp_path: Path) -> None:
    requests = chain(tmp_path, [1, 2], [3, 4], [1, 2])
    # Room for three: LRU has evicted 1, and 2 alone is of no use.
    assert replay_hits(POLICIES["lru"], requests, 3) == 0
    assert replay_hits(POLICIES["default"], requests, 3) == pytest.approx(1 / 6)


def test_no_choice_of_what_to_keep_hits_more_than_the_optimum(tmp_path: Path) -> None:
    requests = chain(tmp_path, [1, 2], [3], [1, 4], [1, 2], [5], [3], [1, 4], [3])
    for room in (1, 2, 3, 4):
        assert round(belady_hits(requests, room) * 12) == _most_hits(requests, room)


def _most_hits(requests: list[Request], room: int) -> int:
    """By trying all."""
    best: dict[frozenset[bytes], int] = {frozenset(): 0}
    for request in requests:
        after: dict[frozenset[bytes], int] = {}
        for there, hits in best.items():
            asked = [entry.key for entry in request.blocks]
            now = hits + len(list(itertools.takewhile(there.__contains__, asked)))
            all_keys = there | set(asked)
            for count in range(min(room, len(all_keys)) + 1):
                for kept in map(frozenset, itertools.combinations(all_keys, count)):
                    after[kept] = max(after.get(kept, 0), now)
        best = after
    return max(best.values())


@pytest.mark.parametrize("name", SYNTHETIC)
def test_made_traces_are_the_same_each_time(name: str) -> None:
    assert SYNTHETIC[name]()[:50] == SYNTHETIC[name]()[:50]


def test_the_report_has_every_policy_and_the_optimum(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    chain(tmp_path, *([each % 7, 100 + each % 5] for each in range(50)))
    plan = Plan(trace=str(path), capacities=("0.50",), entries=200, decisions=100)
    report = measure(plan, tmp_path)
    fields = {each.field: each.value for each in report.rows}
    told = to_json(report, Machine.here(tmp_path))
    assert told["hits"]["0.50"]["default"] == pytest.approx(fields["hits.0.50.default"], rel=1e-4)
    assert set(told["hits"]["0.50"]) == {*POLICIES, "belady"}
    for name in (*POLICIES, "belady"):
        assert 0 <= fields[f"hits.0.50.{name}"] <= fields["hits.0.50.belady"]
    assert fields["decisions_per_s.default"] > 0
    assert fields["decisions_per_s_mixed.default"] > 0
