"""The policy in charge: counted, and replaced while the daemon runs, with everybody in place."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Governance
from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Entry
from memosd.kernel.policies.table import POLICIES
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import PAGED, Client, World, in_ram


def test_hits_faults_and_evictions_are_counted(small: World, owner: Client) -> None:
    owner.blob("/n/a", bytes(PAGED))
    owner.read("/n/a")
    owner.mapped("/n/a")
    owner.call(c.Evict("/n/a"))
    owner.read("/n/a")
    stat = owner.call(c.Info()).reclaim
    assert (stat.name, stat.configured, stat.known) == ("lru", "lru", tuple(POLICIES))
    assert (stat.hits, stat.faults, stat.evictions) == (2, 1, 1)


@pytest.mark.parametrize("name", list(POLICIES))
def test_the_order_is_taken_over(small: World, owner: Client, name: str) -> None:
    for each in "abc":
        owner.blob(f"/n/{each}", bytes(PAGED))
    owner.blob("/n/d", bytes(PAGED), governance=Governance(priority=10))
    owner.read("/n/a")
    pin = owner.call(c.PinCube("/n/b")).handle
    before = list(
        small.kernel.parts.residents.victims(small.kernel.parts.residents.account.groups())
    )
    stat = small.root.call(c.SetPolicy(name))
    assert (stat.name, stat.hits, stat.faults, stat.evictions) == (name, 0, 0, 0)
    assert stat.since_ns == small.clock.wall_ns()
    residents = small.kernel.parts.residents
    after = list(residents.victims(residents.account.groups()))
    assert {each.key for each in after} == {each.key for each in before}, "b is held"
    if name == "lru":
        assert after == before
    for each in "ef":
        owner.blob(f"/n/{each}", bytes(PAGED))
    assert "b" in in_ram(owner, "abcdef"), "what is held stays held"
    owner.call(c.UnpinCube(pin))


def test_a_change_is_told(small: World, owner: Client) -> None:
    small.root.call(c.SetPolicy("lru"))
    name, decision = owner.call(c.Log()).decisions[0]
    assert (name, decision.action) == ("/", "policy")
    assert "lru" in decision.reason


def test_the_next_start_takes_the_configured_one(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Lru):
        name = "other"

    monkeypatch.setitem(POLICIES, "other", Other)
    world = make_world()
    world.root.call(c.SetPolicy("other"))
    assert world.root.call(c.Info()).policy == "other"
    world.crash()
    assert world.root.call(c.Info()).policy == "lru"


def test_orphans_stay_out_of_it(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    handle = user.call(c.PinCube("/n/a")).handle
    user.unlink("/n/a")
    world.root.call(c.SetPolicy("lru"))
    user.call(c.UnpinCube(handle))
    assert len(world.kernel.parts.residents) == 0


def test_one_that_fails_meanwhile_is_replaced_and_the_next_one_is_not_blamed(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch, surprises: list[object]
) -> None:
    class Broken(Lru):
        name = "broken"

        def insert(self, entry: Entry) -> None:
            raise RuntimeError("no")

    monkeypatch.setitem(POLICIES, "broken", Broken)
    user.blob("/n/a", bytes(PAGED))
    assert world.root.call(c.SetPolicy("broken")).name == "lru"
    assert any("broken" in notice for notice in user.call(c.Info()).notices)
    user.call(c.Evict("/n/a"))
    surprises.clear()
    world.root.call(c.SetPolicy("lru"))
    assert not any("broken" in notice for notice in user.call(c.Info()).notices)


def test_only_the_administrator_changes_it_to_what_there_is(world: World, user: Client) -> None:
    user.fails(c.SetPolicy("lru"), Errno.EPERM)
    error = world.root.fails(c.SetPolicy("no such"), Errno.EINVAL)
    assert "lru" in error.message
    error = world.root.fails(c.SetPolicy("x" * 1_000_000), Errno.EINVAL)
    assert len(error.message) < 200, "not all that was asked for is said again"
