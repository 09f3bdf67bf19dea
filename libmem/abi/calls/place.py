"""Requests about where payloads are: mapping, pinning, hints, eviction, explanation."""

from enum import StrEnum
from typing import Any

from libmem.abi.calls.base import Call, Done
from libmem.abi.structs import Advice, CubeType, Decision, Stat, TierName, Value

__all__ = [
    "AdviceOutcome",
    "AdviseCube",
    "AdviseReply",
    "Evict",
    "EvictReply",
    "Explain",
    "ExplainReply",
    "Holder",
    "MapPart",
    "MapReply",
    "MigrateCube",
    "MigrateReply",
    "MmapCube",
    "MunmapCube",
    "PinCube",
    "PinReply",
    "UnpinCube",
]


class MapPart(Value, frozen=True):
    """A cube that another one stands on."""

    id: bytes
    version: int
    size_bytes: int
    attributes: dict[str, Any] = {}


class MapReply(Value, frozen=True):
    """The sealed memory's descriptor arrives on the fd socket, tagged with `handle`; with it come
    those of `bases`, in their order."""

    handle: int
    id: bytes
    version: int
    size_bytes: int
    type: CubeType
    attributes: dict[str, Any] = {}
    bases: tuple[MapPart, ...] = ()
    """What the cube stands on, nearest first; where it was asked for."""
    device: str = ""
    """Where the memory is, if not in RAM: `cpu`, `cuda:0`."""
    openings: tuple[bytes, ...] = ()
    """How to open the cube's memory and that of its bases, where no descriptor can: they come
    instead of descriptors. See `libmem.device`."""


class MmapCube(Call[MapReply], frozen=True):
    name: str
    model: str = ""
    """The fingerprint that the cube's model must have; empty: any, or none."""
    is_whole: bool = False
    """With what the cube stands on, where it holds only a part."""
    tier: TierName = TierName.RAM
    """Or DEVICE."""
    allow_outdated: bool = False
    """Map a derived cube though a source of it is not so any more."""


class MunmapCube(Call[Done], frozen=True):
    handle: int


class PinReply(Value, frozen=True):
    handle: int


class PinCube(Call[PinReply], frozen=True):
    name: str


class UnpinCube(Call[Done], frozen=True):
    handle: int


class AdviceOutcome(StrEnum):
    """What became of a hint."""

    DONE = "done"
    QUEUED = "queued"
    """It will be loaded when nobody waits for the disk; ask with `wait` to hear of it."""
    RESIDENT = "resident"
    """It was in RAM already."""
    REFUSED = "refused"
    """It is not loaded: there is no room, or it is not worth it; `reason` says which."""
    LATE = "late"
    """The deadline passed first."""
    FAILED = "failed"
    """It could not be read; `errno` and `reason` say why."""


class AdviseReply(Value, frozen=True):
    outcome: AdviceOutcome
    reason: str = ""
    """For people."""
    loaded_bytes: int = 0
    freed_bytes: int = 0
    took_ns: int = 0
    """From the hint to its outcome."""
    errno: int = 0


class AdviseCube(Call[AdviseReply], frozen=True):
    name: str
    advice: Advice
    deadline_ns: int = 0
    """For `willneed`: of no use after this many ns from now; 0: none."""
    wait: bool = False
    """For `willneed`: reply when it is done, refused or late, rather than at once."""


class EvictReply(Value, frozen=True):
    freed_bytes: int


class Evict(Call[EvictReply], frozen=True):
    name: str


class MigrateReply(Value, frozen=True):
    tiers: tuple[str, ...]


class MigrateCube(Call[MigrateReply], frozen=True):
    name: str
    tier: TierName


class Holder(Value, frozen=True):
    """Who keeps a cube in RAM."""

    kind: str
    """`pin` or `map`."""
    session: int
    uid: int
    pid: int
    client: str
    since_ns: int


class ExplainReply(Value, frozen=True):
    stat: Stat
    residency: str
    decisions: tuple[Decision, ...]
    """Oldest first."""
    holders: tuple[Holder, ...] = ()
    """Of the caller's own user; to the administrator of all. Of many, the first."""
    policy: str = ""
    numbers: dict[str, int | float | str] = {}
    """What the policy knows of it, where it is in RAM."""
    position: int = 0
    """Its place among those of its namespace that may be reclaimed: 1 goes first; 0: it is none of
    them; -1: behind more than are counted."""
    restore_s: float = 0.0
    """What it would take to bring it back, by the cost model; 0: not known."""
    since_ns: int = 0
    """In RAM since then."""
    is_waiting: bool = False
    """A hint asked for it; it is to be loaded."""


class Explain(Call[ExplainReply], frozen=True):
    name: str
