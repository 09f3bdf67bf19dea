"""Samples of a measurement: medians, spreads, and ratios of interleaved rounds.

Pure arithmetic for the benchmarks. Invariant: a ratio is taken per round, between two
measurements made right after each other, and only then summed up, so that a machine that turns
slow for a while slows both sides of it.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

__all__ = ["Sample", "interleave", "percentile", "ratios", "sample"]

T = TypeVar("T")


class Sample(NamedTuple):
    """The median of some rounds, with the smallest and the largest of them."""

    median: float
    low: float
    high: float


def sample(values: Sequence[float]) -> Sample:
    """Sum up at least one value."""
    return Sample(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], peers: Sequence[float]) -> Sample:
    """Our value over the peer's of the same round, for every round."""
    return sample([mine / theirs for mine, theirs in zip(ours, peers, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def interleave(rounds: int, *bodies: Callable[[], T]) -> list[list[T]]:
    """Run every body once per round and return each body's results, in the order of the rounds.

    The first body of one round is the last of the next: nobody always runs on a warm cache.
    """
    results: list[list[T]] = [[] for _ in bodies]
    for turn in range(rounds):
        for step in range(len(bodies)):
            index = (turn + step) % len(bodies)
            results[index].append(bodies[index]())
    return results
