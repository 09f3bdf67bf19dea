"""Least recently used, lowest priority first."""

from typing import Final

from memosd.kernel.policies.population import Node, Population

__all__ = ["Lru"]

_PRIORITY_STEP: Final = float(1 << 44)
"""More uses than there will be between two priorities."""


class Lru(Population[Node]):
    """See `Policy`."""

    name = "lru"

    def _rank(self, node: Node) -> float:
        return node.entry.priority * _PRIORITY_STEP + node.used

    def _cold_rank(self, node: Node) -> float:
        return node.entry.priority * _PRIORITY_STEP
