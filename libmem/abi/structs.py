"""The values that syscalls carry: headers, stats, events, hits.

Plain immutable data, no behaviour. Encoded as msgpack maps; unknown fields are refused, absent
ones take their defaults, so fields may be added at the end without breaking an older client's
requests.
"""

from enum import StrEnum
from typing import Any

import msgspec

__all__ = [
    "Advice",
    "Beside",
    "Behaviour",
    "CubeType",
    "Decision",
    "Descriptive",
    "Durability",
    "Event",
    "EventKind",
    "Finding",
    "Governance",
    "Hit",
    "NamespaceStat",
    "Quota",
    "SearchMode",
    "Sensitivity",
    "Stat",
    "StoredForm",
    "TierName",
    "Understood",
    "Usage",
]


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every struct on the wire."""


class CubeType(StrEnum):
    """What a payload is, and so which driver answers for it."""

    PLAINTEXT = "plaintext"
    BLOB = "blob"
    ACTIVATION = "activation"
    PARAMETRIC = "parametric"


class Durability(StrEnum):
    """`durable`: on disk before the reply. `cache`: written back later; lost at worst."""

    DURABLE = "durable"
    CACHE = "cache"


class TierName(StrEnum):
    """Where a payload may lie; small ones are part of the table, which is on disk."""

    RAM = "ram"
    DISK = "disk"
    DEVICE = "device"
    """An accelerator's memory; what lies there is also in one of the others."""


class Advice(StrEnum):
    """As madvise(2): what the caller means to do with a cube."""

    WILLNEED = "willneed"
    DONTNEED = "dontneed"
    COLD = "cold"
    SEQUENTIAL = "sequential"


class SearchMode(StrEnum):
    """By what a search ranks."""

    HYBRID = "hybrid"
    """Words, meaning, and what is known of each memory; docs/recall.md."""
    WORDS = "words"
    """BM25 of the query's words alone."""
    MEANING = "meaning"
    """The cosine of the query's vector and a passage's alone."""


class Sensitivity(StrEnum):
    """How carefully a memory is to be handled; recorded and shown, for policies to act on."""

    PUBLIC = "public"
    INTERNAL = "internal"
    PRIVATE = "private"
    SECRET = "secret"


class Descriptive(Value, frozen=True):
    """What the memory is about (the paper's descriptive group). Times in ns since the epoch."""

    title: str = ""
    semantic_type: str = ""
    """fact, preference, episode, document, ...; free text."""
    origin: str = ""
    """Where it came from: a file, a conversation, a program."""
    producer: str = ""
    """Who said or made it."""
    media_type: str = ""
    """`text/plain` or `application/json` for plaintext."""
    event_time_ns: int = 0
    valid_from_ns: int = 0
    valid_to_ns: int = 0
    """From this time on it no longer holds; 0: it still does."""
    tags: tuple[str, ...] = ()
    session: str = ""
    """The conversation, document or file that it is a piece of, one of its namespace's."""
    position: int = 0
    """Its place in there: the pieces at `position - 1` and `position + 1` stand beside it."""
    superseded_by: str = ""
    """Id, in hexadecimal, of the cube that took its place; the kernel writes it."""


class Governance(Value, frozen=True):
    """Who may do what, for how long (the paper's governance group)."""

    mode: int = 0o600
    """Permission bits as in a file system: owner, group, others; read 4, write 2."""
    owner_uid: int = -1
    """-1: the caller."""
    owner_gid: int = -1
    expires_ns: int = 0
    """Unlinked after this time, ns since the epoch; 0 never."""
    priority: int = 50
    sensitivity: Sensitivity = Sensitivity.INTERNAL
    half_life_s: float = 0.0
    """To who makes room its worth halves with every so many seconds in which it is not used, 0.001
    to 1e9; 0: it ages with the uses of others, as most do."""


class Behaviour(Value, frozen=True):
    """What the kernel observed (the paper's behavioural group); written back lazily."""

    reads: int = 0
    maps: int = 0
    faults: int = 0
    evictions: int = 0
    last_access_ns: int = 0


class StoredForm(Value, frozen=True):
    """How a payload lies on disk, where that is not as it was committed."""

    form: str
    """`int8`."""
    size_bytes: int
    digest: bytes
    """Of the stored bytes, which are checked against it before they are decoded."""
    error: float
    """What decoding gives differs so much from what was committed; `KvStored.error_max` says
    how that is measured."""
    content_digest: bytes
    """Of what decoding gives: what is mapped and read once the payload came from disk."""


class Stat(Value, frozen=True):
    """All that is known of one version of a cube."""

    name: str
    id: bytes
    type: CubeType
    version: int
    latest_version: int
    size_bytes: int
    digest: bytes
    """xxh3-128 of the payload as it was committed: the cube's fingerprint."""
    created_ns: int
    modified_ns: int
    descriptive: Descriptive
    governance: Governance
    behaviour: Behaviour
    durability: Durability
    tiers: tuple[str, ...] = ()
    """Where the payload is now: any of ram, disk."""
    parents: tuple[str, ...] = ()
    attributes: dict[str, Any] = {}
    pins: int = 0
    maps: int = 0
    is_quarantined: bool = False
    stored: StoredForm | None = None
    """None: on disk, as in RAM, every byte is as it was committed."""
    outdated: str = ""
    """Why a derived cube is not to be used: what became of a source. Empty: it may be."""


class Quota(Value, frozen=True):
    """Ceilings of one namespace; 0 means none."""

    disk_bytes: int = 0
    ram_bytes: int = 0
    cubes: int = 0


class Usage(Value, frozen=True):
    """What a namespace holds now."""

    disk_bytes: int = 0
    ram_bytes: int = 0
    cubes: int = 0


class NamespaceStat(Value, frozen=True):
    """One namespace."""

    name: str
    owner_uid: int
    owner_gid: int
    mode: int
    created_ns: int
    quota: Quota
    usage: Usage


class EventKind(StrEnum):
    """What happened to a cube or a namespace."""

    WRITE = "write"
    HEADER = "header"
    RENAME = "rename"
    UNLINK = "unlink"
    PRUNE = "prune"
    """An old version was removed; the cube stays."""
    EXPIRE = "expire"
    LOSE = "lose"
    """A cache payload was given up before it was on disk, or went with what it stood on; older
    versions stay."""
    FALL = "fall"
    """It was derived from something that is not so any more, and is gone, or its latest version."""
    OUTDATE = "outdate"
    """The same, but it is kept, marked as outdated."""
    QUARANTINE = "quarantine"
    NAMESPACE = "namespace"


class Event(Value, frozen=True):
    """One row of the durable log, in commit order."""

    seq: int
    time_ns: int
    kind: EventKind
    name: str
    id: bytes = b""
    version: int = 0
    uid: int = 0
    old_name: str = ""


class Decision(Value, frozen=True):
    """Why the kernel moved, kept or dropped something, and on which numbers."""

    time_ns: int
    action: str
    reason: str
    numbers: dict[str, int | float | str] = {}


class Beside(Value, frozen=True):
    """A passage next to a hit: of the same cube, or of its neighbour in the session."""

    name: str
    distance: int
    """-1: right before the hit; 1: right after it."""
    text: str
    producer: str = ""


class Hit(Value, frozen=True):
    """One search result."""

    name: str
    id: bytes
    version: int
    score: float
    rank: int
    snippet: str = ""
    """A passage around the matched words, which stand between U+0002 and U+0003."""
    signals: dict[str, float] = {}
    """What the score was made of, e.g. {"bm25": 7.3}; docs/recall.md says what each means."""
    tokens: int = 0
    """About how many tokens of a language model its passage and those beside it take."""
    beside: tuple[Beside, ...] = ()
    """The passages around it in order, where the request asked for them."""


class Understood(Value, frozen=True):
    """What of a query was taken for more than words."""

    text: str
    """What was looked for by its words and its meaning."""
    producers: tuple[str, ...] = ()
    """Whom the query names."""
    days: tuple[tuple[int, int], ...] = ()
    """Spans of time that it names: first and last ns since the epoch, inclusive."""


class Finding(Value, frozen=True):
    """Something `fsck` saw."""

    name: str
    id: bytes
    version: int
    problem: str
    action: str = ""
