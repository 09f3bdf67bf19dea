"""A kernel for each test, and a count of descriptors over it."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.kernel.world import Client, World

__all__ = ["MakeWorld"]

MakeWorld = Callable[..., World]


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """Whatever the kernel opens, it or its end closes."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    if len(os.listdir("/proc/self/fd")) > before:
        gc.collect()  # an exception's traceback keeps what its frames held
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture(autouse=True)
def surprises() -> Iterator[list[Any]]:
    """What the kernel did not expect: nothing, unless a test looks at it and clears it."""
    with capture_logs() as logged:
        yield logged
    assert [entry for entry in logged if entry["log_level"] == "error"] == []


@pytest.fixture
def make_world(no_descriptor_is_left: None, tmp_path: Path) -> Iterator[MakeWorld]:
    """Makes worlds with other parameters; each must be well at the end."""
    made: list[World] = []

    def make(**changes: Any) -> World:
        made.append(World(tmp_path, **changes))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A kernel over fakes, with little memory."""
    return make_world()


@pytest.fixture
def user(world: World) -> Client:
    """A client of an ordinary user, who owns the namespace `/n`."""
    client = world.client()
    client.make("/n")
    return client
