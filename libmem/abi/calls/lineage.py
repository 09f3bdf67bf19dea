"""Requests about what was derived from what."""

from libmem.abi.calls.base import Call
from libmem.abi.lineage import LineageEdge, LineageNode
from libmem.abi.structs import Value

__all__ = ["Lineage", "LineageReply"]


class LineageReply(Value, frozen=True):
    nodes: tuple[LineageNode, ...]
    """The cube that was asked for first; then what it was made from, then what was made from it."""
    edges: tuple[LineageEdge, ...] = ()
    is_cut: bool = False
    """There is more than LINEAGE_MAX nodes."""


class Lineage(Call[LineageReply], frozen=True):
    name: str
