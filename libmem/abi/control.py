"""What control groups are granted, and what they take. Plain data, as in `structs`."""

from libmem.abi.structs import Value

__all__ = ["GroupStat", "GroupTierStat", "Limits", "TierLimits"]


class TierLimits(Value, frozen=True):
    """What a control group is granted of one tier, in bytes; 0 means none."""

    min_bytes: int = 0
    """Never reclaimed for others' sake."""
    low_bytes: int = 0
    """Reclaimed only when nothing else can go."""
    high_bytes: int = 0
    """Above it the group is reclaimed first, and who takes more is slowed down."""
    max_bytes: int = 0
    """What does not fit is refused (EDQUOT) once nothing of the group can go."""


class Limits(Value, frozen=True):
    """What a control group is granted."""

    ram: TierLimits = TierLimits()
    device: TierLimits = TierLimits()
    disk: TierLimits = TierLimits()
    io_weight: int = 100
    """1..10000: its share of payload I/O against its siblings' while all of them wait for it."""


class GroupTierStat(Value, frozen=True):
    """What a control group takes of one tier, and what its limits did since boot."""

    tier: str
    own_bytes: int
    """Without what the groups below it take."""
    subtree_bytes: int
    reclaims: int = 0
    """Payloads of its own that were reclaimed."""
    throttles: int = 0
    """Calls slowed down because it was above its `high`."""
    refusals: int = 0
    """Calls refused because it was at its `max`."""


class GroupStat(Value, frozen=True):
    """One control group: `/`, a namespace, or a folder below one that was given limits."""

    path: str
    number: int
    """Not given twice."""
    limits: Limits
    tiers: tuple[GroupTierStat, ...]
    is_counted: bool = True
    """False while what the folder held on disk before is still being added up."""
