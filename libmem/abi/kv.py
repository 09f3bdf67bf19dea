"""KV caches as payloads: the header, and the one place that knows where each byte lies.

Owns the format of activation cubes of the kind `kv` (docs/format.md). A payload is

    token ids   u32 little endian, those stored here: tokens[start:]
    planes      for each layer: keys, then values; for each KV head one plane
                [capacity, dim], row-major, the first `tokens - start` rows in use

each part padded to whole pages of 4,096 bytes. Planes are whole pages so that a process can map
them one by one wherever it wants its rows, with room behind them that costs the cube nothing
(docs/design/0004-activation-memory.md). No model framework: the kernel, the drivers and the
clients all read this.
"""

import math
import re
import sys
from array import array
from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Value

__all__ = [
    "KV_ATTRIBUTE",
    "KV_CHAIN_MAX",
    "KV_PAGE_BYTES",
    "KV_TOKENS_MAX",
    "KvDtype",
    "KvForm",
    "KvHeader",
    "KvLayers",
    "KvStored",
    "Layout",
    "Plane",
    "TOKEN_BYTES",
    "digest_of_tokens",
    "fingerprint",
    "kv_header",
    "layout_of",
    "pack_tokens",
    "planes_of",
    "unpack_tokens",
]

KV_ATTRIBUTE: Final = "kv"
"""The attribute of an activation cube that holds its `KvHeader`."""
KV_PAGE_BYTES: Final = 4096
"""Alignment of every part of the payload: the page of a memory mapping on x86-64 and most arm64."""
KV_TOKENS_MAX: Final = 1 << 24
KV_CHAIN_MAX: Final = 16
"""Cubes that one cube may be made of: itself and those it stands on, one upon another."""
_LAYERS_MAX: Final = 4096
_HEADS_MAX: Final = 4096
_DIM_MAX: Final = 1 << 16
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
TOKEN_BYTES: Final = 4
"""A token id as it is stored and sent."""


class KvDtype(StrEnum):
    """Element type of keys and values; the names are torch's."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"

    @property
    def item_bytes(self) -> int:
        return {"float64": 8, "float32": 4}.get(self, 2)


class KvLayers(Value, frozen=True):
    """A run of `count` equal layers, one after another."""

    count: int
    heads: int
    """KV heads, not query heads."""
    key_dim: int
    value_dim: int
    window: int = 0
    """Tokens that a sliding-window layer looks back on; 0: full attention. All tokens are
    stored either way."""


class KvForm(StrEnum):
    """What the disk tier may keep of keys and values."""

    EXACT = "exact"
    """Every bit."""
    INT8 = "int8"
    """A byte for each element, and a peak for each channel of 64 rows: about a quarter of float32,
    half of bfloat16 (docs/format.md, "int8")."""


class KvStored(Value, frozen=True):
    """How the payload may lie on disk, where that is not the daemon's to decide."""

    form: KvForm = msgspec.field(name="as")
    error_max: float = 0.02
    """Above it the payload stays as it is. The error is relative: for each plane the RMS over its
    channels of (RMS of what is lost / RMS of the values), the largest over all planes. Every
    channel counts alike, so outlier channels hide nobody's loss."""


class KvHeader(Value, frozen=True):
    """What an activation cube's payload is: the attribute `kv`."""

    model: str
    """Fingerprint of the model that computed it: 64 hexadecimal digits (`libmem.hf`)."""
    dtype: KvDtype
    layers: tuple[KvLayers, ...]
    tokens: int
    """All tokens from position 0 on, those of the base included."""
    start: int = 0
    """The first token stored here. Where it is not 0, the cube stands on its first parent, which
    holds the tokens before; a multiple of the grain."""
    before: str = ""
    """Where `start` is not 0: the digest of the token ids before it (`digest_of_tokens`). Another
    text under the parent's name is no parent."""
    stored: KvStored | None = None
    """None: as the daemon is configured (`kv.store_as`)."""


class Plane(NamedTuple):
    """Rows of one KV head of one layer: keys or values."""

    layer: int
    is_value: bool
    head: int
    dim: int
    offset_bytes: int


class Layout(NamedTuple):
    """Where the parts of a payload lie."""

    grain_tokens: int
    """Tokens whose rows fill whole pages, in every plane."""
    capacity_tokens: int
    """Rows in a plane: the tokens stored here, rounded up to whole grains."""
    planes_offset_bytes: int
    size_bytes: int


def kv_header(attributes: dict[str, Any]) -> KvHeader:
    """The KV header among a cube's attributes, checked. Errors: EINVAL."""
    try:
        header = msgspec.convert(attributes[KV_ATTRIBUTE], KvHeader)
    except KeyError:
        raise MemError(
            Errno.EINVAL, f"an activation cube has the attribute {KV_ATTRIBUTE!r}"
        ) from None
    except (msgspec.ValidationError, RecursionError) as error:
        raise MemError(Errno.EINVAL, f"not a KV header: {error}") from None
    _check(header)
    return header


def fingerprint(model: str) -> bytes:
    """A model's fingerprint as 32 bytes. Errors: EINVAL."""
    if not _DIGEST.fullmatch(model):
        raise MemError(Errno.EINVAL, "a model fingerprint is 64 hexadecimal digits, in lower case")
    return bytes.fromhex(model)


def _check(header: KvHeader) -> None:
    fingerprint(header.model)
    if not header.layers or len(header.layers) > _LAYERS_MAX:
        raise MemError(Errno.EINVAL, f"a KV cache has 1 to {_LAYERS_MAX} runs of layers")
    for run in header.layers:
        if not (
            1 <= run.count <= _LAYERS_MAX
            and 1 <= run.heads <= _HEADS_MAX
            and 1 <= run.key_dim <= _DIM_MAX
            and 1 <= run.value_dim <= _DIM_MAX
            and 0 <= run.window <= KV_TOKENS_MAX
        ):
            raise MemError(Errno.EINVAL, f"no layers are like this: {run}")
    if sum(run.count for run in header.layers) > _LAYERS_MAX:
        raise MemError(Errno.EINVAL, f"a KV cache has at most {_LAYERS_MAX} layers")
    if not 0 <= header.start < header.tokens <= KV_TOKENS_MAX:
        raise MemError(Errno.EINVAL, f"tokens {header.start} to {header.tokens} are none")
    if header.start % _grain_tokens(header.dtype.item_bytes, _dims(header)):
        raise MemError(Errno.EINVAL, "a part starts at a whole page of every plane")
    if bool(header.start) != bool(_DIGEST.fullmatch(header.before)) or (
        not header.start and header.before
    ):
        raise MemError(Errno.EINVAL, "a part, and only a part, has the digest of what is before it")
    if header.stored is not None and not 0 < header.stored.error_max <= 1:
        raise MemError(Errno.EINVAL, "error_max is above 0, and 1 at most")


def _dims(header: KvHeader) -> frozenset[int]:
    return frozenset(dim for run in header.layers for dim in (run.key_dim, run.value_dim))


@lru_cache
def _grain_tokens(item_bytes: int, dims: frozenset[int]) -> int:
    rows = (dim * item_bytes for dim in dims)
    return math.lcm(*(KV_PAGE_BYTES // math.gcd(KV_PAGE_BYTES, row) for row in rows))


@lru_cache(maxsize=16)  # few: the largest header that passes takes half a megabyte
def layout_of(header: KvHeader) -> Layout:
    """Where the parts of this payload lie. Its size must be exactly `size_bytes`."""
    grain = _grain_tokens(header.dtype.item_bytes, _dims(header))
    stored = header.tokens - header.start
    capacity = -(-stored // grain) * grain
    offset = -(-stored * TOKEN_BYTES // KV_PAGE_BYTES) * KV_PAGE_BYTES
    row_bytes = sum(run.count * run.heads * (run.key_dim + run.value_dim) for run in header.layers)
    size = offset + row_bytes * header.dtype.item_bytes * capacity
    return Layout(grain, capacity, offset, size)


def planes_of(header: KvHeader) -> Iterator[Plane]:
    """Every plane, in the order of the payload."""
    layout = layout_of(header)
    offset, layer = layout.planes_offset_bytes, 0
    pitch = layout.capacity_tokens * header.dtype.item_bytes
    for run in header.layers:
        for _ in range(run.count):
            for is_value, dim in ((False, run.key_dim), (True, run.value_dim)):
                for head in range(run.heads):
                    yield Plane(layer, is_value, head, dim, offset)
                    offset += pitch * dim
            layer += 1


def digest_of_tokens(packed: bytes) -> str:
    """blake3 of packed token ids: 64 hexadecimal digits."""
    from blake3 import blake3  # here: few clients of all that import this need it

    return str(blake3(packed).hexdigest())


def pack_tokens(token_ids: Iterable[int]) -> bytes:
    """Token ids as they are stored and sent: u32, little endian. Errors: EINVAL."""
    try:
        # An iterator, or array() would take bytes for what is packed already.
        tokens = array("I", iter(token_ids))
    except (OverflowError, TypeError) as error:
        raise MemError(Errno.EINVAL, f"not token ids: {error}") from None
    return _little_endian(tokens).tobytes()


def unpack_tokens(packed: bytes | memoryview) -> list[int]:
    """The reverse. Errors: EINVAL."""
    if len(packed) % TOKEN_BYTES:
        raise MemError(Errno.EINVAL, "token ids are 4 bytes each")
    tokens = array("I")
    tokens.frombytes(packed)
    return _little_endian(tokens).tolist()


def _little_endian(tokens: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens
