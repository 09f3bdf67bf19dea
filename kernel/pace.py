"""Pace: how much text a worker is given at once.

A job that takes longer than its time limit costs the worker its life, and how long a text takes is
the model's and the machine's matter. So a batch has as many characters as took a small share of the
limit lately; the first of a model is small. Kernel thread only.
"""

from typing import Final

__all__ = ["Pace"]

_FIRST: Final = 2_000.0
"""Characters, before anything was measured: one passage."""
_MOST: Final = 64 << 10
_SHARE: Final = 0.05
"""Of the time limit: a machine that slows down twentyfold meanwhile still does the batch."""
_GROWTH: Final = 4


class Pace:
    """Of one model at a time."""

    def __init__(self, limit_ns: int) -> None:
        self._aim_ns = limit_ns * _SHARE
        self._model = ""
        self._characters = _FIRST

    @property
    def characters(self) -> int:
        """Of the next batch."""
        return max(1, int(self._characters))

    def learn(self, model: str, characters: int, took_ns: int) -> None:
        """A batch was done."""
        if model != self._model:
            self._model, self._characters = model, _FIRST
        # Half of it, so that one batch during which the machine did something else tells little;
        # bounded, so that one that was done in no time does not make the next one endless.
        measured = characters * self._aim_ns / max(took_ns, 1)
        measured = min(measured, _GROWTH * self._characters)
        self._characters = min((self._characters + measured) / 2, _MOST)

    def overran(self, characters: int) -> None:
        """A batch was not done within the limit."""
        self._characters = min(self._characters / 2, characters * _SHARE)
