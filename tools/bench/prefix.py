"""`prefix`: what finding the longest prefix costs above one syscall.

Ours is `find_prefix` through libmem for a prompt of 2,048 tokens among many registered cubes of
that length. The peer is the `stat_cube` of the `rpc` benchmark, in the same process and the same
rounds. The cubes are tiny in everything but their tokens: half begin with one of a few system
prompts, as agents' prompts do, half are alike in nothing. Prompts are answered for every length of
prefix there is: none, a part of a system prompt, a conversation cut short, a whole cube.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

import libmem
from libmem.abi.calls import WriteCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvDtype, KvHeader, KvLayers, layout_of, pack_tokens
from libmem.abi.structs import CubeType
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.process import workers
from memosd.tools.bench.report import Report, at_most, row
from memosd.tools.bench.samples import interleave, percentile, ratios, sample
from memosd.tools.bench.writes import write_all

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_MODEL: Final = "5a" * 32
_VOCABULARY: Final = 49_152
_SYSTEM_PROMPTS: Final = 8
_SYSTEM_TOKENS: Final = 700
_BATCH: Final = 16
_NAMESPACE: Final = "/bench"
_LAYERS: Final = (KvLayers(count=1, heads=1, key_dim=1, value_dim=1),)


@dataclass(frozen=True)
class Plan:
    rounds: int
    calls: int
    """Calls of each kind in one round."""
    cubes: int = 10_000
    tokens: int = 2048


FULL = Plan(rounds=15, calls=400)
QUICK = Plan(rounds=5, calls=200, cubes=1000)


def measure(plan: Plan, directory: Path) -> Report:
    """Interleave rounds of both and compare medians, in µs."""
    cubes = _cubes(plan)
    with private_daemon(directory) as daemon:
        daemon.start()
        with daemon.connect(timeout_s=60) as client:
            client.make_namespace(_NAMESPACE)
            _register(client, cubes)
            client.sync()
        with workers(_caller, (daemon.runtime_dir, plan)) as [caller]:
            ours, peers = interleave(
                plan.rounds, lambda: caller.ask("find"), lambda: caller.ask("stat")
            )
        daemon.stop()
        restart_s = daemon.start()
        with daemon.connect() as client:
            rss_mib = client.info().rss_bytes / 2**20
        daemon.stop()
    mine = [percentile(times, 0.5) for times in ours]
    theirs = [percentile(times, 0.5) for times in peers]
    label = f"{plan.cubes:,} cubes of {plan.tokens:,} tokens"
    return Report(
        "prefix",
        (
            row("find_ratio", ratios(mine, theirs), "find_prefix / stat_cube, p50", at_most(2)),
            row("find_p50_us", sample(mine), f"find_prefix, {label}"),
            row("find_p99_us", sample([percentile(times, 0.99) for times in ours]), "the same"),
            row("stat_p50_us", sample(theirs), "stat_cube"),
            row("restart_s", restart_s, f"to READY with {label}"),
            row("restart_rss_mib", rss_mib, "resident after that"),
        ),
        (
            f"prompts of {plan.tokens:,} tokens; each answer compared with what was written",
            f"{plan.rounds} rounds of {plan.calls} calls each, alternating; ratios per round",
        ),
    )


def _cubes(plan: Plan) -> list[list[int]]:
    """The token ids of every cube; the same ones each time."""
    some = random.Random(0)
    systems = [_random_tokens(some, _SYSTEM_TOKENS) for _ in range(_SYSTEM_PROMPTS)]
    cubes = []
    for number in range(plan.cubes):
        begin = systems[number % _SYSTEM_PROMPTS] if number % 2 else []
        cubes.append(begin + _random_tokens(some, plan.tokens - len(begin)))
    return cubes


def _random_tokens(some: random.Random, count: int) -> list[int]:
    return some.choices(range(_VOCABULARY), k=count)


def _name(number: int) -> str:
    return f"{_NAMESPACE}/kv/{number:06}"


def _register(client: libmem.Client, cubes: list[list[int]]) -> None:
    for first in range(0, len(cubes), _BATCH):
        calls = [
            _write(_name(first + at), tokens)
            for at, tokens in enumerate(cubes[first : first + _BATCH])
        ]
        write_all(client, calls, _BATCH)


def _write(name: str, tokens: list[int]) -> WriteCube:
    header = KvHeader(_MODEL, KvDtype.FLOAT16, _LAYERS, tokens=len(tokens))
    payload = pack_tokens(tokens).ljust(layout_of(header).size_bytes, b"\0")
    attributes = {"kv": msgspec.to_builtins(header)}
    return WriteCube(name, payload, type=CubeType.ACTIVATION, attributes=attributes)


@contextmanager
def _caller(runtime_dir: Path, plan: Plan) -> Iterator[Callable[[Any], list[float]]]:
    """A process that asks; an order is "find" or "stat"."""
    cubes = _cubes(plan)
    some = random.Random(1)
    prompts = [_prompt(some, cubes) for _ in range(plan.calls)]
    with libmem.connect(runtime_dir) as client:

        def find() -> list[float]:
            times = []
            for packed, shared in prompts:
                before = time.perf_counter_ns()
                found = client.find_prefix(_MODEL, packed)
                times.append((time.perf_counter_ns() - before) / 1e3)
                if found.tokens != shared:
                    raise MemError(
                        Errno.EIO, f"{found.tokens} tokens were found, {shared} are shared"
                    )
            return times

        def stat() -> list[float]:
            times = []
            for number in range(plan.calls):
                before = time.perf_counter_ns()
                client.stat(_name(number))
                times.append((time.perf_counter_ns() - before) / 1e3)
            return times

        orders = {"find": find, "stat": stat}
        yield lambda order: orders[order]()


def _prompt(some: random.Random, cubes: list[list[int]]) -> tuple[bytes, int]:
    """A packed prompt, and how many of its tokens some cube shares."""
    whole = some.choice(cubes)
    shared = some.choice([0, _SYSTEM_TOKENS // 2, _SYSTEM_TOKENS + 301, len(whole)])
    # The first token that differs is none that any cube has.
    other = [_VOCABULARY, *_random_tokens(some, len(whole))]
    return pack_tokens((whole[:shared] + other)[: len(whole)]), shared
