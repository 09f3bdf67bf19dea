"""`cost`: load or compute as the cost model says, against always loading and always computing.

Prefixes of several lengths lie in a store, on disks of several speeds (throttled by injection: the
daemon is told to be slower than it is, `drivers/tiers/throttled.py`). Each request is a prefix with
a question behind it, and asks for the first token: by `attach` as the cost model decides, by
`attach` that always loads, and by the model without a memory; one after another, in each of the
six orders equally often. Before the three, the prefix is evicted from RAM. Who follows the model
and who always loads have a daemon each, for each disk: the one learns from nobody else's loads.

Each round asks for everything on every disk, in an order of its own, so what disturbs the machine
for a minute disturbs all classes alike. Short prompts, of which a disturbance is a larger part, are
asked for more often; sums are of each class's mean, so that they weigh no more for it.

A daemon knows nothing at first. The first requests to each disk are the learning phase: counted
apart, and told beside the others.
"""

import copy
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, permutations
from pathlib import Path
from typing import Any, Final, NamedTuple

import libmem
from libmem import hf
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import pack_tokens
from memosd.drivers.tiers.throttled import VARIABLE, Speed
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.prompts import QUESTION_TOKENS, load_model, prompt_of, question_of
from memosd.tools.bench.report import Report, at_most, row

__all__ = ["FULL", "QUICK", "Found", "Plan", "Request", "measure", "report_of"]

_NAMESPACE: Final = "/bench"
_DISKS: Final = {
    "quick": Speed(),
    "far": Speed(0.4, 200e6),
    "slow": Speed(0.01, 8e6),
}
_PART: Final = "part"
_PATIENCE_S: Final = 120.0
_EVICTION_S: Final = 30.0


@dataclass(frozen=True)
class Plan:
    rounds: int
    lengths: tuple[int, ...] = (96, 256, 512, 1024)
    part_tokens: tuple[int, int] = (768, 1024)
    """A prefix of two parts, the first of which is in RAM."""
    short_tokens: int = 256
    """Prefixes up to here are asked for `short_times` times a round."""
    short_times: int = 3
    learning: int = 4
    """Requests to each disk that are counted apart."""
    disks: tuple[str, ...] = tuple(_DISKS)


FULL = Plan(rounds=6)
QUICK = Plan(rounds=2, lengths=(96, 256, 512), part_tokens=(256, 384), short_times=1)


class Prefix(NamedTuple):
    """A class of requests."""

    label: str
    name: str
    """What is evicted before each request."""
    ids: Any
    """[1, tokens], with the question behind them."""


class Request(NamedTuple):
    """Seconds to the first token, three ways."""

    follow_s: float
    load_s: float
    compute_s: float

    @property
    def best_s(self) -> float:
        return min(self.load_s, self.compute_s)


class _Side:
    """A daemon, and a model that is attached to it."""

    def __init__(self, client: libmem.Client, attached: hf.Attached, model: Any) -> None:
        self.client, self.attached, self.model = client, attached, model

    def first_token_s(self, prefix: Prefix) -> float:
        """Seconds of a generation of one token."""
        seconds = _first_token_s(self.model, prefix.ids)
        self.attached.flush()
        return seconds

    def keep(self, ids: Any) -> str:
        """Compute a text's cache and let `attach` store it; its name. Errors: EIO (it did not)."""
        _first_token_s(self.model, ids)
        self.attached.flush()
        packed = pack_tokens(ids[0].tolist())
        found = self.client.find_prefix(hf.fingerprint(self.model), packed, under=_NAMESPACE)
        if found.cube_tokens != ids.shape[1]:
            raise MemError(Errno.EIO, f"a text of {ids.shape[1]} tokens was not kept")
        return found.name.partition("@")[0]

    def evict(self, name: str) -> None:
        """Have a prefix on disk only. Errors: EBUSY (it does not come free)."""
        self.client.post_released()
        end_s = time.monotonic() + _EVICTION_S
        while True:
            try:
                self.client.evict(name)
            except MemError as error:
                if error.errno is not Errno.EBUSY or time.monotonic() > end_s:
                    raise
                time.sleep(0.01)
            else:
                return


class _Disk(NamedTuple):
    """A disk, with what lies on it."""

    name: str
    sides: list[_Side]
    """Who follows the model, who always loads."""
    prefixes: list[Prefix]
    orders: dict[str, Iterator[tuple[int, ...]]]
    """For each class in which order the three ways are gone, in turn."""


Found = dict[tuple[str, str], list[Request]]
"""Disk and label of a class -> its requests."""


def measure(plan: Plan, directory: Path) -> Report:
    """All disks round by round, each with daemons of its own."""
    model = load_model()
    _first_token_s(model, question_of())
    chance = random.Random(0)
    found: Found = {}
    with ExitStack() as stack:
        disks = [stack.enter_context(_disk(plan, directory, model, name)) for name in plan.disks]
        learning = [
            _request(model, disk, disk.prefixes[len(plan.lengths) // 2])
            for disk in disks
            for _ in range(plan.learning)
        ]
        asked = [
            (disk, prefix)
            for disk in disks
            for prefix in disk.prefixes
            for _ in range(_times(plan, prefix))
        ]
        for _ in range(plan.rounds):
            for disk, prefix in chance.sample(asked, len(asked)):
                request = _request(model, disk, prefix)
                found.setdefault((disk.name, prefix.label), []).append(request)
    return report_of(plan, learning, found)


def _times(plan: Plan, prefix: Prefix) -> int:
    """How often a round asks for a prefix."""
    is_short = prefix.ids.shape[1] <= plan.short_tokens + QUESTION_TOKENS
    return plan.short_times if is_short else 1


@contextmanager
def _disk(plan: Plan, directory: Path, model: Any, name: str) -> Iterator[_Disk]:
    speed_path = directory / f"memos-bench-{os.getpid()}-{name}.speed"
    with ExitStack() as stack:
        stack.callback(speed_path.unlink, missing_ok=True)
        sides = [
            stack.enter_context(_side(directory, model, restore, speed_path))
            for restore in (hf.Restore.QUICKEST, hf.Restore.LOAD)
        ]
        prefixes = _store(plan, sides)
        _DISKS[name].write(speed_path)
        chance, orders = random.Random(name), list(permutations(range(len(Request._fields))))
        turns: dict[str, Iterator[tuple[int, ...]]]
        turns = {each.label: cycle(chance.sample(orders, len(orders))) for each in prefixes}
        yield _Disk(name, sides, prefixes, turns)


@contextmanager
def _side(directory: Path, model: Any, restore: hf.Restore, speed_path: Path) -> Iterator[_Side]:
    with private_daemon(directory) as daemon:
        daemon.environment[VARIABLE] = str(speed_path)
        daemon.start()
        twin = copy.copy(model)  # the same weights, with a memory of its own
        hf.fingerprint(twin)
        with (
            daemon.connect(timeout_s=_PATIENCE_S) as client,
            hf.attach(twin, client, namespace=_NAMESPACE, restore=restore) as attached,
        ):
            yield _Side(client, attached, twin)


def _store(plan: Plan, sides: list[_Side]) -> list[Prefix]:
    """Texts that share nothing, each on both daemons' disks, by whoever asked for them first."""
    import torch

    base_tokens, part_tokens = plan.part_tokens
    text = prompt_of(sum(plan.lengths) + part_tokens)
    *wholes, last = text.split([*plan.lengths, part_tokens], dim=1)
    for side in sides:  # names are made of the tokens: the same on both sides
        names = [side.keep(ids) for ids in wholes]
        side.client.pin(side.keep(last[:, :base_tokens]))
        names.append(side.keep(last))
        side.client.sync()
    labels = [*map(str, plan.lengths), _PART]
    return [
        Prefix(label, name, torch.cat([ids, question_of()], dim=1))
        for label, name, ids in zip(labels, names, [*wholes, last], strict=True)
    ]


def _first_token_s(model: Any, ids: Any) -> float:
    begun = time.perf_counter()
    model.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    return time.perf_counter() - begun


def _request(model: Any, disk: _Disk, prefix: Prefix) -> Request:
    """All three ways, from the same state of the machine."""
    for side in disk.sides:
        side.evict(prefix.name)
    follower, loader = disk.sides
    ways: list[Callable[[], float]] = [
        lambda: follower.first_token_s(prefix),
        lambda: loader.first_token_s(prefix),
        lambda: _first_token_s(model, prefix.ids),
    ]
    seconds = [0.0, 0.0, 0.0]
    for way in next(disk.orders[prefix.label]):
        seconds[way] = ways[way]()
    return Request(*seconds)


# -- rows ------------------------------------------------------------------------------------


def report_of(plan: Plan, learning: list[Request], found: Found) -> Report:
    """What was found, every class with the same weight however often it was asked for."""
    every = [
        (request, plan.rounds / len(requests))
        for requests in found.values()
        for request in requests
    ]
    first = [(request, 1.0) for request in learning]
    classes = {place: _medians(requests) for place, requests in found.items()}
    worst = max(map(_against_computing, found.values()))
    rows = [
        row("regret", _regret(every), "following / better of the two, summed", at_most(1.10)),
        row("worst_vs_recompute", worst, "of a class: following / computing", at_most(1.05)),
        row("regret_with_learning", _regret([*first, *every]), "the first requests included"),
        row("regret_learning", _regret(first), f"of the first {plan.learning} to each disk"),
        row("always_load", _share(every, "load_s"), "always loading / better of the two"),
        row("always_compute", _share(every, "compute_s"), "always computing / better of the two"),
    ]
    base_tokens, part_tokens = plan.part_tokens
    shown = {_PART: f"{part_tokens} tokens, {base_tokens} of them in RAM"}
    for (disk, label), each in classes.items():
        what = shown.get(label, f"{label} tokens")
        note = f"{what}, {disk} disk: load {each.load_s:.3f}, compute {each.compute_s:.3f}"
        rows.append(row(f"{disk}_{label}_s", each.follow_s, note))
    disks = ", ".join(
        f"{name} {_described(speed)}" for name, speed in _DISKS.items() if name in plan.disks
    )
    notes = (
        f"SmolLM2-135M-Instruct, float32; {QUESTION_TOKENS} tokens of a question behind each",
        f"{plan.rounds} rounds over {len(found)} classes, of prefixes up to {plan.short_tokens} "
        f"tokens {plan.short_times} requests in each; medians, each ratio taken within a request",
        f"disks: {disks}",
    )
    return Report("cost", tuple(rows), notes)


def _medians(requests: list[Request]) -> Request:
    return Request(*map(statistics.median, zip(*requests, strict=True)))


def _against_computing(requests: list[Request]) -> float:
    return statistics.median(each.follow_s / each.compute_s for each in requests)


def _regret(weighed: list[tuple[Request, float]]) -> float:
    return _share(weighed, "follow_s")


def _share(weighed: list[tuple[Request, float]], way: str) -> float:
    """Seconds of one way, of all requests by their weights, to those of the better way of each."""
    took_s: float = sum(weight * getattr(each, way) for each, weight in weighed)
    return took_s / sum(weight * each.best_s for each, weight in weighed)


def _described(speed: Speed) -> str:
    if speed == Speed():
        return "as it is"
    return f"{speed.latency_s * 1e3:g} ms and {speed.bytes_per_s / 1e6:g} MB/s"
