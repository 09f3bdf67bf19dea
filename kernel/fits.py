"""Fits: what something takes, learned from what it took. Pure arithmetic, no clock of its own.

A `Fit` says seconds = sum of coefficient x feature, no coefficient below 0: latency and bytes for a
transfer, a constant, tokens and pairs of tokens for a prefill. It begins as a guess, the prior, and
is kept in units of it: what is fitted is by which factor each coefficient of the prior is off, so
that one measurement of one size already corrects the guess for all sizes, and several sizes
correct its shape. Squares of relative errors are minimised, by normal equations.

Forgotten by count: each measurement makes the earlier ones weigh a little less, as far as they are
of the same kind. Robust: one measurement
far off counts as `_FAR` times off at most; two in a row on the same side mean that the world
changed, and everything before them is forgotten. Forgotten by time, where asked for: an estimate
above the prior that nobody confirmed falls back to it, or a disk that was slow once would never be
tried again.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Final

from memosd.kernel.rows import CostRow

__all__ = ["ENOUGH", "Fit"]

ENOUGH: Final = 2
"""Measurements that make an estimate more than a guess: the first often pays for warming up."""
_DECAY: Final = 0.85
"""What a measurement still weighs when the next has come: some seven count."""
_LEAST: Final = 1e-6
"""No estimate is a smaller part of its guess: nothing takes no time."""
_FAR: Final = 3.0
"""Times more or less than expected is far off."""
_RIDGE: Final = 1e-4
"""Weight of the prior's shape, in measurements: it decides what no measurement tells of, and must
not hold back a factor that is hundreds of times another's. With ten times as much, a disk of 400 ms
and 200 MB/s is foretold 25 % off after 12 loads (8 % so); with a tenth, long prompts after short
ones only are."""
_SHAPED: Final = 4
"""Measurements of several sizes after which one that is far off is more likely odd than right."""
_HALF_LIFE_S: Final = 600.0
"""An estimate above the prior is half-way back to it, by factors, after so long."""


class Fit:
    """One estimate. `prior`: its coefficients before anything was measured, all above 0."""

    __slots__ = ("_factors", "_prior", "_returns", "row")

    def __init__(
        self, prior: Sequence[float], *, returns: bool, row: CostRow | None = None
    ) -> None:
        """`returns`: an estimate above the prior falls back to it in time."""
        self._prior = tuple(prior)
        self._returns = returns
        size = len(self._prior)
        if row is None or len(row.gram) != size * size or len(row.moment) != size:
            row = _blank(size)
        self.row = row
        """What is kept of the measurements; a row of `costs`."""
        self._factors: list[float] | None = None

    @property
    def is_measured(self) -> bool:
        return self.row.samples >= ENOUGH

    def observe(self, features: Sequence[float], seconds: float, now_ns: int) -> None:
        """`seconds` were measured for these; nothing above 0 is no measurement."""
        expected = self.guess(features)
        if not (seconds > 0.0 and expected > 0.0 and math.isfinite(seconds)):
            return
        if self.row.samples >= _SHAPED:
            seconds = self._bounded(seconds, self.seconds(features, now_ns))
        row = self.row
        # Anybody may report next to nothing, whose square is 0 or beyond all numbers.
        ratio = max(seconds / expected, _LEAST)
        parts = [p * x / expected / ratio for p, x in zip(self._prior, features, strict=True)]
        self._forget(parts)
        row.gram = [
            old + a * b
            for old, (a, b) in zip(row.gram, ((a, b) for a in parts for b in parts), strict=True)
        ]
        row.moment = [old + a for old, a in zip(row.moment, parts, strict=True)]
        row.weight = _DECAY * row.weight + 1.0
        row.log_sum = _DECAY * row.log_sum + math.log(ratio)
        row.samples += 1
        row.observed_ns = now_ns
        self._factors = None

    def _forget(self, parts: list[float]) -> None:
        """Let what was measured before weigh less, as far as it tells of the same: many short
        prefills say nothing of long ones, so they must not wipe out what is known of these.

        Source: Haegglund, "New estimation techniques for adaptive control" (1983): forgetting in
        the direction of the new measurement only.
        """
        row, size = self.row, len(parts)
        seen = [
            sum(g * x for g, x in zip(row.gram[i * size : (i + 1) * size], parts, strict=True))
            for i in range(size)
        ]
        told = sum(a * x for a, x in zip(seen, parts, strict=True))
        if told <= 0.0:
            return
        share = (1.0 - _DECAY) / told
        expected = sum(m * x for m, x in zip(row.moment, parts, strict=True))
        pairs = ((a, b) for a in seen for b in seen)
        row.gram = [old - share * a * b for old, (a, b) in zip(row.gram, pairs, strict=True)]
        row.moment = [old - share * a * expected for old, a in zip(row.moment, seen, strict=True)]

    def _bounded(self, seconds: float, expected: float) -> float:
        """Near enough to what was expected, unless it is the second in a row that is not."""
        side = (seconds > _FAR * expected) - (seconds < expected / _FAR)
        row = self.row
        is_change = side != 0 and side == row.side
        row.side = side
        if is_change:
            blank = _blank(len(self._prior))
            row.gram, row.moment = blank.gram, blank.moment
            row.weight = row.log_sum = 0.0
            return seconds
        return min(max(seconds, expected / _FAR), expected * _FAR)

    def seconds(self, features: Sequence[float], now_ns: int) -> float:
        """What these will take."""
        guess = self.guess(features)
        if not self.row.weight:
            return guess
        if self._factors is None:
            self._factors = self._solve()
        fitted = sum(
            factor * p * x
            for factor, p, x in zip(self._factors, self._prior, features, strict=True)
        )
        if not self._returns or fitted <= guess:
            return max(fitted, guess * _LEAST)
        # Squared, so that nearly nothing of it is lost within a minute: of a factor of 400 a tenth
        # of the way would be a third.
        halves = (max(0, now_ns - self.row.observed_ns) / 1e9 / _HALF_LIFE_S) ** 2
        return guess * math.pow(fitted / guess, math.pow(2.0, -halves))

    def guess(self, features: Sequence[float]) -> float:
        """What these would take by the prior."""
        return sum(p * x for p, x in zip(self._prior, features, strict=True))

    def _solve(self) -> list[float]:
        """By which factor each coefficient of the prior is off; none below 0."""
        row, size = self.row, len(self._prior)
        scale = math.exp(row.log_sum / row.weight)
        pull = _RIDGE / scale**2
        gram = [
            [row.gram[i * size + j] + (pull if i == j else 0.0) for j in range(size)]
            for i in range(size)
        ]
        moment = [each + pull * scale for each in row.moment]
        best, least = [scale] * size, math.inf
        # Few features: all ways to leave some out are tried, the best with no factor below 0 wins.
        for count in range(1, size + 1):
            for kept in combinations(range(size), count):
                factors = _solved(gram, moment, kept)
                error = _error(gram, moment, factors)
                if min(factors) >= 0.0 and error < least:
                    best, least = factors, error
        return best


def _blank(size: int) -> CostRow:
    return CostRow(gram=[0.0] * (size * size), moment=[0.0] * size)


def _error(gram: list[list[float]], moment: list[float], factors: list[float]) -> float:
    """The squares that are left, but for a constant."""
    size = range(len(factors))
    squares = sum(factors[i] * gram[i][j] * factors[j] for i in size for j in size)
    return squares - 2.0 * sum(m * factor for m, factor in zip(moment, factors, strict=True))


def _solved(gram: list[list[float]], moment: list[float], kept: tuple[int, ...]) -> list[float]:
    """gram x factors = moment over the kept ones, by elimination; the others are 0. All are below
    0 where there is no solution."""
    rows = [[*(gram[i][j] for j in kept), moment[i]] for i in kept]
    size = len(rows)
    for at in range(size):
        pivot = rows[at]
        if pivot[at] <= 0.0:  # positive definite by the ridge, but for what rounding takes away
            return [-1.0] * len(moment)
        for other in range(size):
            if other != at:
                share = rows[other][at] / pivot[at]
                rows[other] = [a - share * b for a, b in zip(rows[other], pivot, strict=True)]
    factors = [0.0] * len(moment)
    for at, i in enumerate(kept):
        factors[i] = rows[at][-1] / rows[at][at]
    return factors
