"""What kernel and index drivers hand each other: documents in, hits out.

Owned by the contract because both sides build these and neither imports the other. They never
travel on the wire; a client sees `structs.Hit`.
"""

from typing import NamedTuple

__all__ = ["HIT_END", "HIT_START", "IndexDocument", "IndexHit"]

HIT_START = "\x02"
HIT_END = "\x03"
"""A snippet's matched words stand between these. An index drops them from the source text."""


class IndexDocument(NamedTuple):
    """A cube as the index sees it."""

    namespace: int
    id: bytes
    version: int
    name: str
    text: str


class IndexHit(NamedTuple):
    """A candidate; the kernel checks it against the table and the caller's rights."""

    id: bytes
    version: int
    score: float
    """BM25, larger is better; comparable within one namespace only."""
    snippet: str
