"""Pieces: what sources are cut into, and how they become cubes, many at a time.

Owns what "the same" means. Invariant: what is there already as it should be is not written again;
a run that ends in the middle leaves whole pieces, and the next one completes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, TypedDict

import msgspec

from libmem.abi.calls import Call, SetHeader, WriteCube
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import ATTRIBUTES_MAX_BYTES
from libmem.abi.structs import Descriptive, Governance, Stat
from libmem.client import Client

__all__ = [
    "PROVENANCE",
    "Ingested",
    "Piece",
    "Place",
    "bounded",
    "change",
    "clean",
    "existing",
    "guests",
    "places",
    "put",
    "send",
]

PROVENANCE: Final = "provenance"
"""The attribute that lists where else a text was met; pieces of the same text share a cube."""
_PROVENANCE_MAX: Final = 1000
_PROVENANCE_MAX_BYTES: Final = ATTRIBUTES_MAX_BYTES // 2
"""Places beyond are left out. The rest is for whoever else has something to say of the cube."""

_BATCH_CALLS: Final = 256
_BATCH_BYTES: Final = 1 << 20
"""Far below what a message holds: others are served in between."""
_CALL_BYTES: Final = 512
"""About what a request takes beside its text."""


@dataclass(frozen=True)
class Ingested:
    """What came of it, in pieces; `skipped` counts files and duplicates that were left out."""

    written: int = 0
    folded: int = 0
    """Added to the provenance of a cube that was there."""
    unchanged: int = 0
    removed: int = 0
    skipped: int = 0
    bytes: int = 0
    """Of text, in what was written."""

    def __add__(self, other: "Ingested") -> "Ingested":
        return Ingested(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Piece(NamedTuple):
    """A memory to be."""

    name: str
    text: str
    descriptive: Descriptive
    attributes: dict[str, Any]

    @property
    def payload(self) -> bytes:
        return self.text.encode()

    @property
    def digest(self) -> bytes:
        return digest_of(self.payload)


class Place(TypedDict):
    """An entry of `provenance`: where a text was met, and what the cube would be called there."""

    name: str
    title: str
    origin: str
    session: str
    position: int
    event_time_ns: int


def clean(text: str) -> str:
    """The text as memosd takes it: no NUL, no half of a character; without the space around it."""
    text = text.strip()
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def existing(client: Client, folder: str) -> dict[str, Stat]:
    """What lies in a folder, by name."""
    try:
        return {stat.name: stat for stat in client.list(folder)}
    except MemError as error:
        if error.errno is not Errno.ENOENT:
            raise
    client.stat_namespace("/" + folder.split("/")[1])  # ENOENT where it is the namespace's
    return {}


def put(
    client: Client, pieces: Iterable[Piece], known: dict[str, Stat], rules: Governance | None = None
) -> Ingested:
    """Write what is missing or other than it was. Errors: as `write` and `set_header`."""
    done = Ingested()
    requests: list[Call[Any]] = []
    for piece in pieces:
        request = change(piece, known.get(piece.name), rules)
        if request is None:
            done += Ingested(unchanged=1)
            continue
        size_bytes = len(request.payload) if isinstance(request, WriteCube) else 0
        done += Ingested(written=1, bytes=size_bytes)
        requests.append(request)
    for result in send(client, requests):
        if isinstance(result, MemError):
            raise result
    return done


def change(piece: Piece, stat: Stat | None, rules: Governance | None) -> Call[Any] | None:
    """The request that makes the cube what the piece says; None where it is that."""
    if stat is None or stat.digest != piece.digest:
        return WriteCube(
            name=piece.name,
            payload=piece.payload,
            descriptive=piece.descriptive,
            governance=rules if stat is None else None,
            attributes=piece.attributes,
            expected_version=0 if stat is None else stat.version,
        )
    old = stat.descriptive
    # What was said of it since, that it ended above all, is no news to its source.
    descriptive = msgspec.structs.replace(
        piece.descriptive,
        valid_from_ns=old.valid_from_ns,
        valid_to_ns=old.valid_to_ns,
        superseded_by=old.superseded_by,
    )
    attributes = dict(piece.attributes)
    if entries := [*attributes.get(PROVENANCE, ()), *guests(stat, piece.descriptive.session)]:
        attributes[PROVENANCE] = bounded(entries)
    if descriptive == old and attributes == stat.attributes:
        return None
    return SetHeader(
        name=piece.name,
        descriptive=descriptive,
        attributes=attributes,
        expected_version=stat.version,
    )


def places(stat: Stat) -> list[Place] | None:
    """A cube's provenance; None where somebody else's attribute has its name."""
    try:
        return msgspec.convert(stat.attributes.get(PROVENANCE, []), list[Place])
    except msgspec.ValidationError:
        return None


def bounded(entries: Iterable[Place]) -> list[Place]:
    """A provenance as far as a header has room for it: its first entries."""
    kept: list[Place] = []
    room_bytes = _PROVENANCE_MAX_BYTES
    for entry in islice(entries, _PROVENANCE_MAX):
        room_bytes -= len(msgspec.msgpack.encode(entry))
        if room_bytes < 0:
            break
        kept.append(entry)
    return kept


def guests(stat: Stat, session: str) -> list[Place]:
    """The entries of a cube's provenance that come from other sources than `session`."""
    return [place for place in places(stat) or () if place["session"] != session]


def send(client: Client, requests: Sequence[Call[Any]], calls: int = _BATCH_CALLS) -> list[Any]:
    """Results in order, errors as values; at most so many calls in one message."""
    results: list[Any] = []
    for part in _messages(requests, client.session.call_by_value_bytes, calls):
        large = part[0]
        if isinstance(large, WriteCube) and len(part) == 1:
            results.append(_written(client, large))
        else:
            results += client.batch(part)
    return results


def _messages(
    requests: Sequence[Call[Any]], value_max_bytes: int, calls: int
) -> Iterator[list[Call[Any]]]:
    """Requests by the message; one that is too large to go by value, alone."""
    part: list[Call[Any]] = []
    part_bytes = 0
    for request in requests:
        size_bytes = len(request.payload) if isinstance(request, WriteCube) else 0
        if size_bytes > value_max_bytes:
            if part:
                yield part
            yield [request]
            part, part_bytes = [], 0
            continue
        size_bytes += _CALL_BYTES
        if isinstance(request, WriteCube | SetHeader) and request.attributes:
            size_bytes += len(msgspec.msgpack.encode(request.attributes))
        if len(part) >= calls or part_bytes + size_bytes > _BATCH_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(request)
        part_bytes += size_bytes
    if part:
        yield part


def _written(client: Client, request: WriteCube) -> Any:
    try:
        return client.write(
            request.name,
            request.payload,
            descriptive=request.descriptive,
            governance=request.governance,
            attributes=request.attributes,
            expected_version=request.expected_version,
        )
    except MemError as error:
        return error
