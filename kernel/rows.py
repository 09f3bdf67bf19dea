"""Rows as they lie in the store, and the seal that tells a good one from a damaged one.

A value is `xxh3-64(key + body)` (8 bytes, big endian) and then the body, a msgpack array. The
key is part of the checksum, so a row that strayed to another key is as bad as a flipped bit.
Fields are only ever appended, with defaults; docs/format.md lists them.

    meta        name              -> bytes (no msgpack)
    namespaces  u32 id            -> NamespaceRow
    names       name              -> cube id
    cubes       cube id           -> CubeRow, its current version inside
    history     cube id, version  -> VersionRow of an older version
    payloads    payload id        -> a small payload itself (checked by its digest, not sealed)
    pages       payload id        -> cube id: a payload that has, or will have, a page file;
                                     then, if that holds another form of it, a FormRow
    volatile    payload id        -> cube id: a cache payload that is in RAM only
    kept        payload id        -> cube id: a cache payload that lies on disk
    quarantine  payload id        -> the problem, as text
    expiry      time ns, cube id  -> empty
    log         u64 last, first   -> LogRow: the events of a commit, by their numbers
    heat        cube id           -> HeatRow, written now and then
    prefixes    payload id        -> PrefixRow of a payload that begins with tokens
    derived     payload id        -> DerivedRow of a payload that was made from others
    edges       payload id, derived payload id -> empty: the same, from the source on
    outdated    payload id        -> why a derived payload is not to be used, as text
    control     path              -> GroupRow of a control group that was given limits
    costs       what, as text     -> CostRow: what was measured of it, written now and then
"""

from typing import Any, Final, TypeVar

import msgspec
import xxhash

from libmem.abi.control import Limits
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import (
    CubeType,
    Decision,
    Descriptive,
    Durability,
    EventKind,
    Quota,
    Sensitivity,
    StoredForm,
    Usage,
)

__all__ = [
    "FORMAT_VERSION",
    "TABLES",
    "CostRow",
    "CubeRow",
    "DerivedRow",
    "EventRow",
    "FormRow",
    "GroupRow",
    "HeatRow",
    "LogRow",
    "NamespaceRow",
    "PrefixRow",
    "VersionRow",
    "decode_page",
    "decode_row",
    "encode_page",
    "encode_row",
    "seal_value",
    "unseal_value",
    "version_key",
]

FORMAT_VERSION: Final = 1
TABLES: Final = (
    "meta",
    "namespaces",
    "names",
    "cubes",
    "history",
    "payloads",
    "pages",
    "volatile",
    "kept",
    "quarantine",
    "expiry",
    "log",
    "heat",
    "prefixes",
    "derived",
    "edges",
    "outdated",
    "control",
    "costs",
)
_CHECKSUM_BYTES: Final = 8
_ID_BYTES: Final = 16


class Row(msgspec.Struct, array_like=True):
    """Base of stored rows: positional, compact, fields only appended."""


class VersionRow(Row):
    """One immutable version."""

    version: int
    payload_id: bytes
    """A header change makes a version that shares the payload of the one before."""
    size_bytes: int
    digest: bytes
    is_inline: bool
    """The payload is a row of `payloads`; else a page file."""
    created_ns: int
    author_uid: int
    descriptive: Descriptive
    attributes: dict[str, Any]
    parents: tuple[tuple[bytes, int], ...]


class CubeRow(Row):
    """A cube with its current version."""

    name: str
    namespace: int
    type: CubeType
    durability: Durability
    uid: int
    gid: int
    mode: int
    priority: int
    expires_ns: int
    sensitivity: Sensitivity
    created_ns: int
    last_version: int
    """The highest number ever given; numbers are not used twice."""
    current: VersionRow
    half_life_s: float = 0.0


class NamespaceRow(Row):
    """A namespace and what it holds."""

    name: str
    uid: int
    gid: int
    mode: int
    created_ns: int
    quota: Quota
    usage: Usage
    """disk_bytes and cubes; RAM is counted in memory only."""


class GroupRow(Row):
    """What a control group is granted."""

    number: int
    namespace: int
    """The number of the namespace it lies in; 0: of all."""
    limits: Limits
    """A namespace's `max` of RAM and disk is its quota, and 0 here."""
    disk_bytes: int = 0
    """Of a folder: what lies in it."""
    is_counted: bool = True
    """False while that is still being added up."""


class FormRow(Row):
    """What a page file holds instead of the payload as it was committed: a `StoredForm`."""

    form: str
    size_bytes: int
    digest: bytes
    """Of the file's content, encoded."""
    error: float
    content_digest: bytes
    """Of what decoding it gives."""


class EventRow(Row):
    """An event with what is needed to decide who may see it."""

    time_ns: int
    kind: EventKind
    name: str
    id: bytes
    version: int
    actor_uid: int
    old_name: str
    owner_uid: int
    owner_gid: int
    mode: int
    namespace: int


class LogRow(Row):
    """Events of one commit, in order."""

    events: tuple[EventRow, ...]


class HeatRow(Row):
    """What was observed of a cube, and the latest decisions about it, oldest first."""

    reads: int = 0
    maps: int = 0
    faults: int = 0
    evictions: int = 0
    last_access_ns: int = 0
    decisions: tuple[Decision, ...] = ()


class PrefixRow(Row):
    """The tokens of a payload that is the state of a model after them."""

    cube_id: bytes
    model: bytes
    """Fingerprint, 32 bytes."""
    start: int
    """The first token stored in this payload; those before are the base's."""
    tokens: bytes
    """From `start` on; u32, little endian."""
    base: bytes
    """The payload id it stands on; empty: none."""


class DerivedRow(Row):
    """What a payload was made from."""

    cube_id: bytes
    sources: tuple[tuple[bytes, bytes], ...]
    """(payload id, cube id) of its parents, and of all that these were made from."""


class CostRow(Row):
    """What is kept of the measurements of one cost: a `kernel.fits.Fit`."""

    gram: list[float]
    """Normal equations in units of the prior: sums of products, row by row ..."""
    moment: list[float]
    """... and the right-hand sides."""
    weight: float = 0.0
    log_sum: float = 0.0
    """Sum of the logarithms of (measured / prior)."""
    side: int = 0
    """The last one was far above (1) or far below (-1) what was expected."""
    samples: int = 0
    observed_ns: int = 0


RowT = TypeVar("RowT", bound=Row)
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Row], msgspec.msgpack.Decoder[Any]] = {
    row: msgspec.msgpack.Decoder(row)
    for row in (
        CubeRow,
        VersionRow,
        NamespaceRow,
        GroupRow,
        FormRow,
        LogRow,
        HeatRow,
        PrefixRow,
        DerivedRow,
        CostRow,
    )
}


def seal_value(key: bytes, body: bytes) -> bytes:
    return xxhash.xxh3_64_digest(key + body) + body


def unseal_value(table: str, key: bytes, value: bytes) -> bytes:
    """Errors: ECORRUPT."""
    body = value[_CHECKSUM_BYTES:]
    if xxhash.xxh3_64_digest(key + body) != value[:_CHECKSUM_BYTES]:
        raise MemError(
            Errno.ECORRUPT, f"a row of {table} does not match its checksum", key=key.hex()
        )
    return body


def encode_row(key: bytes, row: Row) -> bytes:
    return seal_value(key, _encoder.encode(row))


def decode_row(row: type[RowT], table: str, key: bytes, value: bytes) -> RowT:
    """Errors: ECORRUPT."""
    return _decoded(row, table, key, unseal_value(table, key, value))


def _decoded(row: type[RowT], table: str, key: bytes, body: bytes) -> RowT:
    try:
        decoded: RowT = _decoders[row].decode(body)
    except msgspec.DecodeError as error:
        raise MemError(
            Errno.ECORRUPT, f"a row of {table} cannot be read: {error}", key=key.hex()
        ) from None
    return decoded


def encode_page(key: bytes, cube_id: bytes, form: StoredForm | None) -> bytes:
    """A value of `pages`."""
    row = b"" if form is None else _encoder.encode(FormRow(*msgspec.structs.astuple(form)))
    return seal_value(key, cube_id + row)


def decode_page(key: bytes, value: bytes) -> tuple[bytes, StoredForm | None]:
    """Cube id and form. Errors: ECORRUPT."""
    body = unseal_value("pages", key, value)
    cube_id, row = body[:_ID_BYTES], body[_ID_BYTES:]
    if not row:
        return cube_id, None
    return cube_id, StoredForm(*msgspec.structs.astuple(_decoded(FormRow, "pages", key, row)))


def version_key(cube_id: bytes, version: int) -> bytes:
    return cube_id + version.to_bytes(4, "big")
