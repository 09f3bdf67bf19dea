"""Requests that look at many cubes: search, prefixes, watch, fsck."""

from libmem.abi.calls.base import Call
from libmem.abi.structs import CubeType, Event, Finding, Hit, Value

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


class Search(Call[SearchReply], frozen=True):
    query: str
    under: str = "/"
    k: int = 10
    types: tuple[CubeType, ...] = ()


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
