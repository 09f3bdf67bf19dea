"""Requests that look at many cubes: search, prefixes, watch, fsck."""

from libmem.abi.calls.base import Call
from libmem.abi.structs import CubeType, Event, Finding, Hit, SearchMode, Understood, Value

__all__ = [
    "FindPrefix",
    "Fsck",
    "FsckReply",
    "PrefixReply",
    "Search",
    "SearchReply",
    "Watch",
    "WatchReply",
]


class SearchReply(Value, frozen=True):
    hits: tuple[Hit, ...]
    understood: Understood | None = None
    notice: str = ""
    """What the ranking had to do without, for people: `ranked by words alone: ...`."""


class Search(Call[SearchReply], frozen=True):
    query: str
    under: str = "/"
    k: int = 10
    types: tuple[CubeType, ...] = ()
    mode: SearchMode = SearchMode.HYBRID
    semantic_types: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    event_from_ns: int = 0
    event_to_ns: int = 0
    """Only what happened in between, both ends included; 0: no end. With either, memories without
    an event time are left out."""
    as_of_ns: int = 0
    """Only what was valid at this time; 0: now; -1: whatever was ever valid."""
    now_ns: int = 0
    """From when `last May` or `yesterday` count; 0: from the newest event time that is searched."""
    budget_tokens: int = 0
    """As many of the best as fit, in about so many tokens of a language model; `k` still holds."""
    beside: int = 0
    """Passages to show before and after each hit; of all hits a million characters together, so
    that of many only the best have theirs."""
    recency: float = 0.0
    """What a memory of this moment gains over an old one; a perfect match is 1.0."""
    half_life_s: float = 2_592_000.0
    """The age at which half of that is left: 30 days."""
    importance: float = 0.0
    """What priority 100 gains over priority 0."""
    wait_ms: int = 2000
    """How long to wait for the query's vector; after that words alone decide."""


class PrefixReply(Value, frozen=True):
    """`tokens` is 0 and `name` empty where no cube begins as the prompt does."""

    name: str = ""
    """With its version: `/ns/path@v1`."""
    tokens: int = 0
    """Shared with the prompt, from position 0 on."""
    cube_tokens: int = 0
    """All that the cube has."""


class FindPrefix(Call[PrefixReply], frozen=True):
    model: str
    """Fingerprint: 64 hexadecimal digits."""
    tokens: bytes
    """The prompt's token ids: u32, little endian."""
    under: str = "/"


class WatchReply(Value, frozen=True):
    events: tuple[Event, ...]
    next_seq: int
    """Pass it as `since_seq` next time; nothing is missed between two calls."""


class Watch(Call[WatchReply], frozen=True):
    under: str = "/"
    since_seq: int | None = None
    """None: from now on. Older than the retained log: ESTALE, list again."""
    max_events: int = 100
    timeout_ms: int = 0


class FsckReply(Value, frozen=True):
    checked: int
    findings: tuple[Finding, ...]
    next_cursor: str = ""


class Fsck(Call[FsckReply], frozen=True):
    cursor: str = ""
    limit: int = 100
    repair: bool = False
    """Quarantine what is broken, so that it is never served."""
