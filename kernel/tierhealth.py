"""How well a tier does: what its operations take, how they end, and whether one hangs.

`WatchedTier` decorates any tier and measures each operation on the thread that does it, so the
time in a queue is not counted. A tier whose stores fail in a row, or one of whose operations has
been under way for far longer than it should, is bypassed: write-back waits for the next try, and
reclaim makes room without it. Any thread.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

from libmem.abi.digest import Manifest
from libmem.abi.errors import Errno, MemError
from memosd.kernel.ports import Clock, PayloadKey, Tier

__all__ = ["TierHealth", "WatchedTier"]

_NS: Final = 1_000_000_000
_FAILURES_MAX: Final = 3
"""So many stores in a row that fail are no accident."""
_PAUSE_FIRST_NS: Final = _NS
_PAUSE_MAX_NS: Final = 60 * _NS
"""A full disk has room again when somebody makes some: within a minute that is seen."""
_DEADLINE_NS: Final = 5 * _NS
_DEADLINE_FACTOR: Final = 10
"""An operation hangs that takes longer than this, and so many times what it should besides."""
_SLOW_NS: Final = _NS / 500e6
"""A byte's time on a modest SSD: so much is granted at least, for encoding takes its time too."""
_KEPT: Final = 0.9
"""Of what was measured before, each time something is: the last ten operations or so count."""

_Direction = Literal["store", "load"]


class _Running(NamedTuple):
    """An operation under way."""

    operation: str
    size_bytes: int
    since_ns: int


class _Pace:
    """Bytes and the time they took, the latest most; and the failures since the last success."""

    __slots__ = ("bytes", "failures", "ns", "problem")

    def __init__(self) -> None:
        self.bytes = 0.0
        self.ns = 0.0
        self.failures = 0
        self.problem = ""

    @property
    def bytes_per_s(self) -> float:
        """0: not measured yet."""
        return self.bytes * _NS / self.ns if self.ns else 0.0


class TierHealth:
    """What is known of one tier."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._running: dict[int, _Running] = {}
        self._paces: dict[_Direction, _Pace] = {"store": _Pace(), "load": _Pace()}
        self._pause_ns = _PAUSE_FIRST_NS
        self.retry_ns = 0
        """While it fails: when the next store should be tried, on the monotonic clock."""

    # -- what is observed ----------------------------------------------------------------------

    @contextmanager
    def observe(
        self, operation: str, direction: _Direction, size_of: Callable[[], int]
    ) -> Iterator[None]:
        """Around one operation; `size_of` is asked before it, and again once it is known."""
        number, since_ns = next(self._numbers), self._clock.monotonic_ns()
        with self._lock:
            self._running[number] = _Running(operation, size_of(), since_ns)
        problem = ""
        try:
            yield
        except MemError as error:
            if error.errno in (Errno.EIO, Errno.ENOSPC):
                problem = str(error)
            raise
        except OSError as error:
            problem = str(error)
            raise
        finally:
            self._ended(number, direction, size_of(), problem)

    def _ended(self, number: int, direction: _Direction, size_bytes: int, problem: str) -> None:
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            took_ns = now_ns - self._running.pop(number).since_ns
            pace = self._paces[direction]
            pace.problem = problem
            if problem:
                pace.failures += 1
                self._put_off(direction, pace, now_ns)
                return
            pace.failures = 0
            if direction == "store":
                self._pause_ns = _PAUSE_FIRST_NS
            pace.bytes = _KEPT * pace.bytes + size_bytes
            pace.ns = _KEPT * pace.ns + took_ns

    def _put_off(self, direction: _Direction, pace: _Pace, now_ns: int) -> None:
        is_failing = direction == "store" and pace.failures >= _FAILURES_MAX
        if is_failing and now_ns >= self.retry_ns:  # else it was under way with the last one
            self.retry_ns = now_ns + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, _PAUSE_MAX_NS)

    # -- what follows from it ------------------------------------------------------------------

    @property
    def store_bytes_per_s(self) -> float:
        """What stores were measured to reach, one at a time; 0: not measured yet."""
        return self._paces["store"].bytes_per_s

    @property
    def is_failing(self) -> bool:
        """Stores fail, one after the other."""
        return self._paces["store"].failures >= _FAILURES_MAX

    @property
    def is_bypassed(self) -> bool:
        """Nobody should wait for a store just now."""
        return self.is_failing or self.hanging() is not None

    def hanging(self) -> tuple[str, float] | None:
        """An operation that takes far too long, and for how many seconds it does."""
        if not self._running:
            return None
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            running = list(self._running.values())
        for each in running:
            pace = self._paces["store" if each.operation == "store" else "load"]
            # A disk that was quick is no reason to expect more than of any.
            pace_ns = max(pace.ns / pace.bytes, _SLOW_NS) if pace.bytes else _SLOW_NS
            due_ns = each.size_bytes * pace_ns
            if now_ns - each.since_ns > _DEADLINE_NS + _DEADLINE_FACTOR * due_ns:
                return each.operation, (now_ns - each.since_ns) / _NS
        return None

    def notices(self, dirty: int) -> list[str]:
        """For people. `dirty`: payloads that wait to be written."""
        found = []
        hanging = self.hanging()
        if hanging is not None:
            operation, seconds = hanging
            found.append(f"the {self.name} hangs: a {operation} is under way for {seconds:.0f} s")
        if self.is_failing:
            left_s = max(0.0, (self.retry_ns - self._clock.monotonic_ns()) / _NS)
            found.append(
                f"the {self.name} takes no page files: {self._paces['store'].problem}; {dirty} "
                f"cache payloads stay in RAM, the next try is in {left_s:.0f} s"
            )
        loads = self._paces["load"]
        if loads.failures >= _FAILURES_MAX:
            found.append(f"the {self.name} cannot be read: {loads.problem}")
        return found


class WatchedTier:
    """`inner`, with every operation observed."""

    def __init__(self, inner: Tier, health: TierHealth) -> None:
        self.name: str = inner.name
        self.is_durable: bool = inner.is_durable
        self._inner = inner
        self._health = health
        self.charge_bytes = inner.charge_bytes
        self.free = inner.free
        self.keys = inner.keys

    def store(self, key: PayloadKey, fd: int, manifest: Manifest) -> None:
        """As the inner tier."""
        with self._health.observe("store", "store", lambda: manifest.size_bytes):
            self._inner.store(key, fd, manifest)

    def store_blocks(
        self, key: PayloadKey, blocks: Iterable[memoryview | bytes], made_of_bytes: int = 0
    ) -> Manifest:
        """As the inner tier. What makes the blocks takes its time as well, and is counted.

        `made_of_bytes`: how much goes into them, by which the store is due meanwhile.
        """
        size_bytes = made_of_bytes
        with self._health.observe("store", "store", lambda: size_bytes):
            size_bytes = 0  # should it end early, nothing was kept
            manifest = self._inner.store_blocks(key, blocks)
            size_bytes = manifest.size_bytes
        return manifest

    def load(self, key: PayloadKey, fd: int, size_bytes: int, digest: bytes) -> None:
        """As the inner tier."""
        with self._health.observe("load", "load", lambda: size_bytes):
            self._inner.load(key, fd, size_bytes, digest)

    def blocks(self, key: PayloadKey, size_bytes: int, digest: bytes) -> Iterator[bytes]:
        """As the inner tier. Not observed: who takes the blocks has a pace of its own."""
        return self._inner.blocks(key, size_bytes, digest)

    def read(self, key: PayloadKey, size_bytes: int, digest: bytes, limit_bytes: int) -> bytes:
        """As the inner tier."""
        with self._health.observe("read", "load", lambda: min(size_bytes, limit_bytes)):
            return self._inner.read(key, size_bytes, digest, limit_bytes)

    def verify(self, key: PayloadKey, size_bytes: int, digest: bytes) -> None:
        """As the inner tier."""
        with self._health.observe("verify", "load", lambda: size_bytes):
            self._inner.verify(key, size_bytes, digest)
