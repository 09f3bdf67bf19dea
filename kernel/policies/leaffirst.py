"""An order in which what others stand on goes after them, and of the rest the least worth.

Worth is counted in octaves: each doubling of the chance of reuse, of the cost to bring it back for
each byte, or each `_PRIORITY_OCTAVE` points of priority, is worth as much as having been used
`weight` times the number of entries later (of priority: that number). With a weight of 0 it is LRU
among the leaves of one priority. Entries of equal worth share a lane (`lanes.py`): a decision takes
O(log n) however many kinds there are, and the weight and the chances may change at any time.
"""

import heapq
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from math import log2
from typing import Final

from memosd.kernel.policies.lanes import (
    COLD,
    INNER,
    NO_WORTH,
    Lane,
    Order,
    Place,
    Shelf,
    Standing,
    Worth,
)
from memosd.kernel.policies.policy import Candidate, Clock, Entry
from memosd.kernel.policies.population import Node, Population
from memosd.kernel.policies.value import cost_density
from memosd.kernel.ports import PayloadKey

__all__ = ["Branch", "LeafFirst"]

_PRIORITY_OCTAVE: Final = 16.0
"""Points of priority: from 0 to 100 it is about six octaves."""
_MOST_USES: Final = 63
"""More do not tell more."""
_DRIFT: Final = 16
"""An octave's uses are counted anew when the entries are more, or fewer, by one in so many."""
_LONGEST_OCTAVE: Final = 30
"""Half-lives are told apart by octaves of a second, up to this one."""


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
        self.lane: Lane | None = None
        self.worth = 0
        """The number of its `Worth`."""
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
        self._octave_uses = 0
        """How many uses later an octave is worth: about as many as there are entries."""
        self._orders: dict[int, Order] = {}
        """By control group; none is empty."""
        self._worths: list[Worth] = []
        self._worth_numbers: dict[Worth, int] = {}
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
        if self._has_expired(node.entry):
            node.is_cold = True

    def release(self, key: PayloadKey) -> None:
        node = self._nodes.get(key)
        if node is not None and node.entry.half_life_s:
            node.used_s = self._clock()
        super().release(key)

    def update(self, entry: Entry) -> None:
        node = self._nodes.get(entry.key)
        if node is not None:
            if entry.half_life_s and not node.entry.half_life_s:
                node.used_s = self._clock()  # before, nobody asked when
            if self._has_expired(node.entry) and not self._has_expired(entry):
                node.is_cold = False
        super().update(entry)

    def _has_expired(self, entry: Entry) -> bool:
        return 0 < entry.expires_s <= self._clock()

    def _place(self, node: Branch) -> None:
        self._displace(node)
        order = self._orders.get(node.entry.group)
        if order is None:
            order = Order(self._nodes, self._octave_uses, self.weight)
            self._orders[node.entry.group] = order
        number = self._number(node)
        lane = order.lanes.get(number)
        if lane is None:
            worth = self._worths[node.worth] if number not in (COLD, INNER) else NO_WORTH
            lane = order.open(number, node.standing, worth)
        node.lane = lane
        if number == INNER:
            node.rank = -node.depth
        else:
            node.rank = node.used_s if lane.worth.half_life_s else node.used
        self._serial += 1
        node.serial = self._serial
        order.add(lane, (node.rank, self._serial, node.entry.key))

    def _displace(self, node: Branch) -> None:
        if node.serial and node.lane is not None:
            serial, node.serial = node.serial, 0
            order = self._orders[node.entry.group]
            order.drop(node.lane, serial)
            if not order.lanes:
                del self._orders[node.entry.group]

    def _number(self, node: Branch) -> int:
        """Of the lane that it belongs in."""
        if node.children:
            return INNER
        if node.is_cold:
            return COLD
        uses = int(min(node.uses, _MOST_USES)).bit_length()
        return 16 * node.worth + 2 * uses + node.had_child

    def _worth(self, entry: Entry) -> int:
        """The number of what it is worth; what is nearly the same has the same."""
        half_life = 0.0
        if entry.half_life_s:
            half_life = 2.0 ** min(max(0, round(log2(entry.half_life_s))), _LONGEST_OCTAVE)
        worth = Worth(
            round(log2(cost_density(entry))), (entry.priority - 50) / _PRIORITY_OCTAVE, half_life
        )
        number = self._worth_numbers.get(worth)
        if number is None:
            number = self._worth_numbers[worth] = len(self._worths)
            self._worths.append(worth)
        return number

    def candidates(self, group: int) -> Iterator[Candidate]:
        self._expire()
        count = len(self._nodes)
        if abs(count - self._octave_uses) * _DRIFT > self._octave_uses:
            self._octave_uses = count
        order = self._orders.get(group)
        if order is None:
            return
        order.renew(self._octave_uses, self.weight)
        for rank, serial, key in order.lanes.get(COLD, ()):
            yield Candidate((-1, rank, serial), key)
        yield from self._leaves(order.shelves.values())
        for rank, serial, key in order.lanes.get(INNER, ()):
            yield Candidate((1, rank, serial), key)

    def _leaves(self, shelves: Collection[Shelf]) -> Iterator[Candidate]:
        best: Place | None = None
        for shelf in shelves:
            base, slope = self._scale(shelf)
            rank, serial, key = shelf.head
            rank = base + slope * rank
            if best is None or (rank, serial) < best[:2]:
                best = rank, serial, key
        if best is None:
            return
        yield Candidate((0, best[0], best[1]), best[2])
        orders = [self._all(shelf) for shelf in shelves]
        yield from islice(heapq.merge(*orders), 1, None)

    def _scale(self, shelf: Shelf) -> tuple[float, float]:
        """What its ranks are added to, and multiplied by before, to compare with other shelves'."""
        shift = 0.0
        if self.weight:
            shift = self._octave_uses * self.weight * self._octaves(shelf.standing)
        if not shelf.half_life_s:
            return shift, 1.0
        slope = self._octave_uses / shelf.half_life_s
        return self._uses + shift - slope * self._clock(), slope

    def _all(self, shelf: Shelf) -> Iterator[Candidate]:
        base, slope = self._scale(shelf)
        for rank, serial, key in shelf.places():
            yield Candidate((0, base + slope * rank, serial), key)

    def _expire(self) -> None:
        """What is of no use any more goes first."""
        while self._expiring and self._expiring[0][0] <= self._clock():
            _, key = heapq.heappop(self._expiring)
            node = self._nodes.get(key)
            if node is not None and self._has_expired(node.entry):
                self.cool(key)

    def explain(self, key: PayloadKey) -> dict[str, float | str]:
        node = self._nodes.get(key)
        told = super().explain(key)
        if node is None or not told or node.lane is None:
            return told
        told.update(depends_on_it=node.children, weight=self.weight)
        if node.lane.shelf is not None:
            told["octave_uses"] = self._octave_uses
            told["reuse_octaves"] = self._octaves(node.standing)
            told["cost_octaves"] = node.lane.worth.cost
        return told
