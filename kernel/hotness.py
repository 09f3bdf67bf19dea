"""How often each cube is used just now: a rate that forgets, for the few thousand hottest.

Each use counts 1 and fades, by half every half-life. Kept as a logarithm of weights that grow with
time instead of uses that shrink: so nothing changes while nothing happens, and the order of two
cubes never depends on when it is looked at. Bounded: beyond the limit the coolest half is dropped.
Kernel thread only.

Source: Cormode, Shkapenyuk, Srivastava, Xu: Forward Decay, ICDE 2009.
"""

import heapq
import math
from typing import Final

from memosd.kernel.ports import Clock

__all__ = ["Hotness"]

_HALF_LIFE_NS: Final = 60_000_000_000
_CUBES_MAX: Final = 4096


class Hotness:
    """Cube id -> log2 of its decayed uses, as if each had grown from boot on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._scores: dict[bytes, float] = {}

    def count(self, cube_id: bytes) -> None:
        """It was used."""
        now = self._now()
        score = self._scores.get(cube_id)
        if score is None:
            if len(self._scores) >= _CUBES_MAX:
                self._drop_coolest()
            self._scores[cube_id] = now
            return
        high, low = max(score, now), min(score, now)
        self._scores[cube_id] = high + math.log2(1.0 + math.exp2(low - high))

    def forget(self, cube_id: bytes) -> None:
        """The cube is gone."""
        self._scores.pop(cube_id, None)

    def hottest(self, limit: int) -> list[tuple[bytes, float]]:
        """(cube id, uses per second), hottest first."""
        now = self._now()
        best = heapq.nlargest(limit, self._scores.items(), key=lambda item: item[1])
        # A steady rate r adds up to r * half-life / ln 2.
        per_second = math.log(2) / (_HALF_LIFE_NS / 1e9)
        return [(cube_id, math.exp2(score - now) * per_second) for cube_id, score in best]

    def _now(self) -> float:
        """In half-lives."""
        return self._clock.monotonic_ns() / _HALF_LIFE_NS

    def _drop_coolest(self) -> None:
        kept = heapq.nlargest(_CUBES_MAX // 2, self._scores.items(), key=lambda item: item[1])
        self._scores = dict(kept)
