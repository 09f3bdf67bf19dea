"""Protection: which control groups may be reclaimed from, and in which order.

`min` and `low` protect what a group uses up to them, for its whole subtree. Where siblings claim
more than what they are in is granted, each gets its share of that by what it claims; what nobody
claims protects the rest in proportion to what it uses. So a limit set far down never takes from
others above. Pure functions over sums; O(groups).
Source: Linux, mm/page_counter.c, effective_protection(), with memory_recursiveprot.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from memosd.kernel.control import NO_LIMITS, Group

__all__ = ["Sums", "has_claims", "levels", "protected"]

_CLAIMS: Final = ("min_bytes", "low_bytes", "high_bytes")


class Sums(NamedTuple):
    """What groups are charged in one tier."""

    tier: str
    capacity_bytes: int
    """What there is to be shared out."""
    groups: Mapping[int, Group]
    """Those that are charged for anything themselves."""
    own: Mapping[int, int]
    """Number -> bytes, without those below."""
    used: Mapping[int, int]
    """Number -> bytes of the subtree."""


def levels(sums: Sums, root: Group | None, charger: Group | None) -> list[list[int]]:
    """Groups to reclaim from below `root` (None: in the whole tier), all of a level before any
    of the next: above `high`; above `low`; above `min`; for its own sake, `charger` itself."""
    inside = [
        group for group in sums.groups.values() if root is None or _is_within(group, root.number)
    ]
    if not any(_has_claims(group, sums.tier) for group in inside):
        return [[group.number for group in inside]]
    top = root or _top(inside[0])
    own = sums.own
    least = protected(sums, top, "min_bytes")
    wanted = protected(sums, top, "low_bytes")
    free = [each for each in inside if own[each.number] > least.get(each.number, 0)]
    return [
        [each.number for each in free if _is_over_high(sums, each)],
        [each.number for each in free if own[each.number] > wanted.get(each.number, 0)],
        [each.number for each in free],
        [charger.number] if charger is not None and charger.number in own else [],
    ]


def protected(sums: Sums, root: Group, limit: str) -> dict[int, float]:
    """For each group below `root`: how many bytes of its own may not be taken.

    `root` itself is not protected from what it is reclaimed for.
    """
    capacity = min(sums.capacity_bytes, root.of(sums.tier).max_bytes or sums.capacity_bytes)
    found: dict[int, float] = {}
    waiting: list[tuple[Group, float, bool]] = [(root, capacity, False)]
    while waiting:
        group, granted, is_claimed = waiting.pop()
        children = [each for each in group.children.values() if sums.used.get(each.number)]
        claims = [
            min(sums.used[each.number], getattr(each.of(sums.tier), limit)) for each in children
        ]
        claimed = sum(claims)
        scale = granted / claimed if claimed > granted else 1.0
        rest = sums.used.get(group.number, 0) - claimed
        spread = max(0.0, granted - claimed) / rest if is_claimed and rest > 0 else 0.0
        found[group.number] = sums.own.get(group.number, 0) * min(1.0, spread)
        for child, claim in zip(children, claims, strict=True):
            share = claim * scale + (sums.used[child.number] - claim) * min(1.0, spread)
            waiting.append((child, share, True))
    return found


def has_claims(sums: Sums) -> bool:
    """Do limits say anything about the order?"""
    return any(_has_claims(group, sums.tier) for group in sums.groups.values())


def _is_over_high(sums: Sums, group: Group) -> bool:
    """Is it, or what it is in, above its `high`?"""
    for each in group.lineage:
        high_bytes = each.of(sums.tier).high_bytes
        if high_bytes and sums.used.get(each.number, 0) > high_bytes:
            return True
    return False


def _has_claims(group: Group, tier: str) -> bool:
    return any(
        getattr(each.of(tier), claim)
        for each in group.lineage
        if each.limits is not NO_LIMITS
        for claim in _CLAIMS
    )


def _is_within(group: Group, number: int) -> bool:
    return any(each.number == number for each in group.lineage)


def _top(group: Group) -> Group:
    return group.lineage[-1]
