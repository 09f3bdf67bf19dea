"""Processes beside the benchmark: their results, their errors, their end."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from libmem.abi.errors import Errno, MemError
from memosd.tools.bench.process import Worker, on_core, workers


@contextmanager
def body(place: Path) -> Iterator[Callable[[str], object]]:
    def carry_out(order: str) -> object:
        if order == "fail":
            raise MemError(Errno.ENOSPC, "full", need_bytes=7)
        if order == "die":
            os._exit(3)
        if order == "cores":
            return os.sched_getaffinity(0)
        return os.getpid()

    try:
        yield carry_out
    finally:
        (place / str(os.getpid())).touch()


def test_each_order_has_its_result_in_a_process_of_its_own(tmp_path: Path) -> None:
    with workers(body, (tmp_path,), (tmp_path,)) as (one, other):
        pids = {one.ask("pid"), other.ask("pid")}
        assert len(pids) == 2
        assert os.getpid() not in pids
        one.send("pid")
        assert one.result() in pids
    assert {int(path.name) for path in tmp_path.iterdir()} == pids
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_an_error_arrives_with_its_detail(tmp_path: Path) -> None:
    with workers(body, (tmp_path,)) as [one]:
        with pytest.raises(MemError) as caught:
            one.ask("fail")
        assert caught.value.errno is Errno.ENOSPC
        assert caught.value.detail == {"need_bytes": 7}


def test_a_death_is_an_error_with_its_status(tmp_path: Path) -> None:
    with Worker(body, tmp_path) as one:
        assert one.result() == "ready"
        one.send("die")
        with pytest.raises(MemError) as caught:
            one.result()
        assert caught.value.errno is Errno.EIO
        assert caught.value.detail == {"status": 3}
        with pytest.raises(MemError):
            one.ask("pid")


def test_a_process_stays_on_the_core_it_was_started_on(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with on_core(core):
        placed = Worker(body, tmp_path)
    assert os.sched_getaffinity(0) == before
    with placed:
        assert placed.result() == "ready"
        assert placed.ask("cores") == {core}


def test_a_failed_benchmark_does_not_wait_for_its_processes(tmp_path: Path) -> None:
    def fail() -> None:
        with workers(body, (tmp_path,)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []  # killed: it came to no end of its own
