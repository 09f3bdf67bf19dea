"""`policy`: what the kernel's own policies hit of a trace, against LRU and the optimum.

The trace is a file (`--trace`), or one of those of `synthetic.py` (`--trace synthetic:NAME`; `all`
for each of them). Capacities are shares of the bytes of its distinct blocks. A decision is one call
that a policy answers or learns from: of a tier of so many entries, in turn, a touch, a touch, the
first candidate, its eviction, and an insertion. The entries are blocks of one kind in chains of
eight; or (`_mixed`) of thousands of kinds, in prefix trees.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.policy import Clock, Entry, Policy
from memosd.kernel.policies.table import POLICIES
from memosd.kernel.ports import PayloadKey
from memosd.tools.bench.replay import belady_hits, replay_hits
from memosd.tools.bench.report import Bar, Report, Row, at_least, row
from memosd.tools.bench.synthetic import SYNTHETIC
from memosd.tools.bench.traces import Request, block_key, read_trace

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_PREFIX: Final = "synthetic:"
_BARS: Final = {0.05: at_least(1.12), 0.10: at_least(1.05), 0.25: at_least(1.0)}
"""Of the conversation trace, which is what a file is taken for."""
_NEVER_BELOW: Final = at_least(0.98)
_RATE_BAR: Final = at_least(100_000)
_MIXED_BAR: Final = at_least(25_000)
"""A decision that looked at all kinds would be far below."""


@dataclass(frozen=True)
class Plan:
    trace: str = _PREFIX + "all"
    capacities: tuple[str, ...] = ("0.05", "0.10", "0.25")
    """As they are to be named."""
    entries: int = 1_000_000
    """In the tier while decisions are timed."""
    decisions: int = 500_000


FULL = Plan()
QUICK = Plan(entries=50_000, decisions=100_000)


def measure(plan: Plan, directory: Path) -> Report:
    """Replay, and time decisions. Errors: ENOENT, EINVAL (the trace)."""
    del directory  # nothing is stored
    rows: list[Row] = []
    for name, requests, bars in _traces(plan.trace):
        for capacity in plan.capacities:
            bar = bars.get(float(capacity), _NEVER_BELOW)
            rows.extend(_replayed(name, requests, capacity, bar))
    for name, make in POLICIES.items():
        for field, entries, bar in (
            ("decisions_per_s", _blocks, _RATE_BAR),
            ("decisions_per_s_mixed", _mixed, _MIXED_BAR),
        ):
            rate = _decisions_per_s(make, plan, entries)
            note = f"{plan.entries:,} entries"
            rows.append(row(f"{field}.{name}", rate, note, bar if name == "default" else None))
    rows.sort(key=lambda each: each.bar is None)
    return Report("policy", tuple(rows), _NOTES)


_NOTES: Final = (
    "hits: blocks that are there and before which all of their request are, of all asked for",
    "belady: evicts what is used latest, the deepest first, and keeps nothing that is not used "
    "again; the optimum for blocks of one size",
    "a decision: one touch, first candidate, eviction or insertion, in the ratio 2:1:1:1; seconds "
    "of processor time",
    "mixed: prefix trees, sizes and costs over six orders of magnitude, priorities 0 to 100",
)


def _traces(name: str) -> list[tuple[str, Sequence[Request], dict[float, Bar]]]:
    """Prefix of the fields, requests, bars."""
    if not name.startswith(_PREFIX):
        return [("", read_trace(Path(name)), _BARS)]
    wanted = name.removeprefix(_PREFIX)
    if wanted != "all":
        if wanted not in SYNTHETIC:
            known = ", ".join(SYNTHETIC)
            raise MemError(Errno.EINVAL, f"no synthetic trace {wanted!r}; there are {known}")
        return [("", SYNTHETIC[wanted](), {})]
    return [(f"{each}.", make(), {}) for each, make in SYNTHETIC.items()]


def distinct_sizes(requests: Sequence[Request]) -> dict[PayloadKey, int]:
    """Bytes of each block; lines that tell of its removal have none."""
    uses = (request for request in requests if not request.is_removal)
    return {entry.key: entry.size_bytes for request in uses for entry in request.blocks}


def _replayed(name: str, requests: Sequence[Request], capacity: str, bar: Bar) -> list[Row]:
    sizes = distinct_sizes(requests)
    room_bytes = max(1, int(float(capacity) * sum(sizes.values())))
    hits = {each: replay_hits(make, requests, room_bytes) for each, make in POLICIES.items()}
    hits["belady"] = belady_hits(requests, room_bytes)
    rows = [row(f"{name}hits.{capacity}.{each}", value) for each, value in hits.items()]
    against = hits["default"] / hits["lru"] if hits["lru"] else 1.0
    rows.append(row(f"{name}against_lru.{capacity}.default", against, "default / lru", bar))
    return rows


def _decisions_per_s(
    make: Callable[[Clock], Policy], plan: Plan, entries: Callable[[int, int], Iterator[Entry]]
) -> float:
    policy = make(time.monotonic)
    spread = random.Random(1)
    rounds = plan.decisions // 5
    made = list(entries(plan.entries, rounds))
    there, fresh = made[: plan.entries], made[plan.entries :]
    for entry in there:
        policy.insert(entry)
    used = [spread.choice(there).key for _ in range(2 * rounds)]
    begun = time.process_time()
    for number, entry in enumerate(fresh):
        policy.touch(used[2 * number])
        policy.touch(used[2 * number + 1])
        policy.evict(next(policy.candidates(0)).key)
        policy.insert(entry)
    return 5 * rounds / (time.process_time() - begun)


def _blocks(there: int, fresh: int) -> Iterator[Entry]:
    """Chains of eight, and then single ones, all of one kind."""
    parent = b""
    for number in range(there + fresh):
        is_first = number % 8 == 0 or number >= there
        entry = Entry(block_key(number), 1 << 16, parent=b"" if is_first else parent)
        yield entry
        parent = entry.key


def _mixed(there: int, fresh: int) -> Iterator[Entry]:
    """Prefix trees; sizes and costs over six orders of magnitude, and all priorities."""
    draw = random.Random(2)
    keys: list[PayloadKey] = []
    for number in range(there + fresh):
        keys.append(block_key(number))
        yield Entry(
            keys[-1],
            int(2 ** draw.uniform(10, 30)),
            priority=draw.randint(0, 100),
            parent=keys[-draw.randint(2, 64)] if number % 8 and number >= 64 else b"",
            restore_s=10 ** draw.uniform(-5, 1),
        )
