"""The fault-injecting tier does what its plan says, and nothing else."""

import os
import threading
import time

import pytest

from libmem.abi.digest import digest_of, manifest_of
from libmem.abi.errors import Errno
from memosd.drivers.tiers.faulty import FaultPlan, FaultyTier, Operation
from memosd.drivers.tiers.ram import RamTier
from tests.drivers.memory import Memory, raises

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

KEY = bytes(16)
CONTENT = b"some words that matter"


@pytest.fixture
def plan() -> FaultPlan:
    """Empty at first."""
    return FaultPlan()


@pytest.fixture
def tier(plan: FaultPlan, memory: Memory) -> FaultyTier:
    """A tier that holds CONTENT."""
    made = FaultyTier(RamTier(), plan)
    made.store(KEY, memory.holding(CONTENT), manifest_of(CONTENT))
    return made


def call(tier: FaultyTier, memory: Memory, operation: Operation) -> bytes:
    """Do `operation` on KEY; the bytes, for a load."""
    target = memory.blank(len(CONTENT))
    if operation == "store":
        tier.store(KEY, memory.holding(CONTENT), manifest_of(CONTENT))
    elif operation == "load":
        tier.load(KEY, target, len(CONTENT), digest_of(CONTENT))
    elif operation == "read":
        return tier.read(KEY, len(CONTENT), digest_of(CONTENT), len(CONTENT))
    elif operation == "verify":
        tier.verify(KEY, len(CONTENT), digest_of(CONTENT))
    else:
        tier.free(KEY)
    return os.pread(target, len(CONTENT), 0)


@pytest.mark.parametrize("operation", ["store", "load", "read", "verify", "free"])
def test_only_the_nth_call_fails(
    tier: FaultyTier, plan: FaultPlan, memory: Memory, operation: Operation
) -> None:
    before = plan.calls[operation]
    plan.fail(operation, Errno.EIO, nth=2)
    call(tier, memory, operation)
    if operation == "free":
        call(tier, memory, "store")
    with raises(Errno.EIO):
        call(tier, memory, operation)
    assert list(tier.keys()) == [KEY]  # nothing happened
    call(tier, memory, operation)
    assert plan.calls[operation] == before + 3
    tier.free(KEY)


def test_damage_is_found_and_comes_once(tier: FaultyTier, plan: FaultPlan, memory: Memory) -> None:
    plan.flip_bit(nth=1, at=1_000_003)
    plan.truncate(nth=2)
    for _ in range(2):
        with raises(Errno.ECORRUPT):
            call(tier, memory, "load")
    assert call(tier, memory, "load") == CONTENT
    tier.free(KEY)


def test_a_stalled_call_waits_for_its_release(
    tier: FaultyTier, plan: FaultPlan, memory: Memory
) -> None:
    stall = plan.stall("load")
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(call(tier, memory, "load")))
    thread.start()
    assert stall.is_reached.wait(30)
    assert not loaded
    stall.release()
    thread.join(30)
    assert loaded == [CONTENT]
    tier.free(KEY)


def test_a_tier_may_refuse_or_be_slow_until_it_is_mended(
    tier: FaultyTier, plan: FaultPlan, memory: Memory
) -> None:
    plan.refuse("load", Errno.ENOSPC)
    for _ in range(3):
        with raises(Errno.ENOSPC):
            call(tier, memory, "load")
    call(tier, memory, "verify")
    plan.delay("load", 0.05)
    before = time.monotonic()
    assert call(tier, memory, "load") == CONTENT
    assert time.monotonic() - before >= 0.05
    plan.refuse("load", Errno.EIO)
    plan.mend()
    assert call(tier, memory, "load") == CONTENT
    tier.free(KEY)
