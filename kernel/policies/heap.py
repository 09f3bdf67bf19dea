"""A heap of things that are re-ranked all the time: the old places stay until they come up."""

import heapq
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["LazyHeap"]

KeyT = TypeVar("KeyT")


class LazyHeap(Generic[KeyT]):
    """Places (rank, serial, key) in the order of their ranks: those whose serial is still that of
    what the key names in `nodes` (`serial`). No two have the same serial.

    Amortised O(log n); at most as many stale places as valid ones, and a few.
    """

    _SLACK = 64
    __slots__ = ("_nodes", "_places", "live")

    def __init__(self, nodes: Mapping[KeyT, Any]) -> None:
        self._places: list[tuple[Any, int, KeyT]] = []
        self._nodes = nodes
        self.live = 0
        """How many places hold. Whoever makes one stale counts it off."""

    def push(self, place: tuple[Any, int, KeyT]) -> None:
        heapq.heappush(self._places, place)
        self.live += 1
        if len(self._places) > 2 * self.live + self._SLACK:
            self._places = [each for each in self._places if self._is_valid(each)]
            heapq.heapify(self._places)

    def _is_valid(self, place: tuple[Any, int, KeyT]) -> bool:
        node = self._nodes.get(place[2])
        return node is not None and node.serial == place[1]

    def is_top(self, serial: int) -> bool:
        """Is that place, stale or not, before all others, stale or not?"""
        return bool(self._places) and self._places[0][1] == serial

    def first(self) -> tuple[Any, int, KeyT] | None:
        """The lowest that holds."""
        places, nodes = self._places, self._nodes
        while places:
            place = places[0]
            node = nodes.get(place[2])
            if node is not None and node.serial == place[1]:
                return place
            heapq.heappop(places)
        return None

    def __iter__(self) -> Iterator[tuple[Any, int, KeyT]]:
        """All that hold, lowest first; the heap must not change meanwhile."""
        if self.first() is None:
            return
        places = self._places
        # A heap's children are never before it: only those of what was given need to be looked at.
        waiting = [(places[0], 0)]
        while waiting:
            place, at = heapq.heappop(waiting)
            for child in range(2 * at + 1, min(2 * at + 3, len(places))):
                heapq.heappush(waiting, (places[child], child))
            if self._is_valid(place):
                yield place
