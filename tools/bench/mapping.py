"""`mmap`: what the data road costs for a payload as large as a KV cache.

Ours are a map in a second process, a create with its fill in place, and a fault with every page
verified. The peers are the physical limits: unpickling the same bytes, filling a fresh memfd, and
reading the very page file into a fresh memfd. The page cache is warm on both sides, except for
the field that says cold: there the file is dropped from it on both sides, before every round.
"""

import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import libmem
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Durability
from memosd.tools.bench import memfd
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.process import Worker, workers
from memosd.tools.bench.report import Bar, Report, Row, at_least, at_most, row
from memosd.tools.bench.samples import interleave, percentile, ratios, sample

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_CUBE: Final = "/bench/mmap/cube"
_NEW_CUBE: Final = "/bench/mmap/new"
_TENSORS: Final = 60
"""Entries of the pickled dict: keys and values of 30 layers."""


@dataclass(frozen=True)
class Plan:
    rounds: int
    attaches: int
    """Maps in one round."""
    size_bytes: int = 94 << 20


FULL = Plan(rounds=9, attaches=25)
QUICK = Plan(rounds=3, attaches=10)


def measure(plan: Plan, directory: Path) -> Report:
    """Attach, create and fault, each interleaved with its limit."""
    payload = os.urandom(plan.size_bytes)
    with (
        private_daemon(directory) as daemon,
        tempfile.TemporaryDirectory(prefix="memos-bench-", dir=directory) as place,
    ):
        daemon.start()
        pickled = Path(place) / "cube.pickle"
        _save_pickle(payload, pickled)
        with daemon.connect() as client:
            client.make_namespace("/bench")
            _create(client, _CUBE, payload, Durability.DURABLE)
            ends = payload[:1] + payload[-1:]
            args = (daemon.runtime_dir, pickled, ends, plan.attaches)
            with workers(_second_process, args) as [second]:
                rows = _attach_rows(plan, client, second)
                rows += _fault_rows(plan, second, _page_file(daemon, payload))
            rows += _create_rows(plan, client, payload, Path(place) / "saved")
            if client.read(_CUBE) != payload:
                raise MemError(Errno.EIO, "the cube is not what was written", cube=_CUBE)
        daemon.stop()
    rows.sort(key=lambda each: each.bar is None)
    return Report(
        "mmap",
        tuple(rows),
        (
            f"{plan.size_bytes / 2**20:g} MiB of random bytes; page cache warm but for 'cold'",
            f"{plan.rounds} rounds, alternating; ratios per round; payload compared at the end",
            "create: durability=cache, written back later; create_durable: on disk at the reply",
        ),
    )


def _attach_rows(plan: Plan, client: libmem.Client, second: Worker) -> list[Row]:
    with client.pin(_CUBE):
        attached, unpickled = interleave(
            plan.rounds, lambda: second.ask("attach"), lambda: second.ask("unpickle")
        )
    p50_ms = [percentile(times, 0.5) * 1e3 for times in attached]
    p99_ms = [percentile(times, 0.99) * 1e3 for times in attached]
    pickle_ms = [times[0] * 1e3 for times in unpickled]
    return [
        row("attach_ms_p50", sample(p50_ms), "map a resident cube, touch both ends", at_most(1.0)),
        row("pickle_ratio", ratios(pickle_ms, p50_ms), "pickle.load / attach", at_least(50)),
        row("attach_ms_p99", sample(p99_ms), "the same, 99th percentile of a round"),
        row("pickle_ms", sample(pickle_ms), f"pickle.load of a dict of {_TENSORS} pieces"),
    ]


def _fault_rows(plan: Plan, second: Worker, page_file: Path) -> list[Row]:
    def read() -> float:
        return memfd.read_into(page_file, plan.size_bytes)

    def cold(body: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            second.ask("evict")
            memfd.drop_from_page_cache(page_file)
            return body()

        return run

    def fault() -> float:
        second.ask("evict")
        return float(second.ask("fault"))

    rows = _compared("fault", "read", (fault, read), plan, at_most(1.5))
    rows += _compared("fault_cold", "read_cold", (cold(fault), cold(read)), plan)
    return rows


def _create_rows(plan: Plan, client: libmem.Client, payload: bytes, saved: Path) -> list[Row]:
    def create(durability: Durability) -> float:
        seconds = _create(client, _NEW_CUBE, payload, durability)
        client.unlink(_NEW_CUBE)
        return seconds

    cache = (partial(create, Durability.CACHE), partial(memfd.fill, payload))
    durable = (partial(create, Durability.DURABLE), partial(memfd.fill_and_save, payload, saved))
    rows = _compared("create", "memfd_fill", cache, plan, at_most(1.3))
    rows += _compared("create_durable", "memfd_fill_and_save", durable, plan)
    return rows


def _compared(
    ours: str,
    peer: str,
    bodies: tuple[Callable[[], float], Callable[[], float]],
    plan: Plan,
    bar: Bar | None = None,
) -> list[Row]:
    """Three rows: the ratio and both times, in ms. The bodies return seconds."""
    mine, theirs = interleave(plan.rounds, *bodies)
    return [
        row(f"{ours}_ratio", ratios(mine, theirs), f"{ours} / {peer}", bar),
        row(f"{ours}_ms", sample([each * 1e3 for each in mine]), _MEANING[ours]),
        row(f"{peer}_ms", sample([each * 1e3 for each in theirs]), _MEANING[peer]),
    ]


_MEANING: Final = {
    "create": "create_cube, fill in place, seal_cube",
    "memfd_fill": "the same bytes into a fresh memfd",
    "create_durable": "the same, on disk before the reply",
    "memfd_fill_and_save": "into a fresh memfd, and a file with fsync",
    "fault": "map an evicted cube, every page verified",
    "read": "preadv of the page file into a fresh memfd",
    "fault_cold": "the same from disk",
    "read_cold": "the same from disk",
}


def _create(client: libmem.Client, name: str, payload: bytes, durability: Durability) -> float:
    before = time.perf_counter()
    with client.create(name, len(payload), type=CubeType.BLOB, durability=durability) as fill:
        fill.buffer[:] = payload
    return time.perf_counter() - before


def _save_pickle(payload: bytes, path: Path) -> None:
    step = -(-len(payload) // _TENSORS)
    pieces = {
        f"tensor.{at // step}": payload[at : at + step] for at in range(0, len(payload), step)
    }
    with path.open("wb") as file:
        pickle.dump(pieces, file, pickle.HIGHEST_PROTOCOL)


def _page_file(daemon: Daemon, payload: bytes) -> Path:
    """The file in which the disk tier keeps the cube."""
    for path in daemon.data_dir.rglob("*"):
        if path.is_file() and path.stat().st_size >= len(payload):
            with path.open("rb") as file:
                if file.read(4096) == payload[:4096]:
                    return path
    raise MemError(Errno.ENOENT, "no file in the data directory begins with the payload")


@contextmanager
def _second_process(
    runtime_dir: Path, pickled: Path, ends: bytes, attaches: int
) -> Iterator[Callable[[Any], Any]]:
    """A process that had no part in making the cube."""
    with libmem.connect(runtime_dir) as client:

        def attach() -> float:
            before = time.perf_counter()
            mapping = client.map(_CUBE)
            touched = bytes((mapping[0], mapping[-1]))
            seconds = time.perf_counter() - before
            mapping.close()
            if touched != ends:
                raise MemError(Errno.EIO, "the mapping does not hold what was written", cube=_CUBE)
            return seconds

        def unpickle() -> float:
            before = time.perf_counter()
            with pickled.open("rb") as file:
                pickle.load(file)
            return time.perf_counter() - before

        orders: dict[str, Callable[[], Any]] = {
            "attach": lambda: [attach() for _ in range(attaches)],
            "unpickle": lambda: [unpickle()],
            "fault": attach,
            "evict": lambda: client.evict(_CUBE),
        }
        yield lambda order: orders[order]()
