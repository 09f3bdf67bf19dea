"""Least recently used, lowest priority first.

One queue per group and priority; every operation is O(1), a decision O(number of priorities in
use).
"""

from collections import OrderedDict
from collections.abc import Iterator

from memosd.kernel.policies.policy import Candidate, Clock, Entry
from memosd.kernel.ports import PayloadKey

__all__ = ["Lru"]


class Lru:
    """See `Policy`."""

    name = "lru"

    def __init__(self, clock: Clock) -> None:
        del clock  # an order of uses needs no time
        self._entries: dict[PayloadKey, Entry] = {}
        self._queues: dict[int, dict[int, OrderedDict[PayloadKey, int]]] = {}
        """Group -> priority -> key -> when it was used, in uses."""
        self._uses = 0
        self._cooled = 0

    def insert(self, entry: Entry) -> None:
        self.remove(entry.key)
        self._entries[entry.key] = entry
        self.release(entry.key)

    def touch(self, key: PayloadKey) -> None:
        queue = self._queue_with(key)
        if queue is not None:
            self._uses += 1
            queue[key] = self._uses
            queue.move_to_end(key)

    def cool(self, key: PayloadKey) -> None:
        queue = self._queue_with(key)
        if queue is not None:
            self._cooled -= 1
            queue[key] = self._cooled
            queue.move_to_end(key, last=False)

    def hold(self, key: PayloadKey) -> None:
        queue = self._queue_with(key)
        if queue is None:
            return
        del queue[key]
        if not queue:
            entry = self._entries[key]
            del self._queues[entry.group][entry.priority]
            if not self._queues[entry.group]:
                del self._queues[entry.group]

    def release(self, key: PayloadKey) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            queues = self._queues.setdefault(entry.group, {})
            queues.setdefault(entry.priority, OrderedDict())[key] = 0
            self.touch(key)

    def update(self, entry: Entry) -> None:
        old = self._entries.get(entry.key)
        if old is None:
            return
        is_held = self._queue_with(entry.key) is None
        if is_held or (old.group, old.priority) == (entry.group, entry.priority):
            self._entries[entry.key] = entry
            return
        self.insert(entry)

    def evict(self, key: PayloadKey) -> None:
        self.remove(key)

    def remove(self, key: PayloadKey) -> None:
        self.hold(key)
        self._entries.pop(key, None)

    def candidates(self, group: int) -> Iterator[Candidate]:
        queues = self._queues.get(group, {})
        for priority in sorted(queues):
            for key, used in queues[priority].items():
                yield Candidate((priority, used), key)

    def explain(self, key: PayloadKey) -> dict[str, float | str]:
        queue = self._queue_with(key)
        if queue is None:
            return {}
        return {"priority": self._entries[key].priority, "uses_since": self._uses - queue[key]}

    def _queue_with(self, key: PayloadKey) -> OrderedDict[PayloadKey, int] | None:
        """The queue it is in; None while it is held, or not known."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        queue = self._queues.get(entry.group, {}).get(entry.priority)
        return queue if queue is not None and key in queue else None
