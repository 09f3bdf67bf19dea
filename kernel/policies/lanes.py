"""The order of one control group's payloads by kind: kinds may be many, a decision looks at few.

Payloads of one kind share a lane, a heap by last use. Lanes that differ only in what is known of
their payloads beforehand (cost, priority) share a shelf, which orders them by their heads. What is
learned moves all of a shelf alike, so it moves no lane within one. Shelves are as many as there are
standings times half-lives, lanes as many as kinds: a decision compares the heads of the shelves,
whoever takes, adds or uses a payload corrects one lane's place on its shelf, if at all. Only the
weight and the unit of the octaves change the order of lanes, and rarely: then all are shelved anew.
Owned by `LeafFirst`.
"""

import heapq
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from memosd.kernel.policies.heap import LazyHeap
from memosd.kernel.ports import PayloadKey

__all__ = ["COLD", "INNER", "NO_WORTH", "Lane", "Order", "Place", "Shelf", "Standing", "Worth"]

Standing = tuple[int, bool]
"""How often used, in octaves; and whether anything ever stood on it. What chances are known for."""
Place = tuple[float, int, PayloadKey]
"""Rank, serial, key."""

COLD: Final = 0
"""Number of the lane of those that no more use is expected of."""
INNER: Final = 1
"""Number of the lane of those that others stand on."""


class Worth(NamedTuple):
    """What is known of a payload beforehand."""

    cost: float
    """Octaves."""
    priority: float
    """Octaves."""
    half_life_s: float


NO_WORTH: Final = Worth(0.0, 0.0, 0.0)


class Lane(LazyHeap[PayloadKey]):
    """Payloads that differ in nothing but when they were used."""

    __slots__ = ("base", "number", "serial", "shelf", "worth")

    def __init__(
        self, nodes: Mapping[PayloadKey, Any], number: int, worth: Worth, shelf: "Shelf | None"
    ) -> None:
        super().__init__(nodes)
        self.number = number
        self.worth = worth
        self.shelf = shelf
        """None: it is one of `COLD` and `INNER`, which are compared with no other."""
        self.base = 0.0
        """What its ranks are added to on its shelf."""
        self.serial = 0
        """Of its place on its shelf; 0: it has none."""

    def weigh(self, octave_uses: int, weight: float) -> None:
        """Set `base` by its worth."""
        octave = self.worth.half_life_s or octave_uses
        self.base = octave * (self.worth.priority + weight * self.worth.cost)

    def head(self) -> Place:
        """The lowest of its places, as ranked on its shelf."""
        first = self.first()
        if first is None:
            raise RuntimeError("an empty lane was kept")
        return self.base + first[0], first[1], first[2]

    def on_shelf(self) -> Iterator[Place]:
        """All of its places, as ranked on its shelf."""
        for rank, serial, key in self:
            yield self.base + rank, serial, key


class Shelf(LazyHeap[int]):
    """Lanes of one standing and one half-life, never none, by the places of their heads."""

    __slots__ = ("_lanes", "_serial", "half_life_s", "head", "standing")

    def __init__(self, lanes: Mapping[int, Lane], standing: Standing, half_life_s: float) -> None:
        super().__init__(lanes)
        self._lanes = lanes
        self._serial = 0
        self.standing = standing
        self.half_life_s = half_life_s
        """0: ranks are counted in uses, else in seconds."""
        self.head: Place = (0.0, 0, b"")
        """The lowest place of all its lanes, once it has one."""

    def put(self, lane: Lane) -> None:
        """A lane that is not empty: its head is another."""
        if lane.serial:
            self.live -= 1
        self._serial += 1
        lane.serial = self._serial
        self.push((lane.head(), lane.serial, lane.number))
        self._look()

    def sort(self, octave_uses: int, weight: float) -> None:
        """Put all lanes anew, by these. O(lanes)."""
        lanes = [self._lanes[place[2]] for place in self._places if self._is_valid(place)]
        for lane in lanes:
            lane.weigh(octave_uses, weight)
        self._places = [(lane.head(), lane.serial, lane.number) for lane in lanes]
        heapq.heapify(self._places)
        self._look()

    def take(self, lane: Lane) -> None:
        """It stands here no more."""
        lane.serial = 0
        self.live -= 1
        self._look()

    def _look(self) -> None:
        first = self.first()
        if first is not None:
            self.head = first[0]

    def places(self) -> Iterator[Place]:
        """All of all lanes, lowest first. A lane is looked into when its head's turn comes."""
        opened: list[tuple[float, int, PayloadKey, Iterator[Place]]] = []
        for head, _, number in self:
            while opened and opened[0][:3] < head:
                yield _next_of(opened)
            lane = self._lanes[number].on_shelf()
            heapq.heappush(opened, (*next(lane), lane))
        while opened:
            yield _next_of(opened)


def _next_of(opened: list[tuple[float, int, PayloadKey, Iterator[Place]]]) -> Place:
    rank, serial, key, lane = opened[0]
    following = next(lane, None)
    if following is None:
        heapq.heappop(opened)
    else:
        heapq.heapreplace(opened, (*following, lane))
    return rank, serial, key


class Order:
    """All lanes of a control group that are not empty."""

    __slots__ = ("_nodes", "_octave_uses", "_weight", "lanes", "shelves")

    def __init__(self, nodes: Mapping[PayloadKey, Any], octave_uses: int, weight: float) -> None:
        self._nodes = nodes
        self._octave_uses = octave_uses
        self._weight = weight
        self.lanes: dict[int, Lane] = {}
        self.shelves: dict[tuple[Standing, float], Shelf] = {}

    def open(self, number: int, standing: Standing, worth: Worth) -> Lane:
        """A lane that was not there. `number`: one for each standing and worth."""
        shelf = None
        if number not in (COLD, INNER):
            kind = standing, worth.half_life_s
            shelf = self.shelves.get(kind)
            if shelf is None:
                shelf = self.shelves[kind] = Shelf(self.lanes, *kind)
        lane = self.lanes[number] = Lane(self._nodes, number, worth, shelf)
        lane.weigh(self._octave_uses, self._weight)
        return lane

    def add(self, lane: Lane, place: Place) -> None:
        """Into one of these lanes. O(log n)."""
        lane.push(place)
        if lane.shelf is not None and lane.is_top(place[1]):
            lane.shelf.put(lane)

    def drop(self, lane: Lane, serial: int) -> None:
        """That place of the lane does not hold any more. O(log n), amortised."""
        lane.live -= 1
        shelf = lane.shelf
        if not lane.live:
            del self.lanes[lane.number]
            if shelf is not None:
                shelf.take(lane)
                if not shelf.live:
                    del self.shelves[shelf.standing, shelf.half_life_s]
        elif shelf is not None and lane.is_top(serial):
            shelf.put(lane)

    def renew(self, octave_uses: int, weight: float) -> None:
        """Order the lanes by these, if they are others. O(lanes) then."""
        if octave_uses == self._octave_uses and weight == self._weight:
            return
        self._octave_uses = octave_uses
        self._weight = weight
        for shelf in self.shelves.values():
            shelf.sort(octave_uses, weight)
