"""KV caches made by hand, for tests of what carries and stores them."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from libmem.abi.kv import (
    KvDtype,
    KvForm,
    KvHeader,
    KvLayers,
    KvStored,
    digest_of_tokens,
    layout_of,
    pack_tokens,
    planes_of,
)

__all__ = [
    "INT8",
    "MODEL",
    "Array",
    "attributes_of",
    "digest_before",
    "header_of",
    "narrowed",
    "part_of",
    "payload_of",
    "planes",
    "wavy",
]

Array = NDArray[Any]
MODEL = "ab" * 32
INT8 = KvStored(KvForm.INT8)
_TYPES = {KvDtype.FLOAT32: "<f4", KvDtype.FLOAT16: "<f2", KvDtype.FLOAT64: "<f8"}


def header_of(
    tokens: int, stored: KvStored | None = INT8, dtype: KvDtype = KvDtype.FLOAT32, **layers: int
) -> KvHeader:
    """Two layers of one head of 64 and 64, unless `layers` says otherwise."""
    run = {"count": 2, "heads": 1, "key_dim": 64, "value_dim": 64, **layers}
    return KvHeader(MODEL, dtype, (KvLayers(**run),), tokens=tokens, stored=stored)


def attributes_of(header: KvHeader) -> dict[str, Any]:
    """Those of a cube with this header."""
    return {"kv": msgspec.to_builtins(header)}


def digest_before(tokens: Sequence[int], start: int) -> str:
    """`KvHeader.before` of a part of these tokens."""
    return digest_of_tokens(pack_tokens(tokens[:start])) if start else ""


def part_of(
    layers: KvLayers, tokens: Sequence[int], start: int = 0, model: str = MODEL
) -> tuple[KvHeader, bytes]:
    """Header and payload of what is behind `start`: its token ids, and rows of `k`."""
    header = KvHeader(
        model,
        KvDtype.FLOAT32,
        (layers,),
        tokens=len(tokens),
        start=start,
        before=digest_before(tokens, start),
    )
    return header, pack_tokens(tokens[start:]).ljust(layout_of(header).size_bytes, b"k")


def narrowed(values: Array, dtype: KvDtype) -> Array:
    """float64 as the payload has it; bfloat16 as its bits, cut off."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype is KvDtype.BFLOAT16:
            return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        return values.astype(_TYPES[dtype])


def _widened(stored: bytes, dtype: KvDtype) -> Array:
    if dtype is KvDtype.BFLOAT16:
        bits = np.frombuffer(stored, "<u2").astype("<u4") << 16
        return bits.view("<f4").astype(np.float64)
    return np.frombuffer(stored, _TYPES[dtype]).astype(np.float64)


def payload_of(header: KvHeader, plane_of: Callable[[int, int, int], Array]) -> bytes:
    """`plane_of(number, rows, dim)` in float64 for every plane; token ids count from 0."""
    layout, rows = layout_of(header), header.tokens - header.start
    payload = bytearray(layout.size_bytes)
    tokens = np.arange(header.start, header.tokens, dtype="<u4").tobytes()
    payload[: len(tokens)] = tokens
    for number, plane in enumerate(planes_of(header)):
        content = narrowed(plane_of(number, rows, plane.dim), header.dtype).tobytes()
        payload[plane.offset_bytes : plane.offset_bytes + len(content)] = content
    return bytes(payload)


def planes(header: KvHeader, payload: bytes) -> list[Array]:
    """The rows in use of every plane, as float64."""
    rows, item_bytes = header.tokens - header.start, header.dtype.item_bytes
    found = []
    for plane in planes_of(header):
        end = plane.offset_bytes + rows * plane.dim * item_bytes
        values = _widened(payload[plane.offset_bytes : end], header.dtype)
        found.append(values.reshape(rows, plane.dim))
    return found


def wavy(number: int, rows: int, dim: int) -> Array:
    """Values like those of a model: channels of different size, some with an offset."""
    rng = np.random.default_rng(number)
    return rng.normal(rng.normal(0, 2, dim), rng.lognormal(0, 1, dim), (rows, dim))
