"""Turns at payload I/O, shared out between control groups by weight.

Start-time fair queueing, a level of the tree at a time: while several groups wait, each gets bytes
in proportion to its weight among its siblings, however many calls it has; who was idle has no
claim to the past. At most `depth` turns are taken at once; without contention nobody waits.
Kernel thread only.
Source: P. Goyal, H. Vin, H. Cheng, "Start-time fair queueing", SIGCOMM 1996; hierarchical use, 4.
"""

from collections import deque
from typing import Final

from memosd.kernel.control import Group
from memosd.kernel.wait import Completion

__all__ = ["FairQueue"]

_OWN_WEIGHT: Final = 100
"""Of what lies in a group itself, against the groups below it."""


class _Flow:
    """A group, or what lies in it directly, among its siblings."""

    __slots__ = ("above", "below", "busy", "finish", "group", "now", "queue", "start")

    def __init__(self, group: Group | None, above: "_Flow | None") -> None:
        self.group = group
        """None: a leaf, what lies in the group above it."""
        self.above = above
        self.below: dict[int, _Flow] = {}
        self.busy: dict[int, _Flow] = {}
        """Those below that wait for a turn, by their identity."""
        self.queue: deque[tuple[int, Completion[None]]] = deque()
        self.start = self.finish = 0.0
        """Tags of its next turn, in bytes by weight."""
        self.now = 0.0
        """Virtual time among those below: the start tag of the latest turn."""

    @property
    def weight(self) -> int:
        return self.group.limits.io_weight if self.group is not None else _OWN_WEIGHT

    @property
    def is_waiting(self) -> bool:
        return bool(self.queue or self.busy)


class FairQueue:
    """Who may move a payload next."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._taken = 0
        self.waiting_bytes = 0
        """Of those who have no turn yet."""
        self._top = _Flow(None, None)

    def enter(self, group: Group, size_bytes: int) -> Completion[None]:
        """Done when it is the group's turn; to be followed by one `leave`."""
        turn = Completion[None]()
        leaf = self._leaf(group)
        leaf.queue.append((size_bytes, turn))
        self.waiting_bytes += size_bytes
        flow = leaf
        while flow.above is not None and id(flow) not in flow.above.busy:
            flow.start = max(flow.above.now, flow.finish)
            flow.above.busy[id(flow)] = flow
            flow = flow.above
        self._go_on()
        return turn

    def leave(self) -> None:
        """The turn is over."""
        self._taken -= 1
        self._go_on()
        if not self._taken:
            self._top = _Flow(None, None)  # nobody waits: there is no past to be fair about

    def _go_on(self) -> None:
        while self._taken < self._depth and self._top.busy:
            self._taken += 1
            self._next().resolve(None)

    def _next(self) -> Completion[None]:
        flow = self._top
        while flow.busy:
            following = min(flow.busy.values(), key=lambda each: each.start)
            flow.now = following.start
            flow = following
        size_bytes, turn = flow.queue.popleft()
        self.waiting_bytes -= size_bytes
        while flow.above is not None:
            flow.finish = flow.start + size_bytes / flow.weight
            flow.start = flow.finish
            if not flow.is_waiting:
                del flow.above.busy[id(flow)]
            flow = flow.above
        return turn

    def _leaf(self, group: Group) -> _Flow:
        flow = self._top
        for each in reversed(group.lineage):
            flow = self._below(flow, each.number, each)
        return self._below(flow, -1, None)

    @staticmethod
    def _below(flow: _Flow, number: int, group: Group | None) -> _Flow:
        found = flow.below.get(number)
        if found is None:
            found = flow.below[number] = _Flow(group, flow)
        found.group = group
        return found
