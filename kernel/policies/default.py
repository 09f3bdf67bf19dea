"""The default: cost-aware, prefix-aware, and no worse than LRU where that is right.

An order of leaves first (`LeafFirst`) whose chances of reuse are learned (`Chances`). How much they
count against recency is tried out: small shadows of the tier, fed with a sample of its payloads,
run side by side with one weight each, LRU's 0 among them; the tier follows the one that saves most.
Source: Waldspurger et al., "Cache modeling and optimization using miniature simulations", ATC 2017.
"""

from typing import Final
from zlib import crc32

from memosd.kernel.policies.chances import Chances
from memosd.kernel.policies.leaffirst import Branch, LeafFirst
from memosd.kernel.policies.policy import Clock, Entry
from memosd.kernel.policies.value import cost_density
from memosd.kernel.ports import PayloadKey

__all__ = ["Default"]

_WEIGHTS: Final = (0.0, 1.0, 2.0)
_SAMPLED: Final = 1024
"""Entries that the sample is held to, about: enough for shares of hits to the percent."""
_FADE: Final = 0.5
"""What earlier savings still count after a tier's worth of uses."""
_MARGIN: Final = 1.005
"""By how much another weight must be better."""


class _Shadow(LeafFirst):
    """What a tier of the sample's size would hold with one weight, and what that would save."""

    def __init__(self, clock: Clock, chances: Chances, weight: float) -> None:
        super().__init__(clock, chances.octaves, weight)
        self.saved = 0.0
        self._bytes = 0

    def use(self, entry: Entry, room_bytes: float) -> None:
        if entry.key in self._nodes:
            self.saved += cost_density(entry) * entry.size_bytes
            self.touch(entry.key)
            return
        self.insert(entry)
        self._bytes += entry.size_bytes
        if self._bytes > room_bytes:
            node = self._nodes[entry.key]
            # Not `hold`: to be released would be another use.
            self._displace(node)
            node.is_held = True
            while self._bytes > room_bytes and len(self._nodes) > 1:
                self.forget(next(self.candidates(0)).key, is_reclaim=True)
            node.is_held = False
            self._place(node)

    def forget(self, key: PayloadKey, *, is_reclaim: bool) -> None:
        node = self._nodes.get(key)
        if node is not None:
            self._bytes -= node.entry.size_bytes
            if is_reclaim:
                self.evict(key)
            else:
                self.remove(key)

    def bear(self, key: PayloadKey) -> None:
        """Something stands on it, sampled or not."""
        node = self._nodes.get(key)
        if node is not None and not node.had_child:
            node.had_child = True
            self._place(node)


class Default(LeafFirst):
    """See `Policy`."""

    name = "default"

    def __init__(self, clock: Clock) -> None:
        self._chances = Chances()
        super().__init__(clock, self._chances.octaves, _WEIGHTS[1])
        self._shadows = [_Shadow(clock, self._chances, weight) for weight in _WEIGHTS]
        self._mask = 0
        """Of a key's hash: all zeros are in the sample."""
        self._bytes = 0
        self._full_bytes = 0
        """What the tier held when it last had no room; 0: it always had."""
        self._judged = 0

    def _enter(self, node: Branch) -> None:
        self._bytes += node.entry.size_bytes
        super()._enter(node)
        above = self._nodes.get(node.parent)
        if above is not None:
            is_sampled = not crc32(node.parent) & self._mask
            node.sampled_above = node.parent if is_sampled else above.sampled_above

    def _exit(self, node: Branch) -> None:
        self._bytes -= node.entry.size_bytes
        super()._exit(node)

    def _bear(self, above: Branch) -> None:
        is_first = not above.had_child
        super()._bear(above)
        if is_first and not crc32(above.entry.key) & self._mask:
            self._chances.restand(above.entry.key, above.standing)
            for shadow in self._shadows:
                shadow.bear(above.entry.key)

    def _used(self, node: Branch) -> None:
        super()._used(node)
        if not crc32(node.entry.key) & self._mask:
            self._try(node)

    def _try(self, node: Branch) -> None:
        entry, count = node.entry, len(self._nodes)
        self._chances.use(entry.key, node.standing, self._uses, count)
        if count > 2 * _SAMPLED * (self._mask + 1):
            self._mask = 2 * self._mask + 1
        room_bytes = (self._full_bytes or float("inf")) / (self._mask + 1)
        sampled = Entry(
            entry.key,
            entry.size_bytes,
            priority=entry.priority,
            parent=node.sampled_above,
            restore_s=entry.restore_s,
        )
        for shadow in self._shadows:
            shadow.use(sampled, room_bytes)
        if self._uses - self._judged > count:
            self._judged = self._uses
            self._judge()

    def _judge(self) -> None:
        best = max(self._shadows, key=lambda shadow: shadow.saved)
        now = next(each for each in self._shadows if each.weight == self.weight)
        if best.saved > _MARGIN * now.saved:
            self.weight = best.weight
        for shadow in self._shadows:
            shadow.saved *= _FADE

    def _left(self, node: Branch) -> None:
        self._full_bytes = self._bytes

    def remove(self, key: PayloadKey) -> None:
        super().remove(key)
        if not crc32(key) & self._mask:
            for shadow in self._shadows:
                shadow.forget(key, is_reclaim=False)
