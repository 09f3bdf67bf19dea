"""How likely a payload is used again, by how it stands: learned from the uses themselves.

A sample of the uses is watched. One that is followed by another use of the same payload within the
time it takes to go through twice what the tier holds counts as a reuse. Old counts fade.
"""

from collections import deque
from math import log2
from typing import Final

from memosd.kernel.policies.lanes import Standing
from memosd.kernel.ports import PayloadKey

__all__ = ["Chances"]

_TURNS: Final = 2
"""How many times what the tier holds a use is waited for."""
_FADE: Final = 0.7
"""What earlier counts still count after half a tier's worth of uses."""
_PRIOR: Final = 8.0
"""Uses as any other that each standing starts with."""


class Chances:
    """See above. Memory: bounded by the sample's uses in two turns."""

    def __init__(self) -> None:
        self._watched: dict[PayloadKey, tuple[Standing, int]] = {}
        self._queue: deque[tuple[int, PayloadKey]] = deque()
        self._uses: dict[Standing, float] = {}
        self._reuses: dict[Standing, float] = {}
        self._octaves: dict[Standing, float] = {}
        self._faded = 0

    def octaves(self, standing: Standing) -> float:
        """The logarithm (base 2) of its chance, against that of all."""
        return self._octaves.get(standing, 0.0)

    def use(self, key: PayloadKey, standing: Standing, now: int, entries: int) -> None:
        """A payload of the sample was used; it stands so from now on."""
        known = self._watched.get(key)
        if known is not None:
            self._count(known[0], 1.0)
        self._watched[key] = (standing, now)
        self._queue.append((now, key))
        while self._queue[0][0] < now - _TURNS * entries:
            used, old = self._queue.popleft()
            known = self._watched.get(old)
            if known is not None and known[1] == used:
                del self._watched[old]
                self._count(known[0], 0.0)
        if now - self._faded > entries // 2:
            self._faded = now
            self._learn()

    def restand(self, key: PayloadKey, standing: Standing) -> None:
        """It stands otherwise than when it was used."""
        known = self._watched.get(key)
        if known is not None:
            self._watched[key] = (standing, known[1])

    def _count(self, standing: Standing, reuses: float) -> None:
        self._uses[standing] = self._uses.get(standing, 0.0) + 1.0
        self._reuses[standing] = self._reuses.get(standing, 0.0) + reuses

    def _learn(self) -> None:
        chance = (sum(self._reuses.values()) + 1) / (sum(self._uses.values()) + 2)
        for standing, uses in self._uses.items():
            reuses = self._reuses[standing]
            self._octaves[standing] = log2((reuses + _PRIOR * chance) / (uses + _PRIOR) / chance)
            self._uses[standing] = uses * _FADE
            self._reuses[standing] = reuses * _FADE
