"""A kernel for each test, and a count of descriptors over it."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from libmem.abi import calls as c
from tests.kernel.world import PAGED, Client, World

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


@pytest.fixture
def small(make_world: MakeWorld) -> World:
    """RAM for four payloads."""
    world = make_world(ram_budget_bytes=4 * PAGED)
    world.client().make("/n")
    return world


@pytest.fixture
def owner(small: World) -> Client:
    """Of `/n` in that world."""
    return small.client()


@pytest.fixture(params=[100, PAGED], ids=["inline", "paged"])
def absent(request: pytest.FixtureRequest, user: Client) -> bytes:
    """The payload of `/n/a`, which is not in RAM."""
    payload = os.urandom(request.param)
    user.blob("/n/a", payload)
    user.call(c.Evict(name="/n/a"))
    assert user.stat("/n/a").tiers == ("disk",)
    return payload
