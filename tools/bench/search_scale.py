"""`search-scale`: a search among 200,000 memories, and what their indexes cost.

The memories are synthetic sentences of a real vocabulary (`corpus.py`), written while there is no
embedder. Then the index's file is deleted and the daemon started with one: what is timed is the
rebuilding of everything from the table, as after a crash that took the index along. Queries are
parts of memories, their words in another order, so each has an answer and most words are common.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import libmem
from libmem.abi.calls import WriteCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import SearchMode
from memosd.tools.bench.corpus import note
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.recall import complete_hits, wait_for_vectors
from memosd.tools.bench.report import Report, Row, at_most, row
from memosd.tools.bench.samples import percentile
from memosd.tools.bench.writes import write_all

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NAMESPACE: Final = "/scale"
_NOTE_BYTES: Final = 160
_BATCH: Final = 500
_FOLDER: Final = 1000
_QUERY_WORDS: Final = 8
_SETTLE_S: Final = 600.0


@dataclass(frozen=True)
class Plan:
    memories: int
    searches: int = 400


FULL = Plan(memories=200_000)
QUICK = Plan(memories=5_000, searches=100)


def measure(plan: Plan, directory: Path) -> Report:
    """Write, delete the index, start again, search. Errors: EOPNOTSUPP (no embedder)."""
    with private_daemon(directory) as daemon:
        daemon.start()
        _write(daemon, plan.memories)
        daemon.stop()
        for path in daemon.data_dir.glob("index.db*"):
            path.unlink()
        daemon.embedder = "auto"
        daemon.start()
        with daemon.connect(timeout_s=_SETTLE_S) as client:
            rebuilt = _rebuild(client)
            rows = [*_search_rows(client, plan), *rebuilt, *_memory_rows(client)]
        used = sum(path.stat().st_size for path in daemon.data_dir.glob("index.db*"))
        daemon.stop()
        rows.append(row("index_mib", used / 2**20, "the index's file, words and vectors"))
        rows.append(_start_row(daemon))
        daemon.stop()
    return Report(
        "search-scale",
        tuple(rows),
        (
            f"{plan.memories:,} memories of {_NOTE_BYTES} bytes in one namespace",
            f"queries: {_QUERY_WORDS} words of one memory each, in another order; none twice",
        ),
    )


def _write(daemon: Daemon, memories: int) -> None:
    with daemon.connect(timeout_s=_SETTLE_S) as client:
        client.make_namespace(_NAMESPACE)
        calls = [
            WriteCube(_name(number), note(number, _NOTE_BYTES).encode())
            for number in range(memories)
        ]
        write_all(client, calls, _BATCH)


def _name(number: int) -> str:
    return f"{_NAMESPACE}/{number // _FOLDER:04}/{number % _FOLDER:03}"


def _rebuild(client: libmem.Client) -> list[Row]:
    begun = time.perf_counter()
    while True:
        try:
            client.search("settled", mode=SearchMode.WORDS)
            break
        except MemError as error:
            if error.errno is not Errno.EAGAIN or time.perf_counter() - begun > _SETTLE_S:
                raise
            time.sleep(0.1)
    words_s = time.perf_counter() - begun
    wait_for_vectors(client)
    vectors_s = time.perf_counter() - begun
    return [
        row("rebuild_words_s", words_s, "from READY until words find everything"),
        row("rebuild_s", vectors_s, "from READY until everything has its vectors"),
    ]


def _search_rows(client: libmem.Client, plan: Plan) -> Iterator[Row]:
    times, found = [], 0
    for number, query in _queries(plan):
        before = time.perf_counter()
        hits = complete_hits(client, query, k=10)
        times.append((time.perf_counter() - before) * 1e3)
        found += _name(number) in hits
    label = f"k = 10 among {plan.memories:,}, query's vector included"
    yield row("search_ms_p50", percentile(times, 0.5), label, at_most(50))
    yield row("search_ms_p99", percentile(times, 0.99), "the same")
    yield row("found", found / len(times), "queries whose own memory is among the ten")


def _queries(plan: Plan) -> Iterator[tuple[int, str]]:
    some = random.Random(2)
    for number in some.sample(range(plan.memories), plan.searches):
        words = note(number, _NOTE_BYTES).split()
        some.shuffle(words)
        yield number, " ".join(words[:_QUERY_WORDS])


def _memory_rows(client: libmem.Client) -> Iterator[Row]:
    info = client.info()
    workers = sum(worker.rss_bytes for worker in info.workers)
    yield row("rss_mib", (info.rss_bytes + workers) / 2**20, "daemon and worker, resident")
    yield row("rss_daemon_mib", info.rss_bytes / 2**20, "of that the daemon")


def _start_row(daemon: Daemon) -> Row:
    """How long the next daemon takes until it finds what this one knew."""
    ready_s = daemon.start()
    begun = time.perf_counter()
    with daemon.connect(timeout_s=_SETTLE_S) as client:
        client.search("settled", mode=SearchMode.WORDS)
    return row("restart_s", ready_s + time.perf_counter() - begun, "spawn to the first search")
