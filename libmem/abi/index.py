"""What kernel and index drivers hand each other: documents in, questions, hits out.

Owned by the contract because both sides build these and neither imports the other. They never
travel on the wire; a client sees `structs.Hit`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from libmem.abi.structs import CubeType, SearchMode

__all__ = [
    "HIT_END",
    "HIT_START",
    "IndexBeside",
    "IndexCounts",
    "IndexDocument",
    "IndexFacets",
    "IndexFilter",
    "IndexHit",
    "IndexPassage",
    "IndexQuestion",
    "IndexVectors",
    "IndexWeights",
]

HIT_START = "\x02"
HIT_END = "\x03"
"""A snippet's matched words stand between these. An index drops them from the source text."""


class IndexFacets(NamedTuple):
    """What an index knows of a cube beside its text; named as in its header."""

    owner: tuple[int, int] = (0, 0)
    """uid, gid."""
    mode: int = 0o600
    type: CubeType = CubeType.PLAINTEXT
    semantic_type: str = ""
    producer: str = ""
    session: str = ""
    position: int = 0
    event_time_ns: int = 0
    valid_from_ns: int = 0
    valid_to_ns: int = 0
    written_ns: int = 0
    priority: int = 50


class IndexDocument(NamedTuple):
    """A cube as the index sees it."""

    namespace: int
    id: bytes
    version: int
    name: str
    text: str
    facets: IndexFacets = IndexFacets()


class IndexFilter(NamedTuple):
    """What a hit must be; empty or 0: anything."""

    types: tuple[CubeType, ...] = ()
    semantic_types: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    event_from_ns: int = 0
    event_to_ns: int = 0
    valid_at_ns: int = 0
    """Valid at this time; 0: whenever."""


class IndexWeights(NamedTuple):
    """What counts beside the question itself; a perfect match is 1.0."""

    recency: float = 0.0
    half_life_ns: int = 1
    importance: float = 0.0
    at_ns: int = 0
    """From when the age of a memory counts."""


class IndexQuestion(NamedTuple):
    """A search."""

    query: str
    spaces: Mapping[int, str]
    """Namespace -> the subtree that names must lie in (itself and below); "" for all of it."""
    limit: int
    """Cubes."""
    may_read: Callable[[tuple[int, int], int], bool] = lambda _owner, _mode: True
    """(owner, mode) -> may the caller read such a cube? What it may not leaves no trace."""
    mode: SearchMode = SearchMode.HYBRID
    filter: IndexFilter = IndexFilter()
    weights: IndexWeights = IndexWeights()
    now_ns: int = 0
    """From when relative dates count; 0: from the newest event time that is searched."""
    beside: int = 0
    """Passages wanted before and after each hit."""


class IndexVectors(NamedTuple):
    """Unit vectors of one text: float32, little endian, [rows, dimensions]; the whole, then its
    sentences."""

    model: str
    """Fingerprint of the embedder."""
    dimensions: int
    values: bytes


class IndexPassage(NamedTuple):
    """A passage that waits for its vectors."""

    number: int
    """Never given to another text."""
    namespace: int
    text: str


class IndexCounts(NamedTuple):
    """How much there is."""

    passages: int = 0
    waiting: int = 0
    """Without vectors of `model`."""
    model: str = ""


class IndexBeside(NamedTuple):
    """A passage beside a hit."""

    id: bytes
    distance: int
    text: str
    producer: str


class IndexHit(NamedTuple):
    """A candidate; the kernel checks it against the table and the caller's rights."""

    id: bytes
    version: int
    score: float
    """Larger is better; comparable within one search only."""
    snippet: str
    signals: Mapping[str, float] = {}
    passage: str = ""
    """The text that ranked, whole."""
    beside: tuple[IndexBeside, ...] = ()
