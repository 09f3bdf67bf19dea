"""`put`: what group commit makes of many durable writes.

Ours are 512-byte notes, on disk before each reply: from many clients at once, each with a session
of its own and one write outstanding, and from one client in batches. The peer is LMDB, alone on
the same file system, with one synced transaction per value of that size. The index follows the
writes, so after each round it is waited for: the next round, and the peer, find an idle daemon,
and what writing costs until all is searchable is a field of its own.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

import libmem
from libmem.abi.calls import WriteCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Durability
from memosd.tools.bench.corpus import note
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.process import Worker, workers
from memosd.tools.bench.report import Report, at_least, row
from memosd.tools.bench.samples import interleave, ratios, sample
from memosd.tools.bench.writes import write_all

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NOTE_BYTES: Final = 512
_NAMESPACE: Final = "/bench"
_READ_BACK: Final = 300
"""Notes compared with what was written, after the last round."""

_PER_WRITER: Final = 10_000_000
"""Numbers of notes set apart for each writer, so that no two notes are equal."""


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float
    """Of each way to write, in one round."""
    clients: int = 32
    processes: int = 2
    """Among which the clients are divided evenly."""
    batch: int = 64


FULL = Plan(rounds=7, seconds=1.0)
QUICK = Plan(rounds=3, seconds=0.5)


class Burst(NamedTuple):
    """What one writer wrote, and when (the machine's monotonic clock)."""

    writes: int
    begin_s: float
    end_s: float


class Round(NamedTuple):
    """All bursts of one side at the same time, and what the index still had to do then."""

    bursts: list[Burst]
    settle_s: float = 0.0

    def per_s(self) -> float:
        """Writes per second, from the first writer's begin to the last one's end."""
        return self._writes() / self._span_s()

    def settled_per_s(self) -> float:
        """Writes per second until all of them were searchable."""
        return self._writes() / (self._span_s() + self.settle_s)

    def _writes(self) -> int:
        return sum(burst.writes for burst in self.bursts)

    def _span_s(self) -> float:
        return max(each.end_s for each in self.bursts) - min(each.begin_s for each in self.bursts)


Write = Callable[[int], int]
"""Write something under this number and return how many values that were."""


def measure(plan: Plan, directory: Path) -> Report:
    """Interleave rounds of clients, batches and LMDB; all rates are durable writes per second."""
    with private_daemon(directory) as daemon:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace(_NAMESPACE)
            share = plan.clients // plan.processes
            each = [(daemon.runtime_dir, at, share) for at in range(0, plan.clients, share)]
            batcher = _Writer(_batches(client, plan.clients, plan.batch))
            with workers(_some_clients, *each) as crowd, _lmdb(directory) as peer:
                rounds = interleave(
                    plan.rounds,
                    lambda: Round(_together(crowd, plan.seconds), daemon.settle()),
                    lambda: Round([batcher(plan.seconds)], daemon.settle()),
                    lambda: Round([peer(plan.seconds)]),
                )
            written = [
                sum(turn.bursts[who].writes for turn in rounds[0]) for who in range(plan.clients)
            ]
            written.append(sum(turn.bursts[0].writes for turn in rounds[1]))
            _verify(client, written)
        daemon.stop()
    return _report(plan, rounds, sum(written))


class _Writer:
    """Writes for a while, numbering what it writes from one burst to the next."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._next = 0

    def __call__(self, seconds: float) -> Burst:
        first = self._next
        begin_s = now_s = time.monotonic()
        while now_s < begin_s + seconds:
            self._next += self._write(self._next)
            now_s = time.monotonic()
        return Burst(self._next - first, begin_s, now_s)


def _name(who: int, number: int) -> str:
    return f"{_NAMESPACE}/{who}/{number:07}"


def _note(who: int, number: int) -> str:
    return note(who * _PER_WRITER + number, _NOTE_BYTES)


@contextmanager
def _some_clients(
    runtime_dir: Path, first: int, count: int
) -> Iterator[Callable[[float], list[Burst]]]:
    """Clients with a thread and a session each: one durable note per call."""
    with ExitStack() as stack:
        numbers = range(first, first + count)
        clients = [stack.enter_context(libmem.connect(runtime_dir)) for _ in numbers]
        writers = [
            _Writer(_singles(client, who)) for client, who in zip(clients, numbers, strict=True)
        ]
        threads = stack.enter_context(ThreadPoolExecutor(count))
        _note(first, 0)  # loads the text
        yield lambda seconds: list(threads.map(lambda writer: writer(seconds), writers))


def _singles(client: libmem.Client, who: int) -> Write:
    """Durable notes, one per call."""

    def write(number: int) -> int:
        text = _note(who, number)
        client.write(_name(who, number), text, durability=Durability.DURABLE)
        return 1

    return write


def _batches(client: libmem.Client, who: int, size: int) -> Write:
    """Durable notes, `size` per call."""

    def write(first: int) -> int:
        calls = [
            WriteCube(
                _name(who, number),
                _note(who, number).encode(),
                durability=Durability.DURABLE,
            )
            for number in range(first, first + size)
        ]
        write_all(client, calls, size)
        return size

    return write


@contextmanager
def _lmdb(directory: Path) -> Iterator[_Writer]:
    """The peer: one value per transaction, synced, and nothing else."""
    place = tempfile.mkdtemp(prefix="memos-bench-lmdb-", dir=directory)
    try:
        with lmdb.open(place, map_size=1 << 36) as table:

            def write(number: int) -> int:
                value = _note(0, number).encode()
                with table.begin(write=True) as transaction:
                    transaction.put(_name(0, number).encode(), value)
                return 1

            yield _Writer(write)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _together(crowd: Sequence[Worker], seconds: float) -> list[Burst]:
    for worker in crowd:
        worker.send(seconds)
    return [burst for worker in crowd for burst in worker.result()]


def _verify(client: libmem.Client, written: Sequence[int]) -> None:
    """Every write is there, a sample of them word for word, and the index knows the newest.

    Errors: EIO for anything that is missing or different.
    """
    found = client.stat_namespace(_NAMESPACE).usage.cubes
    if found != sum(written):
        raise MemError(Errno.EIO, f"{sum(written)} notes were acknowledged, {found} are there")
    some = random.Random(0)
    for _ in range(_READ_BACK):
        who = some.choice([who for who, count in enumerate(written) if count])
        number = some.randrange(written[who])
        if client.read(_name(who, number)) != _note(who, number).encode():
            raise MemError(Errno.EIO, "a note is not what was written", cube=_name(who, number))
    last = written[-1] - 1
    number_word = _note(len(written) - 1, last).split()[1]
    hits = client.search(number_word, under=_NAMESPACE)
    if [hit.name for hit in hits] != [_name(len(written) - 1, last)]:
        raise MemError(Errno.EIO, f"the search for note {number_word} did not find it")


def _report(plan: Plan, rounds: Sequence[Sequence[Round]], written: int) -> Report:
    group, batch, synced = ([turn.per_s() for turn in side] for side in rounds)
    group_settled, batch_settled = ([turn.settled_per_s() for turn in side] for side in rounds[:2])
    crowd = f"{plan.clients} clients, one {_NOTE_BYTES}-byte note in flight each"
    return Report(
        "put",
        (
            row("group_ratio", ratios(group, synced), "clients / LMDB", at_least(6)),
            row("batch_ratio", ratios(batch, synced), "batches / LMDB", at_least(10)),
            row("group_per_s", sample(group), crowd),
            row("batch_per_s", sample(batch), f"one client, batches of {plan.batch}"),
            row("lmdb_sync_per_s", sample(synced), "LMDB, a synced transaction per value"),
            row("group_settled_per_s", sample(group_settled), "clients, until all is searchable"),
            row("batch_settled_per_s", sample(batch_settled), "batches, until all is searchable"),
        ),
        (
            f"{plan.clients} clients in {plan.processes} processes, each with a thread, a session "
            "and sockets of its own, and one synchronous call at a time",
            f"{plan.rounds} rounds of {plan.seconds:g} s each, alternating; ratios per round",
            f"{written:,} notes counted, {_READ_BACK} of them read back equal, the last one found",
        ),
    )
