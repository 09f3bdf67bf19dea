"""Requests about how memory is shared out: the policy, pins, what is hot, recorded accesses."""

from enum import StrEnum

from libmem.abi.calls.base import Call
from libmem.abi.structs import Value

__all__ = [
    "HotCube",
    "Hottest",
    "HottestReply",
    "ListPins",
    "ListPinsReply",
    "PinStat",
    "PolicyStat",
    "SetPolicy",
    "SetTrace",
    "TraceAction",
    "TraceStat",
]


class PolicyStat(Value, frozen=True):
    """The reclaim policy in charge of RAM, and how it did since it was put in charge."""

    name: str = ""
    known: tuple[str, ...] = ()
    """All that `set_policy` takes."""
    configured: str = ""
    """Which one the next start of the daemon takes."""
    since_ns: int = 0
    hits: int = 0
    """Uses that found the payload in RAM."""
    faults: int = 0
    """Uses, and hints, that had to bring it in."""
    evictions: int = 0


class SetPolicy(Call[PolicyStat], frozen=True):
    name: str


class TraceAction(StrEnum):
    """What to do about the recording of accesses."""

    START = "start"
    STOP = "stop"
    STATUS = "status"


class TraceStat(Value, frozen=True):
    """A recording of accesses, under way or the last one."""

    is_recording: bool
    path: str = ""
    since_ns: int = 0
    accesses: int = 0
    """Lines in the file, or on their way there."""
    size_bytes: int = 0
    max_bytes: int = 0
    dropped: int = 0
    """Accesses that came faster than the disk took them, and are not in the file."""
    problem: str = ""
    """Why it ended by itself, for people."""


class SetTrace(Call[TraceStat], frozen=True):
    action: TraceAction
    name: str = ""
    """Of the file in the folder `traces` of the data directory, a word of letters, digits, `-`,
    `_` and `.`; empty: the time."""
    max_bytes: int = 1 << 30
    """It ends by itself when the file has this size."""


class HotCube(Value, frozen=True):
    """A cube that is in use."""

    name: str
    id: bytes
    uses_per_s: float
    """Reads and mappings, an average over about a minute that forgets."""
    size_bytes: int
    tiers: tuple[str, ...] = ()
    reads: int = 0
    maps: int = 0
    faults: int = 0


class HottestReply(Value, frozen=True):
    cubes: tuple[HotCube, ...]
    """Hottest first."""


class Hottest(Call[HottestReply], frozen=True):
    limit: int = 10


class PinStat(Value, frozen=True):
    """Somebody's pin."""

    handle: int
    session: int
    uid: int
    pid: int
    client: str
    name: str
    """Of the cube; its id in hexadecimal where the caller may not read it, or it is gone."""
    pinned_bytes: int
    """What it keeps in RAM, with what the cube stands on."""
    since_ns: int


class ListPinsReply(Value, frozen=True):
    pins: tuple[PinStat, ...]
    """By handle, so by age."""
    next_after: int = 0
    """0 at the end; else pass it back as `after`."""


class ListPins(Call[ListPinsReply], frozen=True):
    after: int = 0
    limit: int = 1000
