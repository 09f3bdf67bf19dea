"""Limits on disk: whose cache payloads go first, and whose never go for others."""

import pytest

from libmem.abi import calls as c
from libmem.abi.control import Limits, TierLimits
from libmem.abi.errors import Errno
from tests.kernel.conftest import MakeWorld
from tests.kernel.test_diskspace import kept
from tests.kernel.world import PAGED, Client, World, charge_of


def shared(make_world: MakeWorld, payloads: int, **limits: int) -> tuple[World, Client]:
    """A disk for so many payloads. The three oldest are `/calm`'s, which is granted these limits,
    in payloads; all others `/flood`'s."""
    world = make_world()
    size = charge_of(world, PAGED)
    world.kernel.parts.namespaces.budget_bytes = payloads * size
    user = world.client()
    for name in ("/calm", "/flood"):
        user.make(name)
    granted = TierLimits(**{f"{name}_bytes": size * most for name, most in limits.items()})
    world.root.call(c.SetLimits("/calm", Limits(disk=granted)))
    for name in "abc":
        kept(world, user, f"/calm/{name}")
    for number in range(payloads - 3):
        kept(world, user, f"/flood/{number}")
    return world, user


def calm(user: Client) -> str:
    """Which of /calm/a, /calm/b, ... are still there."""
    return "".join(n for n in "abcd" if user.start(c.StatCube(name=f"/calm/{n}")).errno() == 0)


@pytest.mark.parametrize(("least", "left"), [(3, "abc"), (2, "bc"), (0, "")])
def test_others_take_nothing_that_is_within_min(
    make_world: MakeWorld, least: int, left: str
) -> None:
    world, user = shared(make_world, 5, min=least)
    for number in range(20):
        kept(world, user, f"/flood/more{number}")
    assert calm(user) == left


def test_one_write_of_many_payloads_takes_no_more_than_is_above_min(make_world: MakeWorld) -> None:
    _, user = shared(make_world, 6, min=2)
    user.blob("/flood/large", bytes(3 * PAGED))
    assert calm(user) == "bc"


def test_a_write_is_refused_before_it_takes_what_is_within_min(make_world: MakeWorld) -> None:
    _, user = shared(make_world, 3, min=3)
    user.fails(c.CreateCube(name="/flood/x", size_bytes=PAGED), Errno.ENOSPC)
    assert calm(user) == "abc"


def test_what_is_within_min_goes_for_its_own_groups_sake(make_world: MakeWorld) -> None:
    world, user = shared(make_world, 3, min=3)
    kept(world, user, "/calm/d")
    assert calm(user) == "bcd"


def test_what_is_within_low_goes_when_nothing_else_can(make_world: MakeWorld) -> None:
    _, user = shared(make_world, 5, low=3)
    user.blob("/flood/2", bytes(PAGED))
    user.blob("/flood/3", bytes(PAGED))
    assert calm(user) == "abc"
    user.blob("/flood/4", bytes(PAGED))
    assert calm(user) == "bc"


def test_a_group_above_its_high_goes_first(make_world: MakeWorld) -> None:
    world, user = shared(make_world, 5, high=2)
    for name in "abc":  # now they are the last in the order
        user.read(f"/calm/{name}")
        user.call(c.Evict(name=f"/calm/{name}"))
        world.clock.advance(1000)
    user.blob("/flood/2", bytes(PAGED))
    user.blob("/flood/3", bytes(PAGED))
    assert calm(user) == "bc"
