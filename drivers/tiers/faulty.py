"""A tier that fails on demand: a decorator of any other, for the tests of what lies above.

Owns the plan of faults, no payloads. It keeps the contract of a tier also while it fails: damage
is done to the bytes on their way and then found by verification, as a real tier would find it, so
nothing unverified ever passes `load`. Calls count from 1 for each operation.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

from libmem.abi.digest import Manifest
from libmem.abi.errors import Errno, MemError
from memosd.drivers.tiers import payload
from memosd.drivers.tiers.payload import PayloadKey, os_errors

__all__ = ["FaultPlan", "FaultyTier", "Operation", "Stall"]

Operation = Literal["store", "load", "read", "verify", "free"]
_Before = Callable[[], None]
_Damage = Callable[[int, int], None]


class _Tier(Protocol):
    """What is decorated."""

    name: str
    is_durable: bool

    def charge_bytes(self, size_bytes: int) -> int: ...
    def store(self, key: PayloadKey, fd: int, manifest: Manifest) -> None: ...
    def store_blocks(self, key: PayloadKey, blocks: Iterable[memoryview | bytes]) -> Manifest: ...
    def load(self, key: PayloadKey, fd: int, size_bytes: int, digest: bytes) -> None: ...
    def blocks(self, key: PayloadKey, size_bytes: int, digest: bytes) -> Iterator[bytes]: ...
    def read(self, key: PayloadKey, size_bytes: int, digest: bytes, limit_bytes: int) -> bytes: ...
    def verify(self, key: PayloadKey, size_bytes: int, digest: bytes) -> None: ...
    def free(self, key: PayloadKey) -> None: ...
    def keys(self) -> Iterator[PayloadKey]: ...


class Stall:
    """A call that waits inside the tier: `is_reached` once it is there, until `release`."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self._is_released = threading.Event()

    def release(self) -> None:
        self._is_released.set()

    def wait(self) -> None:
        self.is_reached.set()
        self._is_released.wait()


class FaultPlan:
    """Which calls fail, and how. One fault for each call at most; the last planned counts."""

    def __init__(self) -> None:
        self.calls: Counter[Operation] = Counter()
        self._lock = threading.Lock()
        self._before: dict[tuple[Operation, int], _Before] = {}
        self._damage: dict[int, _Damage] = {}
        self._always: dict[Operation, _Before] = {}

    def fail(self, operation: Operation, errno: Errno, nth: int = 1) -> None:
        """The nth call from now raises `errno` and does nothing."""

        def before() -> None:
            raise MemError(errno, f"injected into {operation}")

        self._before[operation, self.calls[operation] + nth] = before

    def refuse(self, operation: Operation, errno: Errno) -> None:
        """Every call raises `errno` and does nothing, until `mend`."""

        def before() -> None:
            raise MemError(errno, f"injected into {operation}")

        self._always[operation] = before

    def delay(self, operation: Operation, seconds: float) -> None:
        """Every call takes so much longer, until `mend`."""
        self._always[operation] = lambda: time.sleep(seconds)

    def mend(self) -> None:
        """All is well from now on; what was planned for single calls stays."""
        self._always.clear()

    def stall(self, operation: Operation, nth: int = 1) -> Stall:
        """The nth call from now waits until it is released, then does its work."""
        stall = Stall()
        self._before[operation, self.calls[operation] + nth] = stall.wait
        return stall

    def flip_bit(self, nth: int = 1, at: int = 0) -> None:
        """The nth load from now finds the byte at `at` with its lowest bit flipped."""

        def damage(fd: int, size_bytes: int) -> None:
            place = at % size_bytes
            flipped = os.pread(fd, 1, place)[0] ^ 1
            os.pwrite(fd, bytes([flipped]), place)

        self._damage[self.calls["load"] + nth] = damage

    def truncate(self, nth: int = 1) -> None:
        """The nth load from now finds half of the payload."""
        self._damage[self.calls["load"] + nth] = lambda fd, size_bytes: os.ftruncate(
            fd, size_bytes // 2
        )

    def enter(self, operation: Operation) -> int:
        """Count a call and do what is planned before it; returns its number. Any thread."""
        with self._lock:
            self.calls[operation] += 1
            number = self.calls[operation]
            before = self._before.pop((operation, number), self._always.get(operation))
        if before is not None:
            before()
        return number

    def damage_of_load(self, number: int) -> _Damage | None:
        """What happens to the bytes of that load."""
        return self._damage.pop(number, None)


class FaultyTier:
    """`inner` under a plan of faults; with an empty plan it is `inner`."""

    def __init__(self, inner: _Tier, plan: FaultPlan) -> None:
        self.name: str = inner.name
        self.is_durable: bool = inner.is_durable
        self._inner = inner
        self._plan = plan

    def charge_bytes(self, size_bytes: int) -> int:
        """As the inner tier."""
        return self._inner.charge_bytes(size_bytes)

    def store(self, key: PayloadKey, fd: int, manifest: Manifest) -> None:
        """As the inner tier, or the planned error with nothing stored."""
        self._plan.enter("store")
        self._inner.store(key, fd, manifest)

    def store_blocks(self, key: PayloadKey, blocks: Iterable[memoryview | bytes]) -> Manifest:
        """As the inner tier, or the planned error of a `store` with nothing stored."""
        self._plan.enter("store")
        return self._inner.store_blocks(key, blocks)

    def blocks(self, key: PayloadKey, size_bytes: int, digest: bytes) -> Iterator[bytes]:
        """As the inner tier, or the planned error or damage of a `load`."""
        number = self._plan.enter("load")
        is_damaged = self._plan.damage_of_load(number) is not None
        for block in self._inner.blocks(key, size_bytes, digest):
            if is_damaged:
                raise MemError(Errno.ECORRUPT, "injected into load")
            yield block

    def load(self, key: PayloadKey, fd: int, size_bytes: int, digest: bytes) -> None:
        """As the inner tier, or the planned error; planned damage raises ECORRUPT."""
        number = self._plan.enter("load")
        self._inner.load(key, fd, size_bytes, digest)
        damage = self._plan.damage_of_load(number)
        if damage is not None and size_bytes:
            with os_errors("damaging a payload"):
                damage(fd, size_bytes)
                payload.check_digest(fd, size_bytes, digest)

    def read(self, key: PayloadKey, size_bytes: int, digest: bytes, limit_bytes: int) -> bytes:
        """As the inner tier, or the planned error."""
        self._plan.enter("read")
        return self._inner.read(key, size_bytes, digest, limit_bytes)

    def verify(self, key: PayloadKey, size_bytes: int, digest: bytes) -> None:
        """As the inner tier, or the planned error."""
        self._plan.enter("verify")
        self._inner.verify(key, size_bytes, digest)

    def free(self, key: PayloadKey) -> None:
        """As the inner tier, or the planned error with nothing freed."""
        self._plan.enter("free")
        self._inner.free(key)

    def keys(self) -> Iterator[PayloadKey]:
        """As the inner tier."""
        return self._inner.keys()
