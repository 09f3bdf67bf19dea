"""Greedy dual size frequency: uses x cost to bring back / bytes, with ageing.

Source: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching
policy", HP Labs, 1998.
"""

from memosd.kernel.policies.lfu import Lfu
from memosd.kernel.policies.population import Node
from memosd.kernel.policies.value import cost_density

__all__ = ["Gdsf"]


class Gdsf(Lfu):
    """See `Policy`."""

    name = "gdsf"

    def _rank(self, node: Node) -> float:
        worth = cost_density(node.entry) * (1 + node.entry.priority / 100)
        return self._age + node.uses * worth
