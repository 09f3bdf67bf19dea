"""`scale`: what a million small cubes cost to boot, to hold and to find.

Two stores side by side: a small one, whose `stat_cube` is the peer, and the large one. Both are
written through libmem in batches by several processes, then their daemons are restarted: what is
measured is a daemon that has just come up on an existing store. `stat_cube` is compared with all on
one core: apart, where the scheduler puts a daemon counts for more than what it holds (`rpc.py`).
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

import libmem
from libmem.abi.calls import WriteCube
from libmem.abi.errors import Errno, MemError
from memosd.tools.bench.corpus import note
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.process import move_to_core, on_core, workers
from memosd.tools.bench.report import Report, Row, at_most, row
from memosd.tools.bench.samples import interleave, percentile, ratios, sample
from memosd.tools.bench.writes import write_all

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NAMESPACE: Final = "/scale"
_NOTE_BYTES: Final = 160
_FOLDER: Final = 1000
"""Cubes in one folder."""


@dataclass(frozen=True)
class Plan:
    cubes: int
    baseline: int = 1000
    """Cubes in the small store."""
    writers: int = 2
    batch: int = 500
    boots: int = 3
    rounds: int = 10
    stats: int = 1000
    """Random `stat_cube` calls on each store in one round."""


FULL = Plan(cubes=1_000_000)
QUICK = Plan(cubes=20_000, boots=1, rounds=4, stats=500)


def measure(plan: Plan, directory: Path) -> Report:
    """Write, restart, look at time, memory and disk, then compare `stat_cube` on both stores."""
    with private_daemon(directory) as large, private_daemon(directory) as small:
        _write(small, plan, plan.baseline)
        rows = _write(large, plan, plan.cubes)
        rows += _disk_rows(large.data_dir, plan.cubes)
        rows += _boot_rows(large, plan)
        small.start()
        rows += _stat_rows(large, small, plan)
        small.stop()
        large.kill()
        rows.append(row("boot_after_kill_s", large.start(), "the same after kill -9"))
        _verify(large, plan.cubes)
        large.stop()
    rows.sort(key=lambda each: each.bar is None)
    return Report(
        "scale",
        tuple(rows),
        (
            f"notes of {_NOTE_BYTES} bytes, durable, indexed; {plan.cubes:,} against "
            f"{plan.baseline:,}, each in a daemon of its own",
            f"stat_cube: {plan.rounds} rounds of {plan.stats} random cubes on each, alternating; "
            "client and daemons on one core",
            "counted after the kill, and a sample read back equal",
        ),
    )


def _boot_rows(large: Daemon, plan: Plan) -> list[Row]:
    """Boot several times; the last one stays up."""
    boots = [large.start()]
    for _ in range(plan.boots - 1):
        large.stop()
        boots.append(large.start())
    meaning = f"spawn to READY on {plan.cubes:,} cubes"
    return [row("boot_s", sample(boots), meaning, at_most(3))]


def _stat_rows(large: Daemon, small: Daemon, plan: Plan) -> list[Row]:
    """Random stats on both, and what the large daemon's memory grew to."""
    fresh_mib = _rss_mib(large)
    core = min(os.sched_getaffinity(0))
    for daemon in (large, small):
        move_to_core(daemon.pid, core)
    with on_core(core), large.connect() as many, small.connect() as few:
        ours, peers = interleave(
            plan.rounds,
            _stats(many, plan.cubes, plan.stats),
            _stats(few, plan.baseline, plan.stats),
        )
    used_mib, private_mib = _rss_mib(large), _private_mib(large)
    return [
        row("rss_mib", max(fresh_mib, used_mib), "the larger of the next two", at_most(500)),
        row("stat_ratio", ratios(ours, peers), "p50 on the large / small store", at_most(1.5)),
        row("rss_boot_mib", fresh_mib, "resident after boot"),
        row("rss_used_mib", used_mib, f"after {plan.rounds * plan.stats:,} random stats"),
        row("private_mib", private_mib, "of that its own, not page cache of the table's file"),
        row("stat_p50_us", sample(ours), f"among {plan.cubes:,} cubes"),
        row("stat_small_p50_us", sample(peers), f"among {plan.baseline:,} cubes"),
    ]


def _stats(client: libmem.Client, cubes: int, calls: int) -> Callable[[], float]:
    """A round: the p50 of `stat_cube` over random cubes, in µs."""
    some = random.Random(0)

    def run() -> float:
        times = []
        for name in [_name(some.randrange(cubes)) for _ in range(calls)]:
            before = time.perf_counter_ns()
            client.stat(name)
            times.append((time.perf_counter_ns() - before) / 1e3)
        return percentile(times, 0.5)

    return run


def _disk_rows(data_dir: Path, cubes: int) -> list[Row]:
    """What a store at rest occupies, whole and by the entries of its directory."""
    used = {entry.name: _used_bytes(entry) for entry in sorted(data_dir.iterdir())}
    shares = ", ".join(f"{name} {size / cubes:,.0f}" for name, size in used.items() if size > cubes)
    total = sum(used.values())
    return [
        row("bytes_per_cube", total / cubes, f"on disk: {shares}"),
        row("disk_mib", total / 2**20, "the whole data directory"),
    ]


def _used_bytes(entry: Path) -> int:
    """Blocks, not lengths: the table's file may have holes."""
    return 512 * sum(path.stat().st_blocks for path in (entry, *entry.rglob("*")))


def _rss_mib(daemon: Daemon) -> float:
    return float(psutil.Process(daemon.pid).memory_info().rss) / 2**20


def _private_mib(daemon: Daemon) -> float:
    return float(psutil.Process(daemon.pid).memory_full_info().uss) / 2**20


def _name(number: int) -> str:
    return f"{_NAMESPACE}/{number // _FOLDER:04}/{number % _FOLDER:03}"


def _write(daemon: Daemon, plan: Plan, cubes: int) -> list[Row]:
    """Start the daemon, write that many cubes, let the index catch up, stop it."""
    daemon.start()
    with daemon.connect() as client:
        client.make_namespace(_NAMESPACE)
    each = [(daemon.runtime_dir, plan.batch)] * plan.writers
    bounds = [cubes * turn // plan.writers for turn in range(plan.writers + 1)]
    with workers(_writer, *each) as crowd:
        before = time.perf_counter()
        for worker, numbers in zip(crowd, pairwise(bounds), strict=True):
            worker.send(numbers)
        for worker in crowd:
            worker.result()
        write_s = time.perf_counter() - before
    settle_s = daemon.settle()
    daemon.stop()
    how = f"{plan.writers} processes, batches of {plan.batch}"
    return [
        row("writes_per_s", cubes / write_s, how),
        row("settled_per_s", cubes / (write_s + settle_s), "until all is searchable"),
    ]


@contextmanager
def _writer(runtime_dir: Path, batch: int) -> Iterator[Callable[[tuple[int, int]], None]]:
    """Writes the cubes with the numbers of a range."""
    with libmem.connect(runtime_dir, timeout_s=60.0) as client:

        def write(bounds: tuple[int, int]) -> None:
            numbers = range(*bounds)
            for at in range(0, len(numbers), batch):
                calls = [
                    WriteCube(_name(number), note(number, _NOTE_BYTES).encode())
                    for number in numbers[at : at + batch]
                ]
                write_all(client, calls, batch)

        yield write


def _verify(daemon: Daemon, cubes: int) -> None:
    """Errors: EIO when a cube is missing or not what was written."""
    with daemon.connect() as client:
        found = client.stat_namespace(_NAMESPACE).usage.cubes
        if found != cubes:
            raise MemError(Errno.EIO, f"{cubes} cubes were acknowledged, {found} are there")
        for number in random.Random(1).sample(range(cubes), min(cubes, 200)):
            if client.read(_name(number)) != note(number, _NOTE_BYTES).encode():
                raise MemError(Errno.EIO, "not what was written", cube=_name(number))
