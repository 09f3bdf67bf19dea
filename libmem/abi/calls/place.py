"""Requests about where payloads are: mapping, pinning, hints, eviction, explanation."""

from typing import Any

from libmem.abi.calls.base import Call, Done
from libmem.abi.structs import Advice, CubeType, Decision, Stat, TierName, Value

__all__ = [
    "AdviseCube",
    "Evict",
    "EvictReply",
    "Explain",
    "ExplainReply",
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


class MunmapCube(Call[Done], frozen=True):
    handle: int


class PinReply(Value, frozen=True):
    handle: int


class PinCube(Call[PinReply], frozen=True):
    name: str


class UnpinCube(Call[Done], frozen=True):
    handle: int


class AdviseCube(Call[Done], frozen=True):
    name: str
    advice: Advice


class EvictReply(Value, frozen=True):
    freed_bytes: int


class Evict(Call[EvictReply], frozen=True):
    name: str


class MigrateReply(Value, frozen=True):
    tiers: tuple[str, ...]


class MigrateCube(Call[MigrateReply], frozen=True):
    name: str
    tier: TierName


class ExplainReply(Value, frozen=True):
    stat: Stat
    residency: str
    decisions: tuple[Decision, ...]


class Explain(Call[ExplainReply], frozen=True):
    name: str
