"""The top half of parametric memory: an adapter is what its header says, complete and finite."""

import struct
from typing import Any

import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Descriptive, Durability
from memosd.drivers.parametric.top import ParametricDriver
from tests.adapters import MODEL, attributes_of, config, factors, packed

PLAIN = Descriptive()
NAME = "base_model.model.model.layers.0.q_proj"


@pytest.fixture
def driver() -> ParametricDriver:
    return ParametricDriver()


def refused(driver: ParametricDriver, payload: bytes, text: str | None = None) -> str:
    with pytest.raises(MemError) as error:
        driver.check_payload(payload, PLAIN, attributes_of(text))
    assert error.value.errno is Errno.EILSEQ
    return error.value.message


def test_what_it_says_of_itself(driver: ParametricDriver) -> None:
    assert driver.durability is Durability.DURABLE
    assert driver.fixed_attributes == {"lora"}
    assert driver.model_of(attributes_of()) == MODEL
    assert driver.index_text(b"", PLAIN) is None
    assert not driver.is_new_promise(PLAIN, Descriptive(title="x"))


def test_adapters_of_any_float_type_are_taken(driver: ParametricDriver) -> None:
    driver.check_header(PLAIN, attributes_of())
    driver.check_payload(packed(factors()), PLAIN, attributes_of())
    driver.check_payload(memoryview(packed(factors())), PLAIN, attributes_of())
    for dtype, size in (("F64", 8), ("F16", 2), ("BF16", 2)):
        halves = {
            name: (dtype, shape, bytes(size * 16)) for name, (_, shape, _) in factors().items()
        }
        driver.check_payload(packed(halves), PLAIN, attributes_of())


def test_ranks_may_differ_where_the_configuration_says_so(driver: ParametricDriver) -> None:
    tensors = {**factors(), **factors(["model.layers.1.q_proj"], rank=3)}
    assert "rank 3" in refused(driver, packed(tensors))
    text = config(rank_pattern={"1.q_proj": 3})
    driver.check_payload(packed(tensors), PLAIN, attributes_of(text))


def test_magnitudes_and_biases_go_with_the_configuration(driver: ParametricDriver) -> None:
    magnitude = {f"{NAME}.lora_magnitude_vector": ("F32", (8,), bytes(32))}
    bias = {f"{NAME}.lora_B.bias": ("F32", (8,), bytes(32))}
    for extra, changes in ((magnitude, {"use_dora": True}), (bias, {"lora_bias": True})):
        both = packed({**factors(), **extra})
        driver.check_payload(both, PLAIN, attributes_of(config(**changes)))
        refused(driver, both)
        refused(driver, packed(factors()), config(**changes))
    short = {f"{NAME}.lora_B.bias": ("F32", (4,), bytes(16))}
    refused(driver, packed({**factors(), **short}), config(lora_bias=True))


def test_embeddings_have_factors_too(driver: ParametricDriver) -> None:
    name = "base_model.model.model.embed_tokens"
    tensors: dict[str, Any] = {
        f"{name}.lora_embedding_A": ("F32", (2, 16), bytes(128)),
        f"{name}.lora_embedding_B": ("F32", (8, 2), bytes(64)),
    }
    driver.check_payload(packed(tensors), PLAIN, attributes_of())


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({}, "no tensors"),
        ({f"{NAME}.lora_A.weight": ("F32", (2, 8), bytes(64))}, "one factor A and one"),
        ({**factors(), "model.norm.weight": ("F32", (8,), bytes(32))}, "not a factor"),
        ({**factors(), f"{NAME}.lora_B.bias2": ("F32", (8,), bytes(32))}, "not a factor"),
        ({**factors(), f"{NAME}.lora_C.weight": ("F32", (8,), bytes(32))}, "not a factor"),
        (
            {**factors(), "model.layers.0.q_proj.lora_A.weight": ("F32", (2, 8), bytes(64))},
            "twice",
        ),
        ({**factors(), f"{NAME}.lora_B.weight": ("F32", (8, 3), bytes(96))}, "shapes"),
        ({**factors(), f"{NAME}.lora_B.weight": ("F32", (16,), bytes(64))}, "shapes"),
        ({**factors(), f"{NAME}.lora_B.weight": ("I32", (8, 2), bytes(64))}, "dtype I32"),
        (factors(rank=3), "rank 3"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_other_tensors_are_refused(
    driver: ParametricDriver, tensors: dict[str, Any], problem: str
) -> None:
    assert problem in refused(driver, packed(tensors))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("which", ["inf", "-inf", "nan"])
def test_what_is_not_finite_is_refused(driver: ParametricDriver, dtype: str, which: str) -> None:
    code = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f"}[dtype]
    number = struct.pack(code, float(which))[-2 if dtype == "BF16" else 0 :]
    count = (3 << 20) // len(number)
    for place in (0, count // 2, count - 1):
        data = bytearray(count * len(number))
        data[place * len(number) : (place + 1) * len(number)] = number
        tensors = {
            f"{NAME}.lora_A.weight": (dtype, (2, count // 2), bytes(data)),
            f"{NAME}.lora_B.weight": (dtype, (8, 2), bytes(16 * len(number))),
        }
        assert "not finite" in refused(driver, packed(tensors))


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"lora": 1},
        {"lora": {"model": MODEL}},
        attributes_of(model="x"),
        attributes_of("no json"),
        attributes_of("[]"),
        attributes_of("[" * 100_000),
        attributes_of(config(pad="x" * (128 << 10))),
        attributes_of(config(peft_type="IA3")),
        attributes_of(config(r=0)),
        attributes_of(config(r="2")),
        attributes_of(config(rank_pattern={"x": 1 << 40})),
        attributes_of(config(modules_to_save=["lm_head"])),
    ],
    ids=lambda it: str(it)[:50],
)
def test_other_headers_are_refused(driver: ParametricDriver, attributes: dict[str, Any]) -> None:
    with pytest.raises(MemError) as error:
        driver.check_header(PLAIN, attributes)
    assert error.value.errno is Errno.EINVAL
