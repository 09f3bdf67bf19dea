"""Headers of safetensors payloads: read as the library does, and nothing reaches outside."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from libmem.abi.tensors import HEADER_MAX_BYTES, Tensor, tensors_of
from tests.adapters import packed

DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1}
ONE = {"x": ("F32", (2, 3), bytes(24))}


def read(payload: bytes) -> dict[str, Tensor] | None:
    """None where it is refused."""
    refused: list[Errno] = []
    try:
        return tensors_of(payload)
    except MemError as error:
        refused.append(error.errno)
    assert refused == [Errno.EILSEQ]
    return None


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Some that are right, most that are nearly so."""
    tensors = {}
    for name in draw(st.lists(st.text(max_size=5), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = DTYPES[dtype]
        for each in shape:
            size *= each
        tensors[name] = dtype, shape, bytes(draw(st.sampled_from([size, size, size, size + 1])))
    changes: dict[str, Any] = draw(
        st.dictionaries(
            st.sampled_from(["__metadata__", *tensors, "new"]),
            st.sampled_from(
                [
                    {"a": "b"},
                    {"a": 1},
                    {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                    {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
                    {"dtype": "F33", "shape": [], "data_offsets": [0, 4]},
                    {"dtype": "U8", "shape": [1 << 62, 4], "data_offsets": [0, 0]},
                    [],
                ]
            ),
            max_size=1,
        )
    )
    payload = packed(tensors, **changes)
    cut = draw(st.integers(0, 9))
    return payload[:-cut] if cut in (1, 2) else payload + bytes(cut == 9)


@settings(deadline=None)
@given(payloads())
@example(packed(ONE))
@example(packed({}))
def test_what_the_library_refuses_is_refused(payload: bytes) -> None:
    safetensors = pytest.importorskip("safetensors")
    try:
        wanted = dict(safetensors.deserialize(payload))
    except safetensors.SafetensorError:
        wanted = None
    found = read(payload)
    assert (found is None) is (wanted is None)
    if found is None or wanted is None:
        return
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        end = tensor.offset_bytes + tensor.size_bytes
        assert payload[tensor.offset_bytes : end] == bytes(wanted[name]["data"])
        assert list(tensor.shape) == wanted[name]["shape"]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    read(payload)


def _with(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"1234567",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (HEADER_MAX_BYTES + 1).to_bytes(8, "little") + b"{}",
        _with(b"[]"),
        _with(b"{"),
        _with(b'{"a\xff": {}}'),
        _with(b"{" + b'"a":{' * 10_000),
        _with({"x": ENTRY}),
        _with({"x": ENTRY}, bytes(5)),
        _with({"x": ENTRY, "y": ENTRY}, bytes(4)),
        _with({"x": ENTRY, "y": {**ENTRY, "data_offsets": [2, 6]}}, bytes(6)),
        _with({"x": {**ENTRY, "data_offsets": [4, 8]}}, bytes(8)),
        _with({"x": {**ENTRY, "shape": [1 << 70]}}, bytes(4)),
        _with({"x": {**ENTRY, "shape": [4.0]}}, bytes(4)),
        _with({"x": {**ENTRY, "shape": [-2, -2]}}, bytes(4)),
        _with({"x": ENTRY, "__metadata__": {"a": 1}}, bytes(4)),
    ],
    ids=lambda payload: str(payload[8:30]),
)
def test_malicious_headers_are_refused(payload: bytes) -> None:
    with pytest.raises(MemError) as refused:
        tensors_of(payload)
    assert refused.value.errno is Errno.EILSEQ


def test_a_header_too_large_to_be_read_is_refused() -> None:
    text = b"{}".ljust(HEADER_MAX_BYTES + 1)
    with pytest.raises(MemError, match="at most"):
        tensors_of(_with(text))
    assert tensors_of(_with(text[:-1])) == {}
