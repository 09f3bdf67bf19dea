"""Replays a trace on the kernel's own policies, and on the optimum that knows the future.

A hit is a block that is there and before which all blocks of its request are there as well. What a
request needs is not evicted on its behalf.
"""

import heapq
from collections.abc import Callable, Sequence

from memosd.kernel.policies.policy import Clock, Policy
from memosd.kernel.ports import PayloadKey
from memosd.tools.bench.traces import Request

__all__ = ["belady_hits", "replay_hits"]

_NEVER = 1 << 60


class _Tier:
    """What is in a cache of so many bytes, under one policy."""

    def __init__(self, make: Callable[[Clock], Policy], room_bytes: int) -> None:
        self._now_s = 0.0
        self.policy = make(lambda: self._now_s)
        self._room_bytes = room_bytes
        self._sizes: dict[PayloadKey, tuple[int, int]] = {}
        """Size and group."""
        self._groups: dict[int, int] = {}
        self._used_bytes = 0

    def serve(self, request: Request) -> int:
        """Hits."""
        self._now_s = request.at_s
        if request.is_removal:
            for entry in request.blocks:
                self.policy.remove(entry.key)
                self._forget(entry.key)
            return 0
        hits = 0
        for entry in request.blocks:
            if entry.key not in self._sizes:
                break
            hits += 1
        needed = {entry.key for entry in request.blocks}
        for entry in request.blocks:
            if entry.key in self._sizes:
                self.policy.touch(entry.key)
            elif self._make_room(entry.size_bytes, needed):
                self._sizes[entry.key] = (entry.size_bytes, entry.group)
                self._groups[entry.group] = self._groups.get(entry.group, 0) + 1
                self._used_bytes += entry.size_bytes
                self.policy.insert(entry)
        return hits

    def _make_room(self, need_bytes: int, needed: set[PayloadKey]) -> bool:
        while self._used_bytes + need_bytes > self._room_bytes:
            orders = [self.policy.candidates(group) for group in self._groups]
            order = heapq.merge(*orders) if len(orders) > 1 else iter(orders[0] if orders else ())
            victim = next((each.key for each in order if each.key not in needed), None)
            if victim is None:
                return False
            self.policy.evict(victim)
            self._forget(victim)
        return True

    def _forget(self, key: PayloadKey) -> None:
        if key not in self._sizes:
            return
        size_bytes, group = self._sizes.pop(key)
        self._used_bytes -= size_bytes
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]


def replay_hits(
    make: Callable[[Clock], Policy], requests: Sequence[Request], room_bytes: int
) -> float:
    """Hits, as a share of all blocks asked for."""
    tier = _Tier(make, room_bytes)
    asked = sum(len(request.blocks) for request in requests if not request.is_removal)
    return sum(tier.serve(request) for request in requests) / asked


def belady_hits(requests: Sequence[Request], room_bytes: int) -> float:
    """The same of who evicts what is used latest, the deepest of a request first, and does not
    keep what is never used again: optimal for blocks of one size, as a block is never used after
    those that stand on it."""
    uses = _next_uses(requests)
    due: dict[PayloadKey, int] = {}
    order: list[tuple[int, int, PayloadKey, int]] = []
    hits = used_bytes = asked = 0
    for request, nexts in zip(requests, uses, strict=True):
        if request.is_removal:
            for entry in request.blocks:
                used_bytes -= entry.size_bytes if due.pop(entry.key, None) is not None else 0
            continue
        asked += len(request.blocks)
        is_led = True
        for depth, (entry, then) in enumerate(zip(request.blocks, nexts, strict=True)):
            is_led = is_led and entry.key in due
            hits += is_led
            used_bytes += 0 if entry.key in due else entry.size_bytes
            due[entry.key] = then
            heapq.heappush(order, (-then, -depth, entry.key, entry.size_bytes))
        while order and (used_bytes > room_bytes or order[0][0] == -_NEVER):
            then, _, key, size_bytes = heapq.heappop(order)
            if due.get(key) == -then:
                del due[key]
                used_bytes -= size_bytes
    return hits / asked


def _next_uses(requests: Sequence[Request]) -> list[list[int]]:
    """For each block of each request the next request that asks for it."""
    uses: list[list[int]] = []
    known: dict[PayloadKey, int] = {}
    for number in range(len(requests) - 1, -1, -1):
        request = requests[number]
        uses.append([known.get(entry.key, _NEVER) for entry in request.blocks])
        for entry in request.blocks:
            known[entry.key] = _NEVER if request.is_removal else number
    uses.reverse()
    return uses
