"""The depth of JSON, against a stack that counts character by character."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memosd.drivers.plaintext import nesting
from memosd.drivers.plaintext.nesting import is_deeper

MIB = 1 << 20

texts = st.text(st.sampled_from('"\\[]{}a\n'))
values = st.recursive(
    st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


def depth_of(value: object) -> int:
    """How deep arrays and objects lie."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(value=values, slice_bytes=st.integers(1, 40), block=st.integers(1, 8))
def test_brackets_in_strings_do_not_count(value: object, slice_bytes: int, block: int) -> None:
    """Escapes and strings may be cut by the end of a slice anywhere."""
    view = memoryview(msgspec.json.encode(value))
    depth = depth_of(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "_SLICE_BYTES", slice_bytes)
        patch.setattr(nesting, "_BLOCK", block)
        assert not is_deeper(view, depth)
        assert depth == 0 or is_deeper(view, depth - 1)


@pytest.mark.parametrize("at", [0, 1000, MIB])
def test_a_deep_place_is_found_anywhere(at: int) -> None:
    flat = b"[" + b"[1],[2]," * (at // 8)
    assert is_deeper(memoryview(flat + b"[" * 128 + b"]" * 128 + b"]"), 128)
    assert not is_deeper(memoryview(flat + b"[" * 127 + b"]" * 127 + b"]"), 128)
