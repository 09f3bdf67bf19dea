"""Lineage on the wire: what a memory was derived from, and what fell when a source changed.

A cube that carries the attribute `derivation` was made from its parents and says nothing without
them: a KV cache from a text, an adapter from facts, a summary. When a parent is changed,
superseded or removed, the kernel acts on the derived cube in the same commit. Parents without that
attribute only tell where something came from.
"""

from typing import Any, Final

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import TEXT_FIELD_MAX_BYTES
from libmem.abi.structs import CubeType, Value

__all__ = [
    "DERIVATION_ATTRIBUTE",
    "Derivation",
    "Fallen",
    "LineageEdge",
    "LineageNode",
    "Receipt",
    "derivation_of",
]

DERIVATION_ATTRIBUTE: Final = "derivation"
"""The attribute of a cube of any type that holds its `Derivation`."""


class Derivation(Value, frozen=True):
    """How a payload was made from the cube's parents."""

    recipe: str
    """`prefill`, `train`, `merge`, `summary`, ...: a transition, or the caller's own word."""
    settings: dict[str, Any] = {}
    """What it was made with."""
    quality: dict[str, float] = {}
    """What was measured of the result, by name."""


class Fallen(Value, frozen=True):
    """A derived version that is not to be used any more."""

    name: str
    id: bytes
    version: int
    type: CubeType
    is_removed: bool = False
    """It is gone; else it is kept, outdated, and handed out only to who asks for that."""


class Receipt(Value, frozen=True):
    """What fell with a change."""

    count: int
    """All that fell, those included that the caller may not read."""
    fallen: tuple[Fallen, ...] = ()
    """Those that the caller may read, the first RECEIPT_MAX of them."""


class LineageNode(Value, frozen=True):
    """A version of a cube in a graph of derivations."""

    id: bytes
    version: int
    name: str = ""
    """Empty where it is gone, or not for the caller to read."""
    type: CubeType | None = None
    recipe: str = ""
    """Of its derivation; empty where it was not derived."""
    outdated: str = ""
    """As in `Stat`."""


class LineageEdge(Value, frozen=True):
    """Places in the list of nodes: `child` was made from `parent`."""

    parent: int
    child: int


def derivation_of(attributes: dict[str, Any]) -> Derivation | None:
    """The derivation among a cube's attributes, checked. Errors: EINVAL."""
    if DERIVATION_ATTRIBUTE not in attributes:
        return None
    try:
        derivation = msgspec.convert(attributes[DERIVATION_ATTRIBUTE], Derivation)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MemError(Errno.EINVAL, f"not a derivation: {error}") from None
    if not 0 < len(derivation.recipe.encode()) <= TEXT_FIELD_MAX_BYTES:
        raise MemError(Errno.EINVAL, "a recipe is a word or some, not nothing and not a book")
    return derivation
