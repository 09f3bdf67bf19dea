"""One reclaim of much takes no more of a group than what it holds above its limits."""

from libmem.abi import calls as c
from libmem.abi.control import Limits, TierLimits
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import PAGED, Client, World


def shared(make_world: MakeWorld, **changes: int | float) -> tuple[World, Client]:
    """RAM for 6 payloads: 4 in /calm, of which 3 are protected, and 2 pinned ones in /n."""
    world = make_world(ram_budget_bytes=6 * PAGED, writeback_delay_ns=SECOND_NS, **changes)
    user = world.client()
    for name in ("/calm", "/n"):
        user.make(name)
    world.root.call(c.SetLimits("/calm", Limits(TierLimits(3 * PAGED))))
    for number in range(4):
        user.blob(f"/calm/{number}", bytes(PAGED))
    for name in ("/n/a", "/n/b"):
        user.blob(name, bytes(PAGED))
        user.call(c.PinCube(name=name))
    return world, user


def calm(user: Client) -> int:
    return sum("ram" in user.stat(f"/calm/{number}").tiers for number in range(4))


def test_one_large_payload_takes_only_what_is_above_min(make_world: MakeWorld) -> None:
    world, user = shared(make_world)
    world.pass_time(2 * SECOND_NS)
    user.start(c.CreateCube(name="/n/large", size_bytes=3 * PAGED))
    world.settle()
    assert calm(user) == 3


def test_memory_on_its_way_back_is_not_counted_twice(make_world: MakeWorld) -> None:
    world, user = shared(make_world, free_at_once_bytes=0)
    world.pass_time(2 * SECOND_NS)
    for number in (1, 2):
        user.start(c.CreateCube(name=f"/n/{number}", size_bytes=number * PAGED))
    world.settle()
    assert calm(user) == 3


def test_the_background_takes_only_what_is_above_min(make_world: MakeWorld) -> None:
    world, user = shared(make_world)
    world.pass_time(2 * SECOND_NS)
    account = world.kernel.parts.residents.account
    account.budget.aim(4 * PAGED, account.used_bytes)
    world.kernel.reclaim.balance()
    world.settle()
    assert calm(user) == 3
