"""`reclaim`: what a fault costs while everybody together uses four times the RAM there is.

Several processes map and touch cubes, and write new versions of them, half of those durable. What
they work on is first half of the RAM tier's budget, each fault forced by evicting the cube before;
then four times the budget, where faults come by themselves; then half of it again. Meanwhile it is
looked, again and again, at what the daemon says and at what the operating system says: the memory
behind the frames that the daemon holds. Neither may ever be above the budget.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import libmem
from libmem.abi.calls import InfoReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Durability, TierName
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.process import Worker, workers
from memosd.tools.bench.report import Report, at_most, row
from memosd.tools.bench.samples import percentile

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NAMESPACE: Final = "/bench"
_SIZES: Final = (128 << 10, 512 << 10, 1 << 20)
_STEP_BYTES: Final = 4096
_READS: Final = 0.7
"""Of all uses; the others write."""
_LOOK_S: Final = 0.02
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Plan:
    seconds: float
    """At four times the budget; half as long, before and after together, at half of it."""
    clients: int = 4
    budget_bytes: int = 64 << 20


FULL = Plan(seconds=20)
QUICK = Plan(seconds=5)


class _Order(NamedTuple):
    """What a client is to do."""

    seconds: float
    bytes: int
    """Of cubes to work on."""
    is_forced: bool


class _Found(NamedTuple):
    """What a client saw."""

    faults_s: list[float]
    hits_s: list[float]
    writes: int
    errors: list[str]


class _Looks(NamedTuple):
    """What was seen of the tiers from outside."""

    looks: int
    overruns: int
    peak_bytes: int
    """Of memory behind frames, by the operating system."""


def measure(plan: Plan, directory: Path) -> Report:
    """Half, four times, half again."""
    config = (
        f"[ram]\nbudget_bytes = {plan.budget_bytes}\n"
        f"[disk]\nbudget_bytes = {64 * plan.budget_bytes}\n"
        '[listen]\nmode = "0600"\n'
    )
    with private_daemon(directory, config=config) as daemon:
        daemon.start()
        with daemon.connect(_TIMEOUT_S) as client:
            client.make_namespace(_NAMESPACE)
            total_bytes = 4 * plan.budget_bytes // plan.clients
            each = [(daemon.runtime_dir, n, total_bytes) for n in range(plan.clients)]
            with workers(_client, *each) as started:
                small = _Order(plan.seconds / 4, total_bytes // 8, is_forced=True)
                large = _Order(plan.seconds, total_bytes, is_forced=False)
                first, looks_first = _round(daemon, client, started, small)
                found, looks = _round(daemon, client, started, large)
                last, looks_last = _round(daemon, client, started, small)
            info = client.info()
        daemon.stop()
    calm = [one for each in (*first, *last) for one in each.faults_s]
    return _report(plan, calm, found, [looks_first, looks, looks_last], info)


def _round(
    daemon: Daemon, client: libmem.Client, started: list[Worker], order: _Order
) -> tuple[list[_Found], _Looks]:
    for worker in started:
        worker.send(order)
    looks = _watch(daemon, client, order.seconds)
    return [worker.result() for worker in started], looks


def _report(
    plan: Plan, calm: list[float], found: list[_Found], looks: list[_Looks], info: InfoReply
) -> Report:
    faults = [one for each in found for one in each.faults_s]
    hits = [one for each in found for one in each.hits_s]
    errors = [error for each in found for error in each.errors]
    if not calm or not faults:
        raise MemError(Errno.EIO, "not one fault was measured")
    writes = sum(each.writes for each in found)
    peak = max(each.peak_bytes for each in looks) / plan.budget_bytes
    notes = [
        f"{plan.clients} processes, RAM for {plan.budget_bytes >> 20} MiB; {_READS:.0%} map and "
        "touch every page, the others write a new version, every second one durable",
        f"{sum(each.looks for each in looks):,} looks at the budgets",
        f"evictions since the start: {info.evictions:,}",
        *(f"error: {error}" for error in sorted(set(errors))[:3]),
    ]
    return Report(
        "reclaim",
        (
            row("overruns", sum(each.overruns for each in looks), "looks above it", at_most(0)),
            row("errors", len(errors), "calls that failed", at_most(0)),
            row(
                "fault_p99_ratio",
                percentile(faults, 0.99) / percentile(calm, 0.99),
                "at 4 times the budget / at half of it",
                at_most(5),
            ),
            row("fault_p99_ms", percentile(faults, 0.99) * 1e3, "at 4 times the budget"),
            row("fault_p50_ms", percentile(faults, 0.5) * 1e3),
            row("calm_fault_p99_ms", percentile(calm, 0.99) * 1e3, "at half of the budget"),
            row("calm_fault_p50_ms", percentile(calm, 0.5) * 1e3),
            row("faults_per_s", len(faults) / plan.seconds),
            row("hits", len(hits) / (len(hits) + len(faults)), "share of maps found in RAM"),
            row("writes_per_s", writes / plan.seconds),
            row("peak_share", peak, "memory behind frames / budget"),
        ),
        tuple(notes),
    )


def _watch(daemon: Daemon, client: libmem.Client, seconds: float) -> _Looks:
    """Look at the budgets until the time is over."""
    looks = overruns = peak = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        info = client.info()
        ram = next(tier for tier in info.tiers if tier.name == "ram")
        is_over = any(tier.used_bytes > tier.budget_bytes for tier in info.tiers)
        # The frames are not looked at all at once: one may go and another come meanwhile.
        behind = min(_frames_bytes(daemon.pid) for _ in range(3))
        peak = max(peak, behind)
        overruns += is_over or behind > ram.budget_bytes
        looks += 1
        time.sleep(_LOOK_S)
    return _Looks(looks, overruns, peak)


def _frames_bytes(pid: int) -> int:
    """The memory behind the memfds that a process has open."""
    total = 0
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with suppress(OSError):  # closed meanwhile
            if os.readlink(f"{folder}/{number}").startswith("/memfd:"):
                total += os.stat(f"{folder}/{number}").st_blocks * 512
    return total


@contextmanager
def _client(
    runtime_dir: Path, number: int, total_bytes: int
) -> Iterator[Callable[[_Order], _Found]]:
    """A process with cubes of its own."""
    rng = random.Random(number)
    payloads = {size: rng.randbytes(size) for size in _SIZES}
    with libmem.connect(runtime_dir, timeout_s=_TIMEOUT_S) as client:
        cubes: list[tuple[str, int]] = []
        while sum(size for _, size in cubes) < total_bytes:
            cubes.append((f"{_NAMESPACE}/{number}/{len(cubes)}", rng.choice(_SIZES)))
            _write(client, *cubes[-1], payloads, Durability.DURABLE)
        yield lambda order: _work(client, rng, _within(cubes, order.bytes), payloads, order)


def _within(cubes: list[tuple[str, int]], limit_bytes: int) -> list[tuple[str, int]]:
    """As many cubes as amount to so much."""
    chosen: list[tuple[str, int]] = []
    for cube in cubes:
        limit_bytes -= cube[1]
        if limit_bytes < 0:
            break
        chosen.append(cube)
    return chosen


def _work(
    client: libmem.Client,
    rng: random.Random,
    cubes: list[tuple[str, int]],
    payloads: dict[int, bytes],
    order: _Order,
) -> _Found:
    found = _Found([], [], 0, [])
    writes = 0
    end = time.monotonic() + order.seconds
    while time.monotonic() < end:
        name, size_bytes = rng.choice(cubes)
        try:
            if rng.random() < _READS:
                if order.is_forced:
                    client.evict(name)
                is_hit = TierName.RAM in client.stat(name).tiers
                times = found.hits_s if is_hit else found.faults_s
                times.append(_map(client, name, payloads[size_bytes]))
            else:
                durability = Durability.CACHE if writes % 2 else Durability.DURABLE
                version = _write(client, name, size_bytes, payloads, durability)
                client.unlink(f"{name}@v{version - 1}")
                writes += 1
        except MemError as error:
            found.errors.append(str(error))
    return found._replace(writes=writes)


def _map(client: libmem.Client, name: str, payload: bytes) -> float:
    """Seconds until the cube is mapped; every page of it is touched afterwards."""
    before = time.perf_counter()
    with client.map(name) as mapping:
        seconds = time.perf_counter() - before
        if mapping[::_STEP_BYTES] != payload[::_STEP_BYTES]:
            raise MemError(Errno.EIO, "the mapping does not hold what was written", cube=name)
    return seconds


def _write(
    client: libmem.Client,
    name: str,
    size_bytes: int,
    payloads: dict[int, bytes],
    durability: Durability,
) -> int:
    """Write the cube's next version; its number."""
    options: dict[str, Any] = {"type": CubeType.BLOB, "durability": durability}
    with client.create(name, size_bytes, **options) as fill:
        fill.buffer[:] = payloads[size_bytes]
    return client.stat(name).version
