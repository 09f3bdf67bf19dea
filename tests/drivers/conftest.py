"""Memory behind descriptors for the tests of what keeps bytes, and a count of descriptors."""

import gc
import os
from collections.abc import Iterator

import pytest

from libmem.abi import failpoints
from tests.drivers.memory import Memory


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """Whatever a test opens through our code is closed when the code is done with it."""
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def memory(no_descriptor_is_left: None) -> Iterator[Memory]:
    """Makes memfds, and closes them."""
    made = Memory()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_failpoint_is_left() -> Iterator[None]:
    """What a test arms is disarmed."""
    yield
    failpoints.disarm()
