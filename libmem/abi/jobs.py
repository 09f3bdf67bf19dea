"""What the kernel asks of a worker process: classes of jobs, and their bodies on the wire.

Owned by the contract because the kernel makes these, a worker answers them, and neither imports
the other. A body is one of these structs in msgpack, inside `JobReply.body` and `FinishJob.body`.
"""

from enum import StrEnum

from libmem.abi.structs import Value
from libmem.abi.transitions import Recipe

__all__ = [
    "DropRequest",
    "EmbedRequest",
    "EmbedResult",
    "JobClass",
    "LoadRequest",
    "LoadResult",
    "TransmuteRequest",
    "TransmuteResult",
]


class JobClass(StrEnum):
    """What a job is, and before which others it goes: the first row goes first."""

    QUERY = "query"
    """A vector that somebody waits for. EmbedRequest -> EmbedResult."""
    EMBED = "embed"
    """Vectors of stored passages, in the background. EmbedRequest -> EmbedResult."""
    DROP = "drop"
    """Frames on the device that are not needed any more. DropRequest -> nothing."""
    LOAD = "load"
    """A payload's copy on the device, from and to the memory of `map_job`. LoadRequest ->
    LoadResult."""
    TRANSMUTE = "transmute"
    """A memory's change of type. TransmuteRequest -> TransmuteResult."""


class EmbedRequest(Value, frozen=True):
    """Texts to be embedded; any length, what exceeds the model's window is cut off."""

    texts: tuple[str, ...]
    has_pieces: bool = True
    """Sentences too; a query needs the whole alone."""


class EmbedResult(Value, frozen=True):
    """Unit vectors.

    Shape: `vectors` are float32, little endian, [rows, dimensions]; of each text the whole first,
    then its sentences; `pieces` says how many sentences each text has (0: it is one itself).
    """

    model: str
    """Fingerprint of the embedder: 64 hexadecimal digits. Vectors of two are not comparable."""
    dimensions: int
    pieces: tuple[int, ...]
    vectors: bytes


class LoadRequest(Value, frozen=True):
    """Copy a payload to the device and keep it under its key."""

    key: bytes
    size_bytes: int


class LoadResult(Value, frozen=True):
    """What it takes to open the copy in another process."""

    opening: bytes = b""
    """Of torch's reductions, see `libmem.device`; empty where the memory is the host's."""


class DropRequest(Value, frozen=True):
    """Keys to forget; unknown ones are no error."""

    keys: tuple[bytes, ...]


class TransmuteRequest(Value, frozen=True):
    """Make one cube of others, as the user who asked: with a session that `hello` opens for this
    transition."""

    number: int
    """The transition's."""
    name: str
    sources: tuple[str, ...]
    """With their versions."""
    recipe: Recipe


class TransmuteResult(Value, frozen=True):
    """What was committed."""

    version: int
