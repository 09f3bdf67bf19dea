"""Pins and mappings: who holds what, up to which ceiling, and all of it gone with the client."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Governance
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import PAGED, USER, Client, World


def filled(world: World, names: str = "abcd") -> Client:
    """A client with paged cubes `/n/a`, ... that others may read."""
    user = world.client()
    user.make("/n", mode=0o755)
    for name in names:
        user.blob(f"/n/{name}", bytes(PAGED), governance=Governance(mode=0o644))
    return user


# -- ceilings ------------------------------------------------------------------------------------


def test_a_session_pins_up_to_its_ceiling(make_world: MakeWorld) -> None:
    world = make_world(pins_per_session_bytes=2 * PAGED)
    user = filled(world)
    handles = [user.call(c.PinCube(f"/n/{name}")).handle for name in "ab"]
    user.call(c.PinCube("/n/a"))  # pinned already: it costs nothing
    error = user.fails(c.PinCube("/n/c"), Errno.EDQUOT)
    assert error.detail == {"need_bytes": PAGED, "free_bytes": 0, "pinned_bytes": 2 * PAGED}
    assert user.stat("/n/c").pins == 0
    world.client().call(c.PinCube("/n/c"))
    user.call(c.UnpinCube(handles[1]))
    user.call(c.PinCube("/n/d"))
    user.call(c.MmapCube("/n/b"))  # no pin


def test_the_sessions_of_a_user_share_its_part_of_ram(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 * PAGED, pin_share_per_uid=0.5)
    user = filled(world)
    other, stranger = world.client(), world.client(2000)
    user.call(c.PinCube("/n/a"))
    other.call(c.PinCube("/n/a"))  # of one user it counts once
    other.call(c.PinCube("/n/b"))
    error = user.fails(c.PinCube("/n/c"), Errno.EDQUOT)
    assert f"uid {USER}" in error.message
    stranger.call(c.PinCube("/n/c"))
    other.die()
    world.settle()
    user.call(c.PinCube("/n/d"))


def test_what_does_not_fit_is_not_even_loaded(make_world: MakeWorld) -> None:
    world = make_world(pins_per_session_bytes=1)
    user = filled(world, "a")
    user.call(c.Evict("/n/a"))
    user.fails(c.PinCube("/n/a"), Errno.EDQUOT)
    assert user.stat("/n/a").tiers == ("disk",)


def test_pins_under_way_together_do_not_pass_the_ceiling(make_world: MakeWorld) -> None:
    world = make_world(pins_per_session_bytes=PAGED)
    user = filled(world, "ab")
    for name in "ab":
        user.call(c.Evict(f"/n/{name}"))
    pending = [user.start(c.PinCube(f"/n/{name}")) for name in "ab"]
    world.settle()
    assert sorted(each.errno() for each in pending) == [0, Errno.EDQUOT]
    assert user.stat("/n/a").pins + user.stat("/n/b").pins == 1


# -- listed --------------------------------------------------------------------------------------


def test_pins_are_listed_with_who_and_since_when(world: World) -> None:
    user = filled(world)
    world.clock.advance(1000)
    pin = user.call(c.PinCube("/n/a")).handle
    world.clock.advance(1000)
    stranger = world.client(2000)
    stranger.call(c.PinCube("/n/b"))
    (mine,) = user.call(c.ListPins()).pins
    assert (mine.handle, mine.session) == (pin, user.session.number)
    assert (mine.uid, mine.pid, mine.client) == (USER, user.identity.pid, "test")
    assert (mine.name, mine.pinned_bytes) == ("/n/a", PAGED)
    assert mine.since_ns == world.clock.wall_ns() - 1000
    assert [each.name for each in world.root.call(c.ListPins()).pins] == ["/n/a", "/n/b"]
    user.die()
    world.settle()
    assert [each.name for each in world.root.call(c.ListPins()).pins] == ["/n/b"]
    stranger.die()
    world.settle()
    assert world.kernel.holdings._of_payload == {}
    assert world.kernel.holdings._pinned == {}


def test_what_may_not_be_read_any_more_has_no_name(world: World) -> None:
    user = filled(world, "ab")
    stranger = world.client(2000)
    for name in "ab":
        stranger.call(c.PinCube(f"/n/{name}"))
    user.unlink("/n/a")
    user.call(c.SetHeader("/n/b", governance=Governance(mode=0o600)))
    names = [each.name for each in stranger.call(c.ListPins()).pins]
    assert all(len(name) == 32 and "/" not in name for name in names)


def test_pins_are_listed_page_by_page(world: World) -> None:
    user = filled(world)
    handles = [user.call(c.PinCube(f"/n/{name}")).handle for name in "abcd"]
    first = user.call(c.ListPins(limit=3))
    assert [each.handle for each in first.pins] == handles[:3]
    last = user.call(c.ListPins(after=first.next_after, limit=3))
    assert ([each.handle for each in last.pins], last.next_after) == (handles[3:], 0)
    for limit in (0, 1001):
        user.fails(c.ListPins(limit=limit), Errno.EINVAL)


# -- explained -----------------------------------------------------------------------------------


def test_explain_tells_who_holds_it(world: World) -> None:
    user = filled(world, "a")
    stranger = world.client(2000)
    handle = user.call(c.PinCube("/n/a")).handle
    user.call(c.MmapCube("/n/a"))
    stranger.call(c.MmapCube("/n/a"))
    kinds = [(each.kind, each.uid) for each in user.call(c.Explain("/n/a")).holders]
    assert kinds == [("pin", USER), ("map", USER)], "of its own user"
    assert len(world.root.call(c.Explain("/n/a")).holders) == 3
    user.call(c.UnpinCube(handle))
    assert [each.kind for each in user.call(c.Explain("/n/a")).holders] == ["map"]
    user.die()
    stranger.die()
    assert world.root.call(c.Explain("/n/a")).holders == ()


def test_explain_tells_its_place_and_the_policys_numbers(small: World, owner: Client) -> None:
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    reply = owner.call(c.Explain("/n/b"))
    assert (reply.policy, reply.position) == ("lru", 2)
    assert reply.numbers.items() >= {"priority": 50, "uses_since": 1}.items()
    assert reply.since_ns == small.clock.wall_ns()
    owner.read("/n/a")
    assert owner.call(c.Explain("/n/b")).position == 1
    owner.call(c.PinCube("/n/b"))
    assert owner.call(c.Explain("/n/b")).position == 0, "held"
    owner.call(c.Evict("/n/c"))
    gone = owner.call(c.Explain("/n/c"))
    assert (gone.position, gone.numbers, gone.since_ns, gone.restore_s) == (0, {}, 0, 0.0)


def test_places_are_counted_up_to_a_bound(
    small: World, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memosd.kernel.syscalls.explain._PLACES_MAX", 2)
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    places = [owner.call(c.Explain(f"/n/{name}")).position for name in "abc"]
    assert places == [1, 2, -1]
