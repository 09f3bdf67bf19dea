"""What prefills took, on the way to the daemon: gathered, and handed over now and then.

Owns the samples of one attached model. The daemon decides by them whether to load or to compute;
nobody waits for their delivery, and those that come too many are dropped, the oldest first.

Made by `libmem.hf.attach`.
"""

import threading
import time
from collections import deque
from typing import Final, NamedTuple

from libmem.abi.costs import PrefillSample

__all__ = ["Batch", "Samples"]

_AT_ONCE: Final = 64
"""As many as a report may hold."""
_LONG_TOKENS: Final = 128
"""Computing so many takes longer than what a process does once."""
_PAUSE_S: Final = 1.0
"""Reports are at least so far apart."""


class Batch(NamedTuple):
    """Samples of one model."""

    model_digest: str
    samples: list[PrefillSample]


class Samples:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model_digest = ""
        self._waiting: deque[PrefillSample] = deque(maxlen=_AT_ONCE)
        self._taken_at_s = 0.0
        self._is_warm = False

    def add(self, model_digest: str, sample: PrefillSample) -> None:
        """But for a short one that is the first: it paid for what a process does once."""
        with self._lock:
            is_warm, self._is_warm = self._is_warm, True
            if not is_warm and sample.rows * sample.tokens < _LONG_TOKENS:
                return
            if model_digest != self._model_digest:  # the weights were changed
                self._model_digest = model_digest
                self._waiting.clear()
            self._waiting.append(sample)

    def take(self, *, is_last: bool = False) -> Batch | None:
        """What is to be reported now, if anything. `is_last`: whatever there is."""
        with self._lock:
            now_s = time.monotonic()
            if not self._waiting or not (is_last or now_s - self._taken_at_s >= _PAUSE_S):
                return None
            self._taken_at_s = now_s
            batch = Batch(self._model_digest, list(self._waiting))
            self._waiting.clear()
            return batch
