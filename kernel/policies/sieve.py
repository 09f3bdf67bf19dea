"""SIEVE: what is not used between two passes of a hand goes.

The hand moves from the oldest to the newest, over and over; what was used since it came by stays
in its place. Source: Zhang et al., "SIEVE is simpler than LRU", NSDI 2024. Here the hand is a rank:
the pass in which an entry's turn comes, and its place in the queue.
"""

from typing import Final

from memosd.kernel.policies.policy import Clock, Entry
from memosd.kernel.policies.population import Node, Population
from memosd.kernel.ports import PayloadKey

__all__ = ["Sieve"]

_PASS: Final = float(1 << 40)
"""More insertions than there will be between two passes."""


class Sieve(Population[Node]):
    """See `Policy`."""

    name = "sieve"

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._hand = 0.0
        self._inserts = 0
        self._turns: dict[PayloadKey, float] = {}
        """When the hand comes by each."""

    def insert(self, entry: Entry) -> None:
        self._inserts += 1
        turn = self._hand // _PASS * _PASS + self._inserts
        super().insert(entry)
        self._turns[entry.key] = turn
        self._place(self._nodes[entry.key])

    def _drop(self, key: PayloadKey) -> None:
        super()._drop(key)
        self._turns.pop(key, None)

    def touch(self, key: PayloadKey) -> None:
        if key in self._nodes:
            place = self._turns[key] % _PASS
            turn = self._hand // _PASS * _PASS + place
            # It is passed over once: the hand comes to it in this pass, or in the next.
            self._turns[key] = turn + (_PASS if turn >= self._hand else 2 * _PASS)
        super().touch(key)

    def _rank(self, node: Node) -> float:
        return self._turns.get(node.entry.key, 0.0)

    def _left(self, node: Node) -> None:
        if not node.is_cold:
            self._hand = max(self._hand, node.rank)
