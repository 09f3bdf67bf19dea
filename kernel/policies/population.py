"""What every policy keeps of a tier: the payloads, who is held, and one order for each group.

A policy says which lane of its group a payload stands in, and with which rank; lanes are heaps. The
rest of `Policy` is here, once.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from memosd.kernel.policies.heap import LazyHeap
from memosd.kernel.policies.policy import Candidate, Clock, Entry
from memosd.kernel.ports import PayloadKey

__all__ = ["Ghosts", "Node", "Population"]


class Node:
    """One payload under a policy."""

    __slots__ = ("entry", "is_cold", "is_held", "rank", "serial", "used", "uses")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.is_held = False
        self.is_cold = False
        self.uses = 1.0
        self.used = 0
        """Of all uses of the tier, which was its last."""
        self.rank = 0.0
        self.serial = 0
        """Of the place that holds; 0: it has none."""


class Ghosts:
    """How often what was evicted had been used; no more of them than the tier holds."""

    def __init__(self) -> None:
        self._uses: OrderedDict[PayloadKey, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uses)

    def add(self, key: PayloadKey, uses: float, limit: int) -> None:
        self._uses[key] = uses
        while len(self._uses) > limit:
            self._uses.popitem(last=False)

    def take(self, key: PayloadKey) -> float:
        """Its uses, no longer remembered; 0: it was not known."""
        return self._uses.pop(key, 0.0)


NodeT = TypeVar("NodeT", bound=Node)


class Population(Generic[NodeT]):
    """`Policy`, but for the rank. `_make`: what is kept of an entry."""

    name = ""
    _make: Callable[[Entry], Any] = Node

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._nodes: dict[PayloadKey, NodeT] = {}
        self._heaps: dict[int, LazyHeap[PayloadKey]] = {}
        self._ghosts = Ghosts()
        self._uses = 0
        self._serial = 0

    def _rank(self, node: NodeT) -> float:
        """Where a payload stands that was just used; asked again at every use and change."""
        raise NotImplementedError

    def _cold_rank(self, node: NodeT) -> float:
        """Where one stands that is not expected to be used again: before all others."""
        return float("-inf")

    def _left(self, node: NodeT) -> None:
        """It is being evicted."""

    def _enter(self, node: NodeT) -> None:
        """It came into the tier, and has no place yet."""

    def _exit(self, node: NodeT) -> None:
        """It is no longer there, and has no place."""

    def _used(self, node: NodeT) -> None:
        """It was used, which is counted, but it is still in its old place."""

    def insert(self, entry: Entry) -> None:
        self._drop(entry.key)
        node: NodeT = self._make(entry)
        self._nodes[entry.key] = node
        node.uses += self._ghosts.take(entry.key)
        self._enter(node)
        self._use(node)
        self._place(node)

    def touch(self, key: PayloadKey) -> None:
        node = self._nodes.get(key)
        if node is not None:
            node.uses += 1
            self._use(node)
            if not node.is_held:
                self._place(node)

    def cool(self, key: PayloadKey) -> None:
        node = self._nodes.get(key)
        if node is not None:
            node.is_cold = True
            if not node.is_held:
                self._place(node)

    def hold(self, key: PayloadKey) -> None:
        node = self._nodes.get(key)
        if node is not None and not node.is_held:
            self._displace(node)
            node.is_held = True

    def release(self, key: PayloadKey) -> None:
        """A use, for the order; it was counted as one when it began."""
        node = self._nodes.get(key)
        if node is None:
            return
        node.is_held = False
        self._uses += 1
        node.used = self._uses
        self._place(node)

    def update(self, entry: Entry) -> None:
        node = self._nodes.get(entry.key)
        if node is None:
            return
        is_placed = node.serial != 0
        self._displace(node)
        del self._nodes[entry.key]
        self._exit(node)
        node.entry = entry
        self._nodes[entry.key] = node
        self._enter(node)
        if is_placed:
            self._place(node)

    def evict(self, key: PayloadKey) -> None:
        node = self._nodes.get(key)
        if node is not None:
            self._left(node)
            self._drop(key)
            self._ghosts.add(key, node.uses, len(self._nodes))

    def remove(self, key: PayloadKey) -> None:
        self._drop(key)

    def _drop(self, key: PayloadKey) -> None:
        node = self._nodes.pop(key, None)
        if node is not None:
            self._displace(node)
            self._exit(node)

    def candidates(self, group: int) -> Iterator[Candidate]:
        for rank, serial, key in self._heaps.get(group, ()):
            yield Candidate((rank, float(serial)), key)

    def explain(self, key: PayloadKey) -> dict[str, float | str]:
        node = self._nodes.get(key)
        if node is None or node.is_held:
            return {}
        return {
            "priority": node.entry.priority,
            "uses": node.uses,
            "uses_since": self._uses - node.used,
            "rank": node.rank,
        }

    def _use(self, node: NodeT) -> None:
        self._uses += 1
        node.used = self._uses
        node.is_cold = False
        self._used(node)

    def _place(self, node: NodeT) -> None:
        self._displace(node)
        self._serial += 1
        node.serial = self._serial
        node.rank = self._cold_rank(node) if node.is_cold else self._rank(node)
        group = node.entry.group
        heap = self._heaps.get(group)
        if heap is None:
            heap = self._heaps[group] = LazyHeap(self._nodes)
        heap.push((node.rank, node.serial, node.entry.key))

    def _displace(self, node: NodeT) -> None:
        if node.serial:
            node.serial = 0
            heap = self._heaps[node.entry.group]
            heap.live -= 1
            if not heap.live:
                del self._heaps[node.entry.group]
