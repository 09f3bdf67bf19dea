"""`shootdown`: a source is edited, and everything that was made from it falls.

One text, and a thousand cubes derived from it: KV caches, which are removed with the edit, and
notes, which are marked as outdated. While it is edited, readers in other processes read, map and
search what was derived, all the time. Whatever a reader asked for after the editor had the receipt
must not be handed out any more: what was is counted.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

import libmem
from libmem.abi.calls import WriteCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_ATTRIBUTE, KvDtype, KvHeader, KvLayers, layout_of, pack_tokens
from libmem.abi.lineage import DERIVATION_ATTRIBUTE, Receipt
from libmem.abi.structs import CubeType, SearchMode
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.process import workers
from memosd.tools.bench.report import Report, at_most, row
from memosd.tools.bench.samples import sample
from memosd.tools.bench.writes import write_all

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NAMESPACE: Final = "/bench"
_SOURCE: Final = f"{_NAMESPACE}/source"
_TIMEOUT_S: Final = 120.0
_MODEL: Final = "ab" * 32
_LAYERS: Final = (KvLayers(2, 1, 16, 16),)
_TOKENS: Final = 16
_BATCH: Final = 50
_DERIVED: Final = {DERIVATION_ATTRIBUTE: {"recipe": "bench"}}
_WORD: Final = "shootdown"
"""In every note, for the searches."""


@dataclass(frozen=True)
class Plan:
    rounds: int = 7
    derived: int = 1000
    notes: int = 200
    """Of them; the others are caches."""
    readers: int = 2
    seconds: float = 0.5
    """That readers go on for after the edit."""


FULL = Plan()
QUICK = Plan(rounds=2, derived=200, notes=40)


class _Round(NamedTuple):
    """One edit."""

    receipt_s: float
    reads: int
    """Begun after the receipt."""
    stale: int
    """Of these, how many were served."""


def measure(plan: Plan, directory: Path) -> Report:
    """Derive, edit and read, again and again."""
    with private_daemon(directory) as daemon:
        daemon.start()
        with daemon.connect(_TIMEOUT_S) as client:
            client.make_namespace(_NAMESPACE)
            each = [(daemon.runtime_dir, plan, seed) for seed in range(plan.readers)]
            with workers(_reader, *each) as readers:
                rounds = [_round(client, plan, readers, number) for number in range(plan.rounds)]
        daemon.stop()
    reads = sum(it.reads for it in rounds)
    if not reads:
        raise MemError(Errno.EIO, "nobody read anything after an edit")
    return Report(
        "shootdown",
        (
            row(
                "receipt_ms", sample([it.receipt_s * 1e3 for it in rounds]),
                "the edit, until its receipt is there", at_most(100),
            ),
            row(
                "stale_reads", sum(it.stale for it in rounds),
                "served to whoever asked after that", at_most(0),
            ),
            row("reads", reads, "asked for after a receipt"),
        ),
        (
            f"{plan.derived:,} cubes derived from one text: {plan.notes:,} notes, else KV caches",
            f"{plan.readers} processes read, map and search them meanwhile; {plan.rounds} edits",
        ),
    )  # fmt: skip


def _round(client: libmem.Client, plan: Plan, readers: Any, number: int) -> _Round:
    client.write(_SOURCE, f"the source, for the {number}th time")
    _derive(client, plan)
    for reader in readers:
        reader.send("read")
    time.sleep(plan.seconds / 2)
    before = time.monotonic()
    receipt = client.write(_SOURCE, f"the source, edited, {number}").receipt
    done = time.monotonic()
    _check(receipt, plan)
    served = [it for reader in readers for it in reader.result()]
    late = [is_served for begun, is_served in served if begun > done]
    return _Round(done - before, len(late), sum(late))


def _derive(client: libmem.Client, plan: Plan) -> None:
    """All of them, anew."""
    header = KvHeader(_MODEL, KvDtype.FLOAT32, _LAYERS, tokens=_TOKENS)
    state = pack_tokens(range(_TOKENS)).ljust(layout_of(header).size_bytes, b"\0")
    caches = {**_DERIVED, KV_ATTRIBUTE: msgspec.to_builtins(header)}
    calls = []
    for number in range(plan.derived):
        draft = WriteCube(_name(number), f"{_WORD} note {number}".encode(), parents=(_SOURCE,))
        if number < plan.notes:
            calls.append(replace(draft, attributes=_DERIVED))
        else:
            calls.append(replace(draft, payload=state, type=CubeType.ACTIVATION, attributes=caches))
    write_all(client, calls, _BATCH)


def _name(number: int) -> str:
    return f"{_NAMESPACE}/derived/{number}"


def _check(receipt: Receipt | None, plan: Plan) -> None:
    if receipt is None or receipt.count != plan.derived:
        raise MemError(Errno.EIO, f"not all that was derived is in the receipt: {receipt}")


@contextmanager
def _reader(
    runtime_dir: Path, plan: Plan, seed: int
) -> Iterator[Callable[[Any], list[tuple[float, bool]]]]:
    draw = random.Random(seed)
    with libmem.connect(runtime_dir, timeout_s=_TIMEOUT_S) as client:

        def ask() -> bool:
            """Was something derived handed out?"""
            if draw.random() < 0.1:
                hits = client.search(_WORD, k=5, mode=SearchMode.WORDS)
                return any(hit.name != _SOURCE for hit in hits)
            name = _name(draw.randrange(plan.derived))
            try:
                if draw.random() < 0.5:
                    client.read(name)
                else:
                    client.map(name).close()
            except MemError as error:
                if error.errno not in (Errno.ENOENT, Errno.EOUTDATED):
                    raise
                return False
            return True

        def read(_: object) -> list[tuple[float, bool]]:
            found = []
            end = time.monotonic() + 1.5 * plan.seconds
            while (begun := time.monotonic()) < end:
                found.append((begun, ask()))
            return found

        yield read
