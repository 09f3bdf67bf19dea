"""`fairness`: what a namespace with `min` loses while another floods ten times its share.

One namespace reads its working set, all of which its `min` covers; another has ten times of what
is left of the RAM budget and maps one cube after another from several processes. A hit is a map
that found its cube in RAM: maps less faults, as the kernel counts them. The peer is the calm
namespace alone; what it would lose without its `min` is measured as well. The policy is LRU: the
default one learns that what floods is not used again, which hides what `min` does.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import libmem
from libmem.abi.calls import SetLimits
from libmem.abi.control import Limits, TierLimits
from libmem.abi.structs import CubeType
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.process import Worker, workers
from memosd.tools.bench.report import Report, at_most, row
from memosd.tools.bench.samples import percentile, ratios, sample

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_CALM: Final = "/calm"
_FLOOD: Final = "/flood"
_PAGE_BYTES: Final = 4096
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float
    """Of each way to measure, in one round."""
    budget_cubes: int
    """What RAM holds, in cubes."""
    calm_cubes: int
    cube_bytes: int = _MIB
    flood_processes: int = 2

    @property
    def flood_cubes(self) -> int:
        """Ten times the other's share."""
        return 10 * (self.budget_cubes - self.calm_cubes)


FULL = Plan(rounds=5, seconds=4.0, budget_cubes=64, calm_cubes=16)
QUICK = Plan(rounds=2, seconds=1.0, budget_cubes=32, calm_cubes=8)


class Visit(NamedTuple):
    """What the calm namespace got in a while."""

    maps: int
    hits: int
    p99_us: float

    @property
    def share(self) -> float:
        """Of its maps that were hits."""
        return self.hits / self.maps


class Round(NamedTuple):
    """The same while three times."""

    alone: Visit
    flooded: Visit
    unprotected: Visit
    flood_per_s: float
    """Cubes that the flood mapped beside the protected one."""


def measure(plan: Plan, directory: Path) -> Report:
    """Interleave the calm namespace alone, flooded with its `min`, and flooded without."""
    budget = f'[ram]\nbudget_bytes = "{plan.budget_cubes * plan.cube_bytes // _MIB}MiB"\n'
    budget += 'policy = "lru"\n'
    with private_daemon(directory, config=budget) as daemon:
        daemon.start()
        with daemon.connect(timeout_s=60) as client:
            for name, count in ((_CALM, plan.calm_cubes), (_FLOOD, plan.flood_cubes)):
                client.make_namespace(name)
                for number in range(count):
                    payload = random.Random(number).randbytes(plan.cube_bytes)
                    client.write(f"{name}/{number}", payload, type=CubeType.BLOB)
            each = [(daemon.runtime_dir, plan, n) for n in range(plan.flood_processes)]
            with (
                workers(_reader, (daemon.runtime_dir, plan)) as [calm],
                workers(_flooder, *each) as crowd,
            ):
                rounds = [_round(client, plan, calm, crowd) for _ in range(plan.rounds)]
        daemon.stop()
    return _report(plan, rounds)


def _round(client: libmem.Client, plan: Plan, calm: Worker, crowd: list[Worker]) -> Round:
    least = Limits(ram=TierLimits(min_bytes=plan.calm_cubes * plan.cube_bytes))
    client.call(SetLimits(_CALM, least))
    calm.ask(None)
    alone: Visit = calm.ask(plan.seconds)
    flooded, per_s = _together(plan, calm, crowd)
    client.call(SetLimits(_CALM, Limits()))
    unprotected, _ = _together(plan, calm, crowd)
    return Round(alone, flooded, unprotected, per_s)


def _together(plan: Plan, calm: Worker, crowd: list[Worker]) -> tuple[Visit, float]:
    """The calm one while all others flood; what it got, and cubes per second of the flood."""
    # It begins later and ends earlier than the flood, so that all of it is flooded.
    for each in crowd:
        each.send(plan.seconds * 1.5)
    time.sleep(plan.seconds * 0.25)
    visit: Visit = calm.ask(plan.seconds)
    per_s: float = sum(each.result() for each in crowd)
    return visit, per_s


@contextmanager
def _reader(runtime_dir: Path, plan: Plan) -> Iterator[Callable[[Any], Visit | None]]:
    """Reads its working set in any order; None: just once, to bring it into RAM."""
    some = random.Random(0)
    names = [f"{_CALM}/{number}" for number in range(plan.calm_cubes)]
    with libmem.connect(runtime_dir, timeout_s=60) as client:

        def faults() -> int:
            return sum(client.stat(name).behaviour.faults for name in names)

        def read(seconds: float | None) -> Visit | None:
            if seconds is None:
                for name in names:
                    _touch(client, name)
                return None
            before = faults()
            took: list[float] = []
            end = time.monotonic() + seconds
            while time.monotonic() < end or not took:
                begin = time.perf_counter()
                _touch(client, some.choice(names))
                took.append(time.perf_counter() - begin)
            missed = faults() - before
            return Visit(len(took), len(took) - missed, percentile(took, 0.99) * 1e6)

        yield read


@contextmanager
def _flooder(runtime_dir: Path, plan: Plan, number: int) -> Iterator[Callable[[float], float]]:
    """Maps one cube after another; cubes per second."""
    with libmem.connect(runtime_dir, timeout_s=60) as client:
        at = number * plan.flood_cubes // plan.flood_processes

        def flood(seconds: float) -> float:
            nonlocal at
            begin, mapped = time.monotonic(), 0
            while (passed := time.monotonic() - begin) < seconds:
                _touch(client, f"{_FLOOD}/{at % plan.flood_cubes}")
                at, mapped = at + 1, mapped + 1
            return mapped / passed

        yield flood


def _touch(client: libmem.Client, name: str) -> None:
    """Map a cube and read a byte of each of its pages."""
    with client.map(name) as mapping, memoryview(mapping) as view:
        bytes(view[::_PAGE_BYTES])


def _report(plan: Plan, rounds: list[Round]) -> Report:
    alone = [each.alone.share for each in rounds]
    kept = ratios([each.flooded.share for each in rounds], alone)
    bare = ratios([each.unprotected.share for each in rounds], alone)
    return Report(
        "fairness",
        (
            row("hit_loss", 1 - kept.median, "hits lost to the flood, with min", at_most(0.02)),
            row("hit_loss_most", 1 - kept.low, "the same, of the worst round"),
            row("hit_loss_bare", 1 - bare.median, "the same without min"),
            row("hits_alone", sample(alone), "share of maps that found the cube in RAM"),
            row("flood_per_s", sample([each.flood_per_s for each in rounds]), "cubes it mapped"),
            row("alone_p99_us", sample([each.alone.p99_us for each in rounds]), "map and read"),
            row("flooded_p99_us", sample([each.flooded.p99_us for each in rounds]), "beside it"),
        ),
        (
            f"{plan.calm_cubes} cubes of {plan.cube_bytes // _MIB} MiB against "
            f"{plan.flood_cubes}, a RAM budget of {plan.budget_cubes}",
            f"{plan.flood_processes} processes flood; {plan.rounds} rounds of "
            f"{plan.seconds:g} s each, interleaved",
            f"{sum(each.flooded.maps for each in rounds):,} maps beside the flood",
        ),
    )
