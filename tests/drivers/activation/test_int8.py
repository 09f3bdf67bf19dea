"""int8: small, deterministic, and off by exactly what it says."""

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libmem.abi.coding import UnfitError
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno
from libmem.abi.kv import KvDtype, KvForm, KvHeader, KvStored, layout_of
from memosd.drivers.activation.int8 import Int8Encoding, decode, encoded_bytes
from memosd.drivers.activation.top import ActivationDriver
from tests.caches import Array, attributes_of, header_of, payload_of, planes, wavy
from tests.drivers.memory import Memory, raises

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

BFLOAT16_BYTES = 2
HUGE = {
    KvDtype.FLOAT16: 65504.0,
    KvDtype.BFLOAT16: 3.38e38,
    KvDtype.FLOAT32: 3.4e38,
    KvDtype.FLOAT64: 1.79e308,
}
DENORMAL = {
    KvDtype.FLOAT16: 6e-8,
    KvDtype.BFLOAT16: 1e-40,
    KvDtype.FLOAT32: 1e-45,
    KvDtype.FLOAT64: 5e-324,
}


def encode(
    memory: Memory, header: KvHeader, payload: bytes, error_max: float = 1.0
) -> tuple[bytes, Int8Encoding]:
    """The encoded payload, and what the codec says of it."""
    encoding = Int8Encoding(memory.holding(payload), header, error_max)
    return b"".join(bytes(block) for block in encoding), encoding


def decoded(memory: Memory, header: KvHeader, encoded: bytes, seed: int = 0) -> bytes:
    """What comes back, the encoded payload arriving in pieces of all sizes."""
    dice, pieces, at = random.Random(seed), [], 0
    while at < len(encoded):
        size_bytes = dice.choice([1, 100, 5000, 1 << 20])
        pieces.append(encoded[at : at + size_bytes])
        at += size_bytes
    target = memory.blank(layout_of(header).size_bytes)
    decode(header, pieces, target)
    return os.pread(target, layout_of(header).size_bytes + 1, 0)


def error_between(before: list[Array], after: list[Array]) -> float:
    """The documented measure, from its definition."""
    return max(map(_error_of_plane, before, after))


def _error_of_plane(before: Array, after: Array) -> float:
    shares = []
    for values, found in zip(before.T, after.T, strict=True):
        peak = np.abs(values).max()
        if peak:
            lost = (found / peak - values / peak).astype(np.longdouble)
            size = (values / peak).astype(np.longdouble)
            shares.append(float((lost**2).sum() / (size**2).sum()))
    return float(np.sqrt(np.mean(shares))) if shares else 0.0


channel = st.sampled_from(["normal", "constant", "zero", "huge", "denormal", "outlier", "offset"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    dtype=st.sampled_from(list(KvDtype)),
    shape=st.tuples(st.integers(8, 200), st.sampled_from([8, 24, 64])),
    kinds=st.lists(channel, min_size=1, max_size=8),
    seed=st.integers(0, 1 << 32),
)
def test_it_is_off_by_exactly_what_it_says(
    memory: Memory, dtype: KvDtype, shape: tuple[int, int], kinds: list[str], seed: int
) -> None:
    header = header_of(shape[0], dtype=dtype, count=1, heads=2, key_dim=shape[1], value_dim=8)
    rng = np.random.default_rng(seed)

    def column(kind: str, rows: int) -> Array:
        noise = rng.uniform(-1, 1, rows)
        return {
            "normal": noise,
            "constant": np.full(rows, 3.3),
            "zero": np.zeros(rows),
            "huge": noise * HUGE[dtype],
            "denormal": noise * DENORMAL[dtype] * 9,
            "outlier": noise * np.where(rng.random(rows) < 0.05, 1000, 0.1),
            "offset": 50 + noise,
        }[kind]

    def plane(number: int, rows: int, dim: int) -> Array:
        columns = [column(kinds[(number + at) % len(kinds)], rows) for at in range(dim)]
        return np.stack(columns, axis=1)

    payload = payload_of(header, plane)
    encoded, encoding = encode(memory, header, payload)
    assert len(encoded) == encoded_bytes(header) < len(payload)
    back = decoded(memory, header, encoded, seed)
    assert digest_of(back) == encoding.content_digest
    start = layout_of(header).planes_offset_bytes
    assert back[:start] == payload[:start], "token ids are never touched"
    found = error_between(planes(header, payload), planes(header, back))
    assert encoding.error == pytest.approx(found, rel=1e-3, abs=1e-7)
    memory.close()


@pytest.mark.parametrize("dtype", KvDtype)
def test_models_lose_little(memory: Memory, dtype: KvDtype) -> None:
    header = header_of(500, dtype=dtype)
    encoded, encoding = encode(memory, header, payload_of(header, wavy), error_max=0.02)
    assert 0.001 < encoding.error < 0.01
    tokens_bytes = layout_of(header).planes_offset_bytes
    exact_bytes = 500 * 4 * 64 * BFLOAT16_BYTES
    ratio = (len(encoded) - tokens_bytes) / exact_bytes
    assert ratio <= (0.55 if dtype is not KvDtype.FLOAT64 else 0.6), "of its size in bfloat16"


@pytest.mark.parametrize("dtype", KvDtype)
def test_what_does_not_change_along_the_tokens_comes_back_exactly(
    memory: Memory, dtype: KvDtype
) -> None:
    header = header_of(100, dtype=dtype)

    def plane(number: int, rows: int, dim: int) -> Array:
        row = np.random.default_rng(number).normal(0, HUGE[dtype] / 10, dim)
        return np.broadcast_to(row, (rows, dim))

    payload = payload_of(header, plane)
    encoded, encoding = encode(memory, header, payload)
    assert encoding.error == 0
    assert decoded(memory, header, encoded) == payload


def test_decoding_twice_loses_no_more(memory: Memory) -> None:
    header = header_of(130)
    once = decoded(memory, header, encode(memory, header, payload_of(header, wavy))[0])
    again, encoding = encode(memory, header, once)
    assert encoding.error < 1e-6
    assert len(again) == encoded_bytes(header)


def test_rows_that_are_not_in_use_come_back_as_zeros(memory: Memory) -> None:
    header = header_of(17)
    payload = bytearray(payload_of(header, wavy))
    payload[-100:] = b"\xff" * 100  # NaN, were they looked at
    encoded, encoding = encode(memory, header, bytes(payload))
    back = decoded(memory, header, encoded)
    assert back[-100:] == bytes(100)
    assert digest_of(back) == encoding.content_digest


@pytest.mark.parametrize("dtype", KvDtype)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays(memory: Memory, dtype: KvDtype, value: float) -> None:
    header = header_of(100, dtype=dtype)

    def plane(number: int, rows: int, dim: int) -> Array:
        values = wavy(number, rows, dim)
        values[rows - 1, dim - 1] = value if number == 3 else 0
        return values

    with pytest.raises(UnfitError, match="NaN or infinity"):
        encode(memory, header, payload_of(header, plane))


def test_above_its_bound_it_stays(memory: Memory) -> None:
    header = header_of(100)

    def plane(number: int, rows: int, dim: int) -> Array:
        values = np.ones((rows, dim)) * 0.001
        values[0] = 1.0  # one row so large that the others come to nothing
        return values

    payload = payload_of(header, plane)
    _, encoding = encode(memory, header, payload)
    with pytest.raises(UnfitError, match="is above"):
        encode(memory, header, payload, error_max=encoding.error * 0.99)


def test_few_tokens_stay(memory: Memory) -> None:
    header = header_of(1, dtype=KvDtype.BFLOAT16, key_dim=2048, value_dim=2048)
    with pytest.raises(UnfitError, match="as much room"):
        encode(memory, header, bytes(layout_of(header).size_bytes))


def test_planes_larger_than_a_chunk(memory: Memory) -> None:
    header = header_of(1500, count=1, key_dim=1024, value_dim=8)
    payload = payload_of(header, wavy)
    encoded, encoding = encode(memory, header, payload)
    back = decoded(memory, header, encoded)
    assert digest_of(back) == encoding.content_digest
    found = error_between(planes(header, payload), planes(header, back))
    assert encoding.error == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("change", [lambda e: e[:-1], lambda e: e + b"x", lambda e: b""])
def test_another_size_is_corrupt(memory: Memory, change: Callable[[bytes], bytes]) -> None:
    header = header_of(100)
    encoded, _ = encode(memory, header, payload_of(header, wavy))
    target = memory.blank(layout_of(header).size_bytes)
    with raises(Errno.ECORRUPT):
        decode(header, iter([change(encoded)]), target)


def test_a_payload_that_ends_early_is_an_error(memory: Memory) -> None:
    header = header_of(100)
    with raises(Errno.EIO):
        encode(memory, header, bytes(layout_of(header).size_bytes // 2))


def test_the_header_decides_and_else_the_configuration() -> None:
    exact, int8 = KvStored(KvForm.EXACT), KvStored(KvForm.INT8)
    wishes = [(wish, default) for wish in (None, exact, int8) for default in (exact, int8)]
    found = [
        ActivationDriver(default).coding(attributes_of(header_of(100, wish))).is_wanted
        for wish, default in wishes
    ]
    assert found == [False, True, False, False, True, True]


def test_an_unknown_form_is_not_decoded(memory: Memory) -> None:
    coding = ActivationDriver().coding(attributes_of(header_of(100)))
    with raises(Errno.EOPNOTSUPP):
        coding.decode("int4", [], memory.blank(1))
