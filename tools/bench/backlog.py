"""`backlog`: what a write costs while thousands of memories wait for their vectors.

Ours is a durable write of a short text to a daemon whose worker is busy with a backlog; the peer is
the same write to a daemon without an embedder, in the same run, while nothing else happens. The
backlog must outlast the measurement, or it is not counted.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import libmem
from libmem.abi.calls import WriteCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import SearchMode
from memosd.tools.bench.corpus import note
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.recall import wait_for_vectors
from memosd.tools.bench.report import Report, at_most, row
from memosd.tools.bench.samples import percentile, ratios, sample
from memosd.tools.bench.writes import write_all

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NOTE_BYTES: Final = 160
_BATCH: Final = 500


@dataclass(frozen=True)
class Plan:
    backlog: int = 5000
    writes: int = 500
    """Measured, one after another, in one round."""
    rounds: int = 3


FULL = Plan()
QUICK = Plan(backlog=2000, writes=200, rounds=1)


def measure(plan: Plan, directory: Path) -> Report:
    """Alternate the two daemons; only one runs at a time. Errors: EOPNOTSUPP (no embedder)."""
    idle, busy, lags = [], [], []
    for number in range(plan.rounds):
        with private_daemon(directory) as daemon:
            daemon.start()
            with daemon.connect() as client:
                client.make_namespace("/idle")
                idle.append(_write(client, "/idle", plan.writes))
            daemon.stop()
        with private_daemon(directory, embedder="auto") as daemon:
            times, lag_s = _busy(daemon, plan, number)
            busy.append(times)
            lags.append(lag_s)
    mine = [percentile(times, 0.5) for times in busy]
    theirs = [percentile(times, 0.5) for times in idle]
    return Report(
        "backlog",
        (
            row("write_ratio", ratios(mine, theirs), "write p50 with a backlog / idle", at_most(2)),
            row("write_ms_p50", sample(mine), f"while {plan.backlog:,} embeddings wait"),
            row("write_ms_p99", sample([percentile(one, 0.99) for one in busy]), "the same"),
            row("idle_ms_p50", sample(theirs), "no embedder"),
            row("backlog_s", sample(lags), "until the backlog was worked off"),
        ),
        (f"{plan.rounds} rounds of {plan.writes} durable writes each; one daemon at a time",),
    )


def _busy(daemon: Daemon, plan: Plan, round_number: int) -> tuple[list[float], float]:
    daemon.start()
    with daemon.connect(timeout_s=60) as client:
        client.make_namespace("/busy")
        client.write("/busy/first", "a worker is started by the first text")
        wait_for_vectors(client)
        begun = time.perf_counter()
        calls = [
            WriteCube(f"/busy/{number:06}", note(number, _NOTE_BYTES).encode())
            for number in range(plan.backlog)
        ]
        write_all(client, calls, _BATCH)
        client.search("settled", mode=SearchMode.WORDS)  # the index knows of the whole backlog
        times = _write(client, f"/busy/measured{round_number}", plan.writes)
        if not client.info().recall.waiting:
            raise MemError(Errno.EIO, "the backlog was worked off before all writes were made")
        wait_for_vectors(client)
        lag_s = time.perf_counter() - begun
    daemon.stop()
    return times, lag_s


def _write(client: libmem.Client, folder: str, count: int) -> list[float]:
    """ms of each write."""
    times = []
    for number in range(count):
        text = note(1_000_000 + number, _NOTE_BYTES)
        before = time.perf_counter()
        client.write(f"{folder}/{number:06}", text)
        times.append((time.perf_counter() - before) * 1e3)
    return times
