"""The layout of KV payloads: nothing overlaps, nothing is left out, nothing hostile passes."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import (
    KV_PAGE_BYTES,
    KV_TOKENS_MAX,
    KvDtype,
    KvHeader,
    KvLayers,
    fingerprint,
    kv_header,
    layout_of,
    pack_tokens,
    planes_of,
    unpack_tokens,
)

MODEL = "0f" * 32
dims = st.sampled_from([1, 3, 48, 64, 80, 96, 128, 576])
runs = st.builds(
    KvLayers, st.integers(1, 4), st.integers(1, 5), dims, dims, st.sampled_from([0, 4096])
)


@st.composite
def headers(draw: st.DrawFn) -> KvHeader:
    """Any that passes, of a few hundred planes at most."""
    layers = tuple(draw(st.lists(runs, min_size=1, max_size=4)))
    dtype = draw(st.sampled_from(KvDtype))
    plain = KvHeader(MODEL, dtype, layers, tokens=1)
    start = draw(st.integers(0, 3)) * layout_of(plain).grain_tokens
    tokens, before = start + draw(st.integers(1, 5000)), "0f" * 32 if start else ""
    return msgspec.structs.replace(plain, tokens=tokens, start=start, before=before)


def attributes(header: KvHeader) -> dict[str, Any]:
    return {"kv": msgspec.to_builtins(header)}


@given(headers())
def test_planes_and_tokens_tile_the_payload(header: KvHeader) -> None:
    assert kv_header(attributes(header)) == header
    layout = layout_of(header)
    stored = header.tokens - header.start
    assert stored <= layout.capacity_tokens < stored + layout.grain_tokens
    assert layout.capacity_tokens % layout.grain_tokens == 0
    assert 0 <= layout.planes_offset_bytes - 4 * stored < KV_PAGE_BYTES
    planes = list(planes_of(header))
    sizes = [layout.capacity_tokens * plane.dim * header.dtype.item_bytes for plane in planes]
    assert planes[0].offset_bytes == layout.planes_offset_bytes
    for (one, other), size in zip(pairwise(planes), sizes, strict=False):
        assert other.offset_bytes == one.offset_bytes + size
    assert planes[-1].offset_bytes + sizes[-1] == layout.size_bytes
    assert all(plane.offset_bytes % KV_PAGE_BYTES == 0 for plane in planes)
    assert all(size % KV_PAGE_BYTES == 0 for size in sizes)


@given(headers())
def test_planes_come_by_layer_then_keys_then_values_then_head(header: KvHeader) -> None:
    planes = list(planes_of(header))
    places = [(plane.layer, plane.is_value, plane.head) for plane in planes]
    assert places == sorted(set(places))
    shapes = [run for run in header.layers for _ in range(run.count)]
    assert {plane.layer for plane in planes} == set(range(len(shapes)))
    for plane in planes:
        run = shapes[plane.layer]
        assert plane.head < run.heads
        assert plane.dim == (run.value_dim if plane.is_value else run.key_dim)


@given(headers())
def test_a_grain_is_the_least_that_fills_whole_pages_of_every_plane(header: KvHeader) -> None:
    rows = {
        dim * header.dtype.item_bytes
        for run in header.layers
        for dim in (run.key_dim, run.value_dim)
    }
    grain = layout_of(header).grain_tokens
    assert all(grain * row % KV_PAGE_BYTES == 0 for row in rows)
    assert not any(
        all(tokens * row % KV_PAGE_BYTES == 0 for row in rows) for tokens in range(1, grain)
    )


@pytest.mark.parametrize(("dtype", "grain"), [("float32", 16), ("bfloat16", 32), ("float64", 8)])
def test_grains_of_64_dimensions(dtype: str, grain: int) -> None:
    header = KvHeader(MODEL, KvDtype(dtype), (KvLayers(1, 1, 64, 64),), tokens=1)
    assert layout_of(header).grain_tokens == grain


def test_the_largest_sizes_are_exact() -> None:
    """Beyond 2**64: no payload may have them, and no arithmetic wraps on the way there."""
    largest = (KvLayers(4096, 4096, 1 << 16, 1 << 16, KV_TOKENS_MAX),)
    header = kv_header(attributes(KvHeader(MODEL, KvDtype.FLOAT64, largest, tokens=KV_TOKENS_MAX)))
    rows = KV_TOKENS_MAX * 4096 * 4096 * 2 * (1 << 16) * 8
    assert layout_of(header).size_bytes == 4 * KV_TOKENS_MAX + rows


LAYER = {"count": 1, "heads": 1, "key_dim": 64, "value_dim": 64}
GOOD: dict[str, Any] = {"model": MODEL, "dtype": "float32", "layers": [LAYER], "tokens": 40}


@pytest.mark.parametrize(
    "change",
    [
        {"model": MODEL.upper()}, {"model": MODEL[:-1]}, {"model": ""}, {"model": b"x" * 64},
        {"model": "\u0663" * 64}, {"dtype": "int8"}, {"dtype": None}, {"layers": []},
        {"layers": [LAYER] * 4097}, {"layers": [{**LAYER, "count": 4096}, LAYER]},
        {"layers": [{**LAYER, "count": 0}]}, {"layers": [{**LAYER, "heads": 0}]},
        {"layers": [{**LAYER, "heads": 4097}]}, {"layers": [{**LAYER, "key_dim": 1 << 17}]},
        {"layers": [{**LAYER, "value_dim": -64}]}, {"layers": [{**LAYER, "window": -1}]},
        {"layers": [{**LAYER, "more": 1}]}, {"layers": LAYER}, {"layers": "x"},
        {"tokens": 0}, {"tokens": -1}, {"tokens": KV_TOKENS_MAX + 1}, {"tokens": 2**64 - 1},
        {"tokens": 40.0}, {"tokens": True}, {"tokens": "40"}, {"start": 40}, {"start": -16},
        {"start": 8}, {"more": 1}, {1: 1}, {"start": 16}, {"before": "0f" * 32},
        {"start": 16, "before": "0F" * 32}, {"start": 16, "before": "0f" * 31},
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(change: dict[Any, Any]) -> None:
    with pytest.raises(MemError) as refused:
        kv_header({"kv": {**GOOD, **change}})
    assert refused.value.errno is Errno.EINVAL
    assert kv_header({"kv": GOOD}).tokens == 40


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "start", "x"]), anything) | anything)
def test_whatever_it_is_it_is_a_header_or_invalid(hostile: Any) -> None:
    changed = {**GOOD, **hostile} if isinstance(hostile, dict) else hostile
    for value in (hostile, changed):
        try:
            header = kv_header({"kv": value})
        except MemError as error:
            assert error.errno is Errno.EINVAL  # noqa: PT017
        else:
            assert layout_of(header).size_bytes > 0


def test_an_activation_cube_without_a_header_is_refused() -> None:
    with pytest.raises(MemError) as refused:
        kv_header({})
    assert refused.value.errno is Errno.EINVAL


def test_a_fingerprint_is_32_bytes() -> None:
    assert fingerprint(MODEL) == b"\x0f" * 32


@given(st.lists(st.integers(0, (1 << 32) - 1)))
def test_tokens_are_packed_and_unpacked(tokens: list[int]) -> None:
    packed = pack_tokens(iter(tokens))
    assert packed == b"".join(token.to_bytes(4, "little") for token in tokens)
    assert unpack_tokens(packed) == unpack_tokens(memoryview(packed)) == tokens


@pytest.mark.parametrize("tokens", [[-1], [1 << 32], [1.5], ["a"], [None], "abc", 7])
def test_what_is_no_token_is_refused(tokens: Any) -> None:
    with pytest.raises(MemError) as refused:
        pack_tokens(tokens)
    assert refused.value.errno is Errno.EINVAL


def test_bytes_are_numbers_like_others() -> None:
    """Not taken for what is packed already: their length need not be a multiple of four."""
    assert unpack_tokens(pack_tokens(b"\1\2\3")) == [1, 2, 3]
    with pytest.raises(MemError) as refused:
        unpack_tokens(b"\1\2\3")
    assert refused.value.errno is Errno.EINVAL
