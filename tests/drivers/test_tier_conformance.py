"""What every tier must do, whatever it keeps its payloads in: docs in memosd/kernel/ports.py."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libmem.abi.digest import digest_of, manifest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import PAGE_BYTES
from memosd.drivers.tiers.disk import DiskTier
from memosd.drivers.tiers.faulty import FaultPlan, FaultyTier
from memosd.drivers.tiers.ram import RamTier
from memosd.kernel.ports import Tier
from tests.drivers.memory import Memory, raises, stored_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

# A type checker compares each tier with the kernel's protocol here, as boot does.
TIERS: dict[str, Callable[[Path], Tier]] = {
    "ram": lambda directory: RamTier(),
    "disk": DiskTier,
    "faulty-ram": lambda directory: FaultyTier(RamTier(), FaultPlan()),
    "faulty-disk": lambda directory: FaultyTier(DiskTier(directory), FaultPlan()),
}

SIZES = [0, 1, 4095, 4096, 4097, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 3 * PAGE_BYTES + 5]
KEY = bytes(range(16))
OTHER = bytes(range(1, 17))


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tier]:
    """Each tier in turn, emptied at the end."""
    made = TIERS[request.param](tmp_path)
    yield made
    for key in list(made.keys()):
        made.free(key)


def store(tier: Tier, memory: Memory, content: bytes, key: bytes = KEY) -> None:
    """Keep `content` under `key`."""
    tier.store(key, memory.holding(content), manifest_of(content))


def load(tier: Tier, memory: Memory, content: bytes, key: bytes = KEY) -> bytes:
    """Load what should be `content`."""
    target = memory.blank(len(content))
    tier.load(key, target, len(content), digest_of(content))
    return os.pread(target, len(content) + 1, 0)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_payload_comes_back_as_it_was(tier: Tier, memory: Memory, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    store(tier, memory, content)
    assert load(tier, memory, content) == content
    tier.verify(KEY, size_bytes, digest_of(content))
    assert list(tier.keys()) == [KEY]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_the_beginning_comes_back_alone(tier: Tier, memory: Memory, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    store(tier, memory, content)
    for limit_bytes in (0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, size_bytes, 1 << 40):
        start = tier.read(KEY, size_bytes, digest_of(content), limit_bytes)
        assert start == content[:limit_bytes]


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("piece_bytes", [1000, PAGE_BYTES - 1, PAGE_BYTES, 5 * PAGE_BYTES])
def test_blocks_go_in_and_come_back(
    tier: Tier, memory: Memory, size_bytes: int, piece_bytes: int
) -> None:
    content = os.urandom(size_bytes)
    pieces = [content[at : at + piece_bytes] for at in range(0, size_bytes, piece_bytes)]
    assert tier.store_blocks(KEY, iter(pieces)) == manifest_of(content)
    assert load(tier, memory, content) == content, "as if it had come at once"
    assert b"".join(tier.blocks(KEY, size_bytes, digest_of(content))) == content


def test_blocks_that_end_in_an_error_leave_what_was_there(tier: Tier, memory: Memory) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"some"
        raise LookupError

    for before in ([], [KEY]):
        with pytest.raises(LookupError):
            tier.store_blocks(KEY, blocks())
        assert list(tier.keys()) == before
        if before:
            assert load(tier, memory, b"words") == b"words"
        store(tier, memory, b"words")


def test_another_payload_than_asked_for_gives_no_block(tier: Tier, memory: Memory) -> None:
    store(tier, memory, b"this one")
    for size_bytes, digest in [(8, digest_of(b"that one")), (7, digest_of(b"this on"))]:
        with raises(Errno.ECORRUPT):
            next(tier.blocks(KEY, size_bytes, digest))
    with raises(Errno.ENOENT):
        next(tier.blocks(OTHER, 8, digest_of(b"this one")))


def test_nothing_is_there_before_and_after(tier: Tier, memory: Memory) -> None:
    def assert_absent() -> None:
        with raises(Errno.ENOENT):
            tier.read(KEY, 5, digest_of(b"words"), 5)
        with raises(Errno.ENOENT):
            load(tier, memory, b"words")
        with raises(Errno.ENOENT):
            tier.verify(KEY, 5, digest_of(b"words"))
        assert list(tier.keys()) == []

    assert_absent()
    tier.free(KEY)  # an absent key is no error
    store(tier, memory, b"words")
    tier.free(KEY)
    assert_absent()


def test_payloads_are_apart(tier: Tier, memory: Memory) -> None:
    store(tier, memory, b"old")
    store(tier, memory, b"newer", OTHER)
    assert load(tier, memory, b"old") == b"old"
    assert load(tier, memory, b"newer", OTHER) == b"newer"
    tier.free(KEY)
    assert list(tier.keys()) == [OTHER]


def test_storing_again_replaces(tier: Tier, memory: Memory) -> None:
    store(tier, memory, b"first, longer")
    store(tier, memory, b"second")
    assert load(tier, memory, b"second") == b"second"
    assert list(tier.keys()) == [KEY]


def test_another_payload_than_asked_for_is_never_served(tier: Tier, memory: Memory) -> None:
    store(tier, memory, b"this one")
    for size_bytes, digest in [
        (8, digest_of(b"that one")),
        (7, digest_of(b"this on")),
        (9, digest_of(b"this one\0")),
        (7, digest_of(b"this one")),
    ]:
        with raises(Errno.ECORRUPT):
            tier.load(KEY, memory.blank(size_bytes), size_bytes, digest)
        with raises(Errno.ECORRUPT):
            tier.read(KEY, size_bytes, digest, 4)
        with raises(Errno.ECORRUPT):
            tier.verify(KEY, size_bytes, digest)


def test_a_source_that_is_too_short_leaves_nothing(tier: Tier, memory: Memory) -> None:
    manifest = manifest_of(b"eight by")
    with raises(Errno.EINVAL):
        tier.store(KEY, memory.holding(b"seven b"), manifest)
    assert list(tier.keys()) == []


def test_only_the_manifests_bytes_are_taken(tier: Tier, memory: Memory) -> None:
    tier.store(KEY, memory.holding(b"payload and more"), manifest_of(b"payload"))
    assert load(tier, memory, b"payload") == b"payload"


def test_the_source_is_not_needed_afterwards(tier: Tier, memory: Memory) -> None:
    source = memory.holding(b"before")
    tier.store(KEY, source, manifest_of(b"before"))
    os.pwrite(source, b"after.", 0)
    assert load(tier, memory, b"before") == b"before"


def test_holes_stay_holes(tier: Tier, memory: Memory) -> None:
    # Room for tokens to come, as in a KV cache: words, a long hole across pages, words.
    size_bytes = 8 * PAGE_BYTES
    source = memory.blank(size_bytes)
    for at in (100, 3 * PAGE_BYTES - 2, size_bytes - 4):
        os.pwrite(source, b"word", at)
    content = os.pread(source, size_bytes, 0)
    assert stored_bytes(source) < PAGE_BYTES
    tier.store(KEY, source, manifest_of(content))
    target = memory.blank(size_bytes)
    tier.load(KEY, target, size_bytes, digest_of(content))
    assert stored_bytes(target) == stored_bytes(source)
    assert os.pread(target, size_bytes, 0) == content


def test_a_charge_covers_the_payload(tier: Tier) -> None:
    charges = [tier.charge_bytes(size_bytes) for size_bytes in SIZES]
    assert all(charge >= size for charge, size in zip(charges, SIZES, strict=True))
    assert charges == sorted(charges)


def test_payloads_may_go_while_keys_are_walked(tier: Tier, memory: Memory) -> None:
    keys = {os.urandom(16) for _ in range(20)}
    for key in keys:
        store(tier, memory, b"x", key)
    seen = []
    walk = tier.keys()
    for key in walk:
        seen.append(key)
        tier.free(key)
    assert sorted(seen) == sorted(keys)
    assert list(tier.keys()) == []


def test_threads_do_not_disturb_each_other(tier: Tier, memory: Memory) -> None:
    def work(number: int) -> None:
        key = bytes([number]) * 16
        for step in range(5):
            content = bytes([number, step]) * 100_000
            store(tier, memory, content, key)
            assert load(tier, memory, content, key) == content
        tier.free(key)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(8)))
    assert list(tier.keys()) == []


step = st.tuples(
    st.sampled_from(["store", "load", "verify", "free"]),
    st.sampled_from([KEY, OTHER, bytes(15) + b"\x01"]),
    st.integers(0, 9000),
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(step, max_size=30))
def test_a_tier_is_a_dict(tier: Tier, memory: Memory, steps: list[tuple[str, bytes, int]]) -> None:
    model: dict[bytes, bytes] = {}
    for key in list(tier.keys()):
        tier.free(key)
    for operation, key, number in steps:
        content = model.get(key)
        if operation == "store":
            model[key] = number.to_bytes(2, "big") * number
            store(tier, memory, model[key], key)
        elif operation == "free":
            model.pop(key, None)
            tier.free(key)
        elif content is None:
            with raises(Errno.ENOENT):
                load(tier, memory, b"", key)
        elif operation == "load":
            assert load(tier, memory, content, key) == content
        else:
            tier.verify(key, len(content), digest_of(content))
        assert set(tier.keys()) == set(model)
    memory.close()
