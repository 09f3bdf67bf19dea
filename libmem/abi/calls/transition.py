"""Requests about transitions: a memory's change of type, done by a worker."""

from libmem.abi.calls.base import Call, Done
from libmem.abi.structs import Value
from libmem.abi.transitions import Recipe, TransitionStat

__all__ = [
    "CancelTransition",
    "ListTransitions",
    "ListTransitionsReply",
    "ReportJob",
    "ReportJobReply",
    "Transmute",
    "WaitTransition",
]


class Transmute(Call[TransitionStat], frozen=True):
    name: str
    """Of the cube to be made; one that is there gets a new version."""
    sources: tuple[str, ...]
    """Each with or without a version. Where one is changed before the end, the result is refused
    (EOUTDATED)."""
    recipe: Recipe


class WaitTransition(Call[TransitionStat], frozen=True):
    number: int
    seen: int = -1
    """`changes` of what the caller knows: it is answered when there are more, or it is over."""
    timeout_ms: int = 0


class ListTransitionsReply(Value, frozen=True):
    transitions: tuple[TransitionStat, ...]
    """By number, so by age."""
    next_after: int = 0
    """0 at the end; else pass it back as `after`."""


class ListTransitions(Call[ListTransitionsReply], frozen=True):
    after: int = 0
    limit: int = 100


class CancelTransition(Call[Done], frozen=True):
    number: int


class ReportJobReply(Value, frozen=True):
    is_wanted: bool
    """False: it was canceled, and what is made of it would be thrown away."""


class ReportJob(Call[ReportJobReply], frozen=True):
    """How far a transition is."""

    number: int
    """The transition's."""
    done: int = 0
    total: int = 0
    note: str = ""
    quality: dict[str, float] = {}
