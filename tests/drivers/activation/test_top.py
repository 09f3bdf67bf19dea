"""The top half of activation memory: a payload is what its header says, and continues its base."""

from typing import Any

import msgspec
import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvDtype, KvHeader, KvLayers, layout_of, pack_tokens
from libmem.abi.prefix import Base, Prefix
from libmem.abi.structs import Descriptive, Durability
from memosd.drivers.activation.top import ActivationDriver
from tests.caches import digest_before

MODEL, OTHER = "ab" * 32, "cd" * 32
LAYERS = (KvLayers(2, 1, 64, 64),)
TOKENS = list(range(32))
PLAIN = Descriptive()
HEADER = KvHeader(MODEL, KvDtype.FLOAT32, LAYERS, tokens=32)
PART = msgspec.structs.replace(HEADER, start=16, before=digest_before(TOKENS, 16))


@pytest.fixture
def driver() -> ActivationDriver:
    return ActivationDriver()


def packed(tokens: int) -> bytes:
    return pack_tokens(TOKENS[:tokens])


def attributes(header: KvHeader, **changes: Any) -> dict[str, Any]:
    return {"kv": msgspec.to_builtins(msgspec.structs.replace(header, **changes))}


def payload_of(header: KvHeader) -> bytes:
    tokens = pack_tokens(TOKENS[header.start : header.tokens])
    return tokens.ljust(layout_of(header).size_bytes, b"\x99")


def test_what_it_says_of_itself(driver: ActivationDriver) -> None:
    assert driver.durability is Durability.CACHE
    assert driver.indexed_bytes == 0
    assert driver.index_text(b"", PLAIN) is None
    assert driver.fixed_attributes == {"kv"}
    assert driver.prefixes is driver


def test_a_payload_has_the_size_that_its_header_says(driver: ActivationDriver) -> None:
    for header in (HEADER, PART):
        payload = payload_of(header)
        driver.check_header(PLAIN, attributes(header))
        driver.check_payload(payload, PLAIN, attributes(header))
        driver.check_payload(memoryview(payload), PLAIN, attributes(header))
        for wrong in (payload[:-1], payload + b"x", b""):
            with pytest.raises(MemError) as refused:
                driver.check_payload(wrong, PLAIN, attributes(header))
            assert refused.value.errno is Errno.EILSEQ


def test_a_header_that_is_none_is_refused(driver: ActivationDriver) -> None:
    for wrong in ({}, {"kv": 1}, attributes(HEADER, tokens=0)):
        with pytest.raises(MemError) as refused:
            driver.check_header(PLAIN, wrong)
        assert refused.value.errno is Errno.EINVAL


def test_the_prefix_is_the_tokens_at_the_start(driver: ActivationDriver) -> None:
    assert not driver.is_part(attributes(HEADER))
    assert driver.model_of(attributes(HEADER)) == MODEL
    prefix = driver.prefix_of(payload_of(HEADER), attributes(HEADER), None)
    assert prefix == Prefix(bytes.fromhex(MODEL), 0, pack_tokens(TOKENS))


def test_a_part_names_its_base(driver: ActivationDriver) -> None:
    assert driver.is_part(attributes(PART))
    for under in (HEADER, msgspec.structs.replace(HEADER, tokens=16)):
        prefix = driver.prefix_of(
            memoryview(payload_of(PART)),
            attributes(PART),
            Base(b"k" * 16, attributes(under), packed),
        )
        assert prefix == Prefix(bytes.fromhex(MODEL), 16, pack_tokens(TOKENS[16:]), b"k" * 16)


@pytest.mark.parametrize(
    ("changes", "errno"),
    [
        ({"model": OTHER}, Errno.EMODEL),
        ({"dtype": KvDtype.FLOAT16}, Errno.EINVAL),
        ({"layers": (KvLayers(1, 1, 64, 64), KvLayers(1, 1, 64, 64))}, Errno.EINVAL),
        ({"layers": (KvLayers(2, 1, 64, 64, window=128),)}, Errno.EINVAL),
        ({"layers": (KvLayers(2, 2, 64, 64),)}, Errno.EINVAL),
        ({"tokens": 15}, Errno.EINVAL),
    ],
)
def test_a_part_of_something_else_is_refused(
    driver: ActivationDriver, changes: dict[str, Any], errno: Errno
) -> None:
    base = Base(b"k" * 16, attributes(HEADER, **changes), packed)
    with pytest.raises(MemError) as refused:
        driver.prefix_of(payload_of(PART), attributes(PART), base)
    assert refused.value.errno is errno


def test_a_parent_of_other_tokens_is_refused(driver: ActivationDriver) -> None:
    base = Base(b"k" * 16, attributes(HEADER), lambda tokens: bytes(tokens * 4))
    with pytest.raises(MemError, match="other tokens") as refused:
        driver.prefix_of(payload_of(PART), attributes(PART), base)
    assert refused.value.errno is Errno.EINVAL
