"""Requests that make, read and change cubes."""

from typing import Any

from libmem.abi.calls.base import Call, Done
from libmem.abi.lineage import Receipt
from libmem.abi.structs import CubeType, Descriptive, Durability, Governance, Stat, Value

__all__ = [
    "AbortCube",
    "CreateCube",
    "CreateReply",
    "HistoryCube",
    "HistoryReply",
    "ReadCube",
    "ReadReply",
    "RenameCube",
    "RenameReply",
    "SealCube",
    "SetHeader",
    "StatCube",
    "UnlinkCube",
    "UnlinkReply",
    "WriteCube",
    "WriteReply",
]


class CreateReply(Value, frozen=True):
    """The descriptor of the writable memory arrives on the fd socket, tagged with `handle`."""

    handle: int
    size_bytes: int


class CreateCube(Call[CreateReply], frozen=True):
    name: str
    size_bytes: int
    type: CubeType = CubeType.BLOB
    descriptive: Descriptive = Descriptive()
    governance: Governance | None = None
    attributes: dict[str, Any] = {}
    parents: tuple[str, ...] = ()
    expected_version: int | None = None
    """None: whatever is there. 0: nothing may be there. N: exactly version N."""
    durability: Durability | None = None
    """None: the type's own default."""
    supersedes: tuple[str, ...] = ()
    """Cubes that are valid no longer than this one's `valid_from_ns`, or this moment."""


class WriteReply(Value, frozen=True):
    id: bytes
    version: int
    digest: bytes
    receipt: Receipt | None = None
    """What was derived from the version before, and fell; None: nothing."""


class SealCube(Call[WriteReply], frozen=True):
    handle: int
    size_bytes: int | None = None
    """Shorter than what was asked for in `create_cube`: the rest is given back."""


class AbortCube(Call[Done], frozen=True):
    handle: int


class WriteCube(Call[WriteReply], frozen=True):
    name: str
    payload: bytes
    type: CubeType = CubeType.PLAINTEXT
    descriptive: Descriptive = Descriptive()
    governance: Governance | None = None
    attributes: dict[str, Any] = {}
    parents: tuple[str, ...] = ()
    expected_version: int | None = None
    durability: Durability | None = None
    supersedes: tuple[str, ...] = ()


class ReadReply(Value, frozen=True):
    payload: bytes
    version: int
    size_bytes: int
    """Of the whole payload; more is left when offset + len(payload) is less."""


class ReadCube(Call[ReadReply], frozen=True):
    name: str
    offset_bytes: int = 0
    length_bytes: int | None = None
    """None: to the end, which must not be more than READ_MAX_BYTES away."""
    allow_outdated: bool = False
    """Read a derived cube though a source of it is not so any more."""


class StatCube(Call[Stat], frozen=True):
    name: str


class HistoryReply(Value, frozen=True):
    versions: tuple[Stat, ...]


class HistoryCube(Call[HistoryReply], frozen=True):
    name: str
    limit: int = 100


class RenameReply(Value, frozen=True):
    version: int


class RenameCube(Call[RenameReply], frozen=True):
    name: str
    new_name: str
    expected_version: int | None = None


class UnlinkReply(Value, frozen=True):
    freed_bytes: int
    versions: int
    dependents: int = 0
    """Other cubes that stood on what went, directly or not: they went too, or their versions that
    did so. Their bytes are not in `freed_bytes`."""
    receipt: Receipt | None = None
    """What was derived from it, and fell; None: nothing."""


class UnlinkCube(Call[UnlinkReply], frozen=True):
    """Of a cube whose own rows are damaged (ECORRUPT) the administrator removes what is left.

    What it was charged comes back with the last damaged cube of its namespace. EBUSY: a large
    namespace is being written to, so that it cannot be added up.
    """

    name: str
    """With `@vN`: that old version only; the current one cannot go alone."""
    expected_version: int | None = None


class SetHeader(Call[WriteReply], frozen=True):
    """Each group given replaces the old one whole; None keeps it. Makes a new version.

    A header that promises more of the payload than the old one (plaintext that is to be JSON) has
    it checked: EILSEQ where it is something else. What is no small payload comes into RAM for that.
    """

    name: str
    descriptive: Descriptive | None = None
    governance: Governance | None = None
    attributes: dict[str, Any] | None = None
    expected_version: int | None = None
