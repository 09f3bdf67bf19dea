"""What the kernel observes and decides about cubes, kept without a disk write per read.

Counters and the latest decisions live in memory while a cube is warm, and follow in the
background every few seconds; a crash may lose the last of them, never more. `explain` reads
them. Kernel thread only.
"""

from collections import deque
from itertools import islice
from typing import Final

from libmem.abi.structs import Behaviour, Decision
from memosd.kernel.hotness import Hotness
from memosd.kernel.ledger import Ledger
from memosd.kernel.ports import Clock
from memosd.kernel.rows import HeatRow, decode_row, encode_row

__all__ = ["Heat"]

_DECISIONS_PER_CUBE: Final = 16
_RECENT_DECISIONS: Final = 4096
_WARM_MAX: Final = 100_000
_WRITE_BACK_STRETCH: Final = 2000
"""Rows written before others have their turn, about 20 ms."""


class Heat:
    """Behavioural rows, warm ones in memory."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._warm: dict[bytes, HeatRow] = {}
        self._dirty: set[bytes] = set()
        self.recent: deque[tuple[bytes, Decision]] = deque(maxlen=_RECENT_DECISIONS)
        """(cube id, decision), oldest first, over all cubes since boot; no id: it concerns all."""
        self.hotness = Hotness(clock)
        self.faults = 0
        self.evictions = 0

    def row(self, cube_id: bytes) -> HeatRow:
        """The live row; a damaged stored one starts anew, it is only statistics."""
        row = self._warm.get(cube_id)
        if row is None:
            value = self._ledger.get("heat", cube_id)
            try:
                row = decode_row(HeatRow, "heat", cube_id, value) if value else HeatRow()
            except Exception:  # noqa: BLE001
                row = HeatRow()
            if len(self._warm) >= _WARM_MAX:
                coldest = next(iter(self._warm))
                self._write_row(coldest)
                del self._warm[coldest]
            self._warm[cube_id] = row
        return row

    def behaviour(self, cube_id: bytes) -> Behaviour:
        row = self._warm.get(cube_id)
        if row is None:
            value = self._ledger.get("heat", cube_id)
            if value is None:
                return _NEVER
            row = self.row(cube_id)
        return Behaviour(
            reads=row.reads,
            maps=row.maps,
            faults=row.faults,
            evictions=row.evictions,
            last_access_ns=row.last_access_ns,
        )

    def count_read(self, cube_id: bytes) -> None:
        row = self._touched(cube_id)
        row.reads += 1
        self.hotness.count(cube_id)
        row.last_access_ns = self._clock.wall_ns()

    def count_map(self, cube_id: bytes) -> None:
        row = self._touched(cube_id)
        row.maps += 1
        self.hotness.count(cube_id)
        row.last_access_ns = self._clock.wall_ns()

    def count_fault(self, cube_id: bytes) -> None:
        self._touched(cube_id).faults += 1
        self.faults += 1

    def count_eviction(self, cube_id: bytes) -> None:
        self._touched(cube_id).evictions += 1
        self.evictions += 1

    def decide(self, cube_id: bytes, action: str, reason: str, **numbers: float | str) -> None:
        """Record a decision with the numbers it was made on."""
        decision = Decision(self._clock.wall_ns(), action, reason, numbers)
        row = self._touched(cube_id)
        row.decisions = (*row.decisions[1 - _DECISIONS_PER_CUBE :], decision)
        self.recent.append((cube_id, decision))

    def decide_for_all(self, action: str, reason: str, **numbers: float | str) -> None:
        """Record a decision about no cube in particular; until the daemon's end."""
        self.recent.append((b"", Decision(self._clock.wall_ns(), action, reason, numbers)))

    def forget(self, cube_id: bytes) -> None:
        """The cube is gone."""
        self.hotness.forget(cube_id)
        self._warm.pop(cube_id, None)
        self._dirty.discard(cube_id)

    def write_back(self) -> bool:
        """Put a stretch of what changed into the next commit; True when more is left.

        Once nothing is left, what is warm cools.
        """
        for cube_id in list(islice(self._dirty, _WRITE_BACK_STRETCH)):
            self._write_row(cube_id)
        if not self._dirty:
            self._warm.clear()
        return bool(self._dirty)

    def _write_row(self, cube_id: bytes) -> None:
        if cube_id not in self._dirty:
            return
        self._dirty.discard(cube_id)
        # Observed while it went (an eviction, a fill that came too late): nothing to keep.
        if self._ledger.get("cubes", cube_id) is not None:
            self._ledger.put("heat", cube_id, encode_row(cube_id, self._warm[cube_id]))

    def _touched(self, cube_id: bytes) -> HeatRow:
        row = self.row(cube_id)
        self._dirty.add(cube_id)
        return row


_NEVER: Final = Behaviour()
