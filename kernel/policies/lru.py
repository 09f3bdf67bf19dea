"""Least recently used, lowest priority first.

One queue per priority; every operation is O(1), a decision O(number of priorities in use).
"""

from collections import OrderedDict
from collections.abc import Iterator

from memosd.kernel.ports import PayloadKey

__all__ = ["Lru"]


class Lru:
    """See `Policy`."""

    name = "lru"

    def __init__(self) -> None:
        self._queues: dict[int, OrderedDict[PayloadKey, None]] = {}
        self._priority: dict[PayloadKey, int] = {}

    def insert(self, key: PayloadKey, priority: int) -> None:
        self.remove(key)
        self._priority[key] = priority
        self._queues.setdefault(priority, OrderedDict())[key] = None

    def touch(self, key: PayloadKey) -> None:
        priority = self._priority.get(key)
        if priority is not None:
            self._queues[priority].move_to_end(key)

    def demote(self, key: PayloadKey) -> None:
        priority = self._priority.get(key)
        if priority is not None:
            self._queues[priority].move_to_end(key, last=False)

    def remove(self, key: PayloadKey) -> None:
        priority = self._priority.pop(key, None)
        if priority is None:
            return
        queue = self._queues[priority]
        del queue[key]
        if not queue:
            del self._queues[priority]

    def candidates(self) -> Iterator[PayloadKey]:
        for priority in sorted(self._queues):
            yield from self._queues[priority]
