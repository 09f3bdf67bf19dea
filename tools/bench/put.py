"""`put`: what group commit makes of many durable writes.

Ours are 512-byte notes, indexed and on disk before each reply: from many clients at once, each a
process with a session of its own and one write outstanding, and from one client in batches. The
peer is LMDB, alone on the same file system, with one synced transaction per value of that size.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    batch: int = 64


FULL = Plan(rounds=7, seconds=1.0)
QUICK = Plan(rounds=3, seconds=0.5)


class Burst(NamedTuple):
    """What one writer wrote, and when (the machine's monotonic clock)."""

    writes: int
    begin_s: float
    end_s: float


Write = Callable[[int], int]
"""Write something under this number and return how many values that were."""


def measure(plan: Plan, directory: Path) -> Report:
    """Interleave rounds of clients, batches and LMDB; all rates are durable writes per second."""
    with private_daemon(directory) as daemon:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace(_NAMESPACE)
            each = [(daemon.runtime_dir, who) for who in range(plan.clients)]
            batcher = _Writer(_batches(client, plan.clients, plan.batch))
            with workers(_single_notes, *each) as crowd, _lmdb(directory) as peer:
                rounds = interleave(
                    plan.rounds,
                    lambda: _together(crowd, plan.seconds),
                    lambda: [batcher(plan.seconds)],
                    lambda: [peer(plan.seconds)],
                )
            written = [
                sum(bursts[who].writes for bursts in rounds[0]) for who in range(plan.clients)
            ]
            written.append(sum(bursts[0].writes for bursts in rounds[1]))
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
def _single_notes(runtime_dir: Path, who: int) -> Iterator[_Writer]:
    """A client of its own process: one durable note per call."""
    with libmem.connect(runtime_dir) as client:

        def write(number: int) -> int:
            text = _note(who, number)
            client.write(_name(who, number), text, durability=Durability.DURABLE)
            return 1

        yield _Writer(write)


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
        for outcome in client.batch(calls):
            if isinstance(outcome, MemError):
                raise outcome
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
    return [worker.result() for worker in crowd]


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


def _rate(bursts: Sequence[Burst]) -> float:
    """Writes per second, from the first writer's begin to the last one's end."""
    span_s = max(burst.end_s for burst in bursts) - min(burst.begin_s for burst in bursts)
    return sum(burst.writes for burst in bursts) / span_s


def _report(plan: Plan, rounds: Sequence[Sequence[Sequence[Burst]]], written: int) -> Report:
    group, batch, synced = ([_rate(bursts) for bursts in side] for side in rounds)
    crowd = f"{plan.clients} clients, one {_NOTE_BYTES}-byte note in flight each"
    return Report(
        "put",
        (
            row("group_ratio", ratios(group, synced), "clients / LMDB", at_least(6)),
            row("batch_ratio", ratios(batch, synced), "batches / LMDB", at_least(10)),
            row("group_per_s", sample(group), crowd),
            row("batch_per_s", sample(batch), f"one client, batches of {plan.batch}"),
            row("lmdb_sync_per_s", sample(synced), "LMDB, a synced transaction per value"),
        ),
        (
            f"{plan.clients} clients = {plan.clients} processes, each with one synchronous session",
            f"{plan.rounds} rounds of {plan.seconds:g} s each, alternating; ratios per round",
            f"{written:,} notes counted, {_READ_BACK} of them read back equal, the last one found",
        ),
    )
