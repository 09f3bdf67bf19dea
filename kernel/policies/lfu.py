"""Least frequently used, with ageing.

A payload's rank is its uses on top of the rank of what was evicted when it was last used (LFU-DA:
Arlitt et al., "Evaluating content management techniques for web proxy caches", 1999): what was
used often once sinks as others are evicted around it.
"""

from memosd.kernel.policies.policy import Clock
from memosd.kernel.policies.population import Node, Population

__all__ = ["Lfu"]


class Lfu(Population[Node]):
    """See `Policy`."""

    name = "lfu"

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._age = 0.0

    def _rank(self, node: Node) -> float:
        return self._age + node.uses * (1 + node.entry.priority / 100)

    def _left(self, node: Node) -> None:
        if not node.is_cold:
            self._age = max(self._age, node.rank)
