"""The command line of memos-bench."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from libmem.abi.errors import Errno, MemError
from memosd.tools.bench import (
    backlog,
    boot,
    cost,
    embed,
    fairness,
    kv,
    kv_int8,
    lora_learn,
    lora_page,
    mapping,
    policy,
    prefix,
    pressure,
    put,
    recall,
    reclaim,
    rpc,
    scale,
    search_scale,
    share,
    shootdown,
    transmute,
)
from memosd.tools.bench.__main__ import _BENCHMARKS, main
from memosd.tools.bench.report import Report, at_most, row

_WITHOUT_DATA = [name for name in _BENCHMARKS if name != "recall"]


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is slow today, and the import is fast."""
    slow = Report("rpc", (row("ratio_p50", 2.5, "ours / theirs", at_most(1.6)),))
    fast = Report("boot", (row("import_ms", 40.0, "import libmem", at_most(80)),))
    monkeypatch.setattr(rpc, "measure", lambda plan, directory: slow)
    monkeypatch.setattr(boot, "measure", lambda plan, directory: fast)


@pytest.mark.usefixtures("_measured")
def test_a_missed_bar_is_printed_and_no_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["rpc", "--json", "--dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert any("ratio_p50" in line and "NO" in line for line in out)
    found = json.loads(out[-1])
    assert found["ratio_p50"] == 2.5
    assert found["is_met"] is False


@pytest.mark.usefixtures("_measured")
def test_without_json_the_table_is_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["boot", "--dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "import_ms" in out
    assert "{" not in out


@pytest.mark.parametrize("is_quick", [True, False])
def test_quick_chooses_the_short_plan(
    is_quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plans: list[object] = []

    def measure(plan: object, directory: Path) -> Report:
        plans.append(plan)
        assert directory == tmp_path
        return Report("rpc", ())

    monkeypatch.setattr(rpc, "measure", measure)
    assert main(["rpc", "--dir", str(tmp_path), *(["--quick"] if is_quick else [])]) == 0
    assert plans == [rpc.QUICK if is_quick else rpc.FULL]


def test_a_failure_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(plan: object, directory: Path) -> Report:
        raise MemError(Errno.EIO, "memosd ended with status 1: no table")

    monkeypatch.setattr(rpc, "measure", measure)
    assert main(["rpc", "--json", "--dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "no table" in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_a_missing_directory_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["rpc", "--dir", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_an_unknown_name_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["rcp"])
    assert caught.value.code == 2
    assert "rpc" in capsys.readouterr().err


def test_a_store_of_no_cubes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scale", "--cubes", "0"])
    assert "at least 1" in capsys.readouterr().err


@pytest.fixture
def _all_measured(_measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = (put, mapping, scale, fairness, reclaim, policy, pressure)
    models = (kv, kv_int8, share, prefix, cost, embed, search_scale, backlog)
    adapters = (lora_learn, lora_page, shootdown, transmute)
    for module in storage + models + adapters:
        monkeypatch.setattr(module, "measure", lambda plan, directory: Report("other", ()))


@pytest.mark.usefixtures("_all_measured")
def test_all_is_one_object_with_each_benchmark(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["all", "--json", "--dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == ["benchmark", "failed", *_WITHOUT_DATA]
    assert found["failed"] == {}
    assert found["boot"]["import_ms"] == 40.0
    assert found["rpc"]["is_met"] is False


@pytest.mark.usefixtures("_all_measured")
def test_all_asks_questions_where_it_is_given_some(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plans: list[recall.Plan] = []

    def measure(plan: recall.Plan, directory: Path) -> Report:
        plans.append(plan)
        return Report("recall", ())

    monkeypatch.setattr(recall, "measure", measure)
    data = tmp_path / "talks.json"
    assert main(["all", "--json", "--quick", "--dir", str(tmp_path), "--data", str(data)]) == 0
    assert "recall" in json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [plan.data for plan in plans] == [data]


@pytest.mark.usefixtures("_all_measured")
def test_one_failure_among_all_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measure(plan: object, directory: Path) -> Report:
        raise MemError(Errno.ENOENT, "there is no model: make models")

    for module in (kv, share):
        monkeypatch.setattr(module, "measure", measure)
    assert main(["all", "--json", "--dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert list(found["failed"]) == ["kv", "share"]
    assert found.keys() == {"benchmark", "failed", *_WITHOUT_DATA} - {"kv", "share"}
    assert found["rpc"]["ratio_p50"] == 2.5
    told = captured.err.splitlines()[-2:]
    assert [line.split(": ")[1] for line in told] == ["kv", "share"]
    assert all("make models" in line for line in told)


@pytest.mark.parametrize("arguments", [["kv", "--quantise", "int8"], ["kv-int8"]])
def test_int8_has_two_names(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    rows = (row("kl", 0.001, "of int8", at_most(0.002)),)
    monkeypatch.setattr(kv_int8, "measure", lambda plan, directory: Report("kv-int8", rows))
    assert main([*arguments, "--json", "--dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kl"] == 0.001


@pytest.mark.slow
def test_a_terminated_run_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memosd.tools.bench", "mmap", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        bench = psutil.Process(run.pid)
        # In the middle of it: the daemon serves and the second process has started.
        while len(children := bench.children(recursive=True)) < 2 and run.poll() is None:
            os.sched_yield()
        run.terminate()
        assert run.wait() == 130
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_whole_run_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memosd.tools.bench", "rpc", "--quick", "--json"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == "rpc"
    assert found["ratio_p50"] > 0
    assert list(tmp_path.iterdir()) == []
