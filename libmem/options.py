"""The optional fields of requests, as keywords of the operations that send them.

One TypedDict for each set; their defaults are the request's own. Used by `operations` and by those
who pass options on.
"""

from typing import Any, TypedDict

from libmem.abi.structs import CubeType, Descriptive, Durability, Governance, SearchMode

__all__ = ["CubeOptions", "HeaderGroups", "SearchOptions"]


class CubeOptions(TypedDict, total=False):
    """The optional fields of `WriteCube` and `CreateCube`."""

    type: CubeType
    descriptive: Descriptive
    governance: Governance | None
    attributes: dict[str, Any]
    parents: tuple[str, ...]
    expected_version: int | None
    durability: Durability | None
    supersedes: tuple[str, ...]


class HeaderGroups(TypedDict, total=False):
    """The optional fields of `SetHeader`."""

    descriptive: Descriptive | None
    governance: Governance | None
    attributes: dict[str, Any] | None
    expected_version: int | None


class SearchOptions(TypedDict, total=False):
    """The optional fields of `Search`."""

    under: str
    k: int
    types: tuple[CubeType, ...]
    mode: SearchMode
    semantic_types: tuple[str, ...]
    producers: tuple[str, ...]
    sessions: tuple[str, ...]
    event_from_ns: int
    event_to_ns: int
    as_of_ns: int
    now_ns: int
    budget_tokens: int
    beside: int
    recency: float
    half_life_s: float
    importance: float
    wait_ms: int
