"""An order in which what others stand on goes after them, and of the rest the least worth.

Worth is counted in octaves: each doubling of the chance of reuse, of the cost to bring it back for
each byte, or each `_PRIORITY_OCTAVE` points of priority, is worth as much as having been used
`weight` times the number of entries later. With a weight of 0 it is LRU among the leaves. Entries
of equal worth share a lane, in which the least recently used is first: a decision looks at the
heads of the lanes, and the weight and the chances may change at any time.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from math import log2
from typing import Final, NamedTuple

from memosd.kernel.policies.heap import LazyHeap
from memosd.kernel.policies.policy import Candidate, Clock, Entry
from memosd.kernel.policies.population import Node, Population
from memosd.kernel.policies.value import cost_density
from memosd.kernel.ports import PayloadKey

__all__ = ["Branch", "LeafFirst", "Standing"]

_PRIORITY_OCTAVE: Final = 16.0
"""Points of priority: from 0 to 100 it is about six octaves."""
_MOST_USES: Final = 63
"""More do not tell more."""

Standing = tuple[int, bool]
"""How often used, in octaves; and whether anything ever stood on it. What chances are known for."""


class _Worth(NamedTuple):
    """What is known of a payload beforehand."""

    cost: float
    """Octaves."""
    priority: float
    """Octaves."""
    half_life_s: float


_NO_WORTH: Final = _Worth(0.0, 0.0, 0.0)


class _Lane(LazyHeap):
    """Entries that differ in nothing but when they were used."""

    __slots__ = ("standing", "tier", "worth")

    def __init__(
        self, nodes: Mapping[PayloadKey, Node], tier: int, standing: Standing, worth: _Worth
    ) -> None:
        super().__init__(nodes)
        self.tier = tier
        """-1: no more use is expected; 0: leaves; 1: others stand on them."""
        self.standing = standing
        self.worth = worth


_MOST_LANES: Final = 64
"""Of a group, before those that stand empty are forgotten."""
_COLD: Final = 0
_INNER: Final = 1
"""Numbers of lanes; the others follow from standing and worth."""


class Branch(Node):
    """A payload and its place in the tree of prefixes."""

    __slots__ = (
        "children",
        "depth",
        "had_child",
        "lane",
        "parent",
        "sampled_above",
        "used_s",
        "worth",
    )

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        self.children = 0
        self.depth = 0
        """Greater than that of what it stands on."""
        self.had_child = False
        self.lane: _Lane | None = None
        self.worth = 0
        """The number of its `_Worth`."""
        self.parent: PayloadKey = b""
        """`Entry.parent`, unless it stood on itself."""
        self.sampled_above: PayloadKey = b""
        self.used_s = 0.0

    @property
    def standing(self) -> Standing:
        uses = self.uses
        return (int(min(uses, _MOST_USES)).bit_length(), self.had_child)


class LeafFirst(Population[Branch]):
    """See `Policy`. `octaves`: the chance of reuse by standing."""

    _make = Branch

    def __init__(self, clock: Clock, octaves: Callable[[Standing], float], weight: float) -> None:
        super().__init__(clock)
        self.weight = weight
        self._octaves = octaves
        self._lanes: dict[int, dict[int, _Lane]] = {}
        self._worths: list[_Worth] = []
        self._worth_numbers: dict[_Worth, int] = {}
        self._waiting: dict[PayloadKey, tuple[int, int]] = {}
        """Of those that are not here: how many stand on them, and the least depth of these."""
        self._expiring: list[tuple[float, PayloadKey]] = []

    # -- the tree ------------------------------------------------------------------------------

    def _enter(self, node: Branch) -> None:
        key, entry = node.entry.key, node.entry
        node.children, below = self._waiting.pop(key, (0, 0))
        node.worth = self._worth(entry)
        node.parent = entry.parent
        if node.parent == key or (node.children and self._stands_on(node.parent, key)):
            node.parent = b""
        above = self._nodes.get(node.parent)
        if above is not None:
            node.depth = above.depth + 1
            self._bear(above)
        elif node.parent:
            count, depth = self._waiting.get(node.parent, (0, node.depth))
            self._waiting[node.parent] = (count + 1, min(depth, node.depth))
        if node.children:
            node.had_child = True
            self._lower(node, below - 1)
        if entry.expires_s:
            self._watch_expiry(entry)

    def _watch_expiry(self, entry: Entry) -> None:
        heapq.heappush(self._expiring, (entry.expires_s, entry.key))
        if len(self._expiring) > 2 * len(self._nodes) + 64:  # most are of what has gone
            self._expiring = [
                (node.entry.expires_s, key)
                for key, node in self._nodes.items()
                if node.entry.expires_s
            ]
            heapq.heapify(self._expiring)

    def _bear(self, above: Branch) -> None:
        above.children += 1
        above.had_child = True
        if above.children == 1 and not above.is_held:
            self._place(above)

    def _stands_on(self, key: PayloadKey, below: PayloadKey) -> bool:
        node = self._nodes.get(key)
        while node is not None:
            if node.parent == below:
                return True
            node = self._nodes.get(node.parent)
        return False

    def _lower(self, node: Branch, depth: int) -> None:
        """It came after what stands on it: let it and those above it be less deep."""
        above: Branch | None = node
        while above is not None and above.depth > depth:
            above.depth = depth
            if above.serial:
                self._place(above)
            depth -= 1
            above = self._nodes.get(above.parent)
        if above is None and node.parent not in self._nodes and node.parent:
            count, least = self._waiting[node.parent]
            self._waiting[node.parent] = (count, min(least, node.depth))

    def _exit(self, node: Branch) -> None:
        if node.children:
            self._waiting[node.entry.key] = (node.children, node.depth + 1)
        if not node.parent:
            return
        above = self._nodes.get(node.parent)
        if above is not None:
            above.children -= 1
            if not above.children and not above.is_held:
                self._place(above)
            return
        count, depth = self._waiting.pop(node.parent)
        if count > 1:
            self._waiting[node.parent] = (count - 1, depth)

    # -- the order -----------------------------------------------------------------------------

    def _used(self, node: Branch) -> None:
        if node.entry.half_life_s:
            node.used_s = self._clock()
        if node.entry.expires_s and node.entry.expires_s <= self._clock():
            node.is_cold = True

    def _place(self, node: Branch) -> None:
        self._displace(node)
        lane = self._lane(node)
        node.lane = lane
        if lane.tier > 0:
            node.rank = -node.depth
        else:
            node.rank = node.used_s if lane.worth.half_life_s else node.used
        self._serial += 1
        node.serial = self._serial
        lane.push((node.rank, self._serial, node.entry.key))

    def _displace(self, node: Branch) -> None:
        if node.serial and node.lane is not None:
            node.serial = 0
            node.lane.live -= 1
            if not node.lane.live:
                self._close(node.entry.group)

    def _lane(self, node: Branch) -> _Lane:
        uses = int(min(node.uses, _MOST_USES)).bit_length()
        if node.children:
            number = _INNER
        elif node.is_cold:
            number = _COLD
        else:
            number = 16 * node.worth + 2 * uses + node.had_child
        try:
            return self._lanes[node.entry.group][number]
        except KeyError:
            return self._open(node, number)

    def _open(self, node: Branch, number: int) -> _Lane:
        tier = {_COLD: -1, _INNER: 1}.get(number, 0)
        worth = self._worths[node.worth] if tier == 0 else _NO_WORTH
        lane = _Lane(self._nodes, tier, node.standing, worth)
        lanes = self._lanes.setdefault(node.entry.group, {})
        if len(lanes) > _MOST_LANES:
            for empty in [number for number, each in lanes.items() if not each.live]:
                del lanes[empty]
        lanes[number] = lane
        return lane

    def _close(self, group: int) -> None:
        """Forget a group that has nothing left to give; its other lanes are kept for the next."""
        if not any(lane.live for lane in self._lanes[group].values()):
            del self._lanes[group]

    def _worth(self, entry: Entry) -> int:
        """The number of what it is worth; what is nearly the same has the same."""
        worth = _Worth(
            round(log2(cost_density(entry))),
            (entry.priority - 50) / _PRIORITY_OCTAVE,
            2.0 ** round(log2(entry.half_life_s)) if entry.half_life_s else 0.0,
        )
        number = self._worth_numbers.get(worth)
        if number is None:
            number = self._worth_numbers[worth] = len(self._worths)
            self._worths.append(worth)
        return number

    def _scale(self, lane: _Lane) -> tuple[float, float]:
        """What its ranks are added to, and multiplied by before, to compare with other lanes'."""
        if lane.tier:
            return 0.0, 1.0
        count, worth = len(self._nodes), lane.worth
        octaves = worth.priority
        if self.weight:
            octaves += self.weight * (self._octaves(lane.standing) + worth.cost)
        if not worth.half_life_s:
            return count * octaves, 1.0
        slope = count / worth.half_life_s
        return self._uses + count * octaves - slope * self._clock(), slope

    def candidates(self, group: int) -> Iterator[Candidate]:
        self._expire()
        lanes = self._lanes.get(group, {})
        best: tuple[tuple[float, ...], PayloadKey] | None = None
        for lane in lanes.values():
            place = lane.first()
            if place is not None:
                base, slope = self._scale(lane)
                head = ((lane.tier, base + slope * place[0], place[1]), place[2])
                if best is None or head < best:
                    best = head
        if best is None:
            return
        yield Candidate(*best)
        yield from islice(heapq.merge(*(self._all(lane) for lane in lanes.values())), 1, None)

    def _all(self, lane: _Lane) -> Iterator[Candidate]:
        base, slope = self._scale(lane)
        for rank, serial, key in lane:
            yield Candidate((lane.tier, base + slope * rank, serial), key)

    def _expire(self) -> None:
        """What is of no use any more goes first."""
        while self._expiring and self._expiring[0][0] <= self._clock():
            _, key = heapq.heappop(self._expiring)
            node = self._nodes.get(key)
            if node is not None and 0 < node.entry.expires_s <= self._clock():
                self.cool(key)

    def explain(self, key: PayloadKey) -> dict[str, float | str]:
        node = self._nodes.get(key)
        told = super().explain(key)
        if node is None or not told or node.lane is None:
            return told
        told.update(depends_on_it=node.children, weight=self.weight)
        if not node.lane.tier:
            told["reuse_octaves"] = self._octaves(node.standing)
            told["cost_octaves"] = node.lane.worth.cost
        return told
