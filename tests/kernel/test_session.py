"""Sessions: opened, bound, limited, ended, and all they held freed with them."""

from contextlib import suppress
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType
from memosd.kernel.wait import Completion
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import KIB, USER, Client, World

SIZE = 8 * KIB


@pytest.fixture
def holder(user: Client) -> Client:
    """A client that holds one of everything."""
    user.blob("/n/map", bytes(SIZE))
    user.blob("/n/pin", bytes(SIZE))
    user.call(c.MmapCube(name="/n/map"))
    user.call(c.PinCube(name="/n/pin"))
    user.call(c.CreateCube(name="/n/fill", size_bytes=SIZE))
    return user


def used_bytes(world: World) -> int:
    """RAM charged."""
    return world.kernel.parts.residents.account.used_bytes


# -- opening and binding -------------------------------------------------------------------------


def test_hello_tells_the_session_its_terms(world: World) -> None:
    client = Client(world, world.root.identity._replace(uid=USER, gid=5, pid=77))
    reply = client.hello()
    assert (reply.uid, reply.gid, reply.pid) == (USER, 5, 77)
    assert len(reply.token) == 16
    assert reply.inline_limit_bytes == world.parameters.inline_limit_bytes
    assert reply.call_by_value_bytes == world.parameters.call_by_value_bytes


def test_a_token_binds_its_own_process_only_and_once(world: World) -> None:
    client = Client(world, world.root.identity._replace(uid=USER, pid=77))
    token = client.hello(is_bound=False).token
    me = client.identity
    for other in (me._replace(pid=78), me._replace(uid=USER + 1)):
        assert world.kernel.bind(token, other) is None
    assert world.kernel.bind(token[:-1] + bytes([token[-1] ^ 1]), me) is None
    assert world.kernel.bind(b"", me) is None
    client.fails(c.Info(), Errno.EPROTO)
    assert world.kernel.bind(token, me) is client.session
    assert world.kernel.bind(token, me) is None
    client.call(c.Info())


def test_supplementary_groups_come_from_the_fd_road(world: World) -> None:
    client = Client(world, world.root.identity._replace(uid=USER, pid=77))
    token = client.hello(is_bound=False).token
    world.kernel.bind(token, client.identity._replace(groups=frozenset({42})))
    assert client.session.identity.groups == {42}
    assert not client.session.identity.is_admin


def test_an_administrator_is_who_the_parameters_name(make_world: MakeWorld) -> None:
    world = make_world(admin_uids=frozenset({0, 501}))
    assert world.client(501).session.identity.is_admin
    assert world.client(0).session.identity.is_admin
    assert not world.client(502).session.identity.is_admin


def test_a_session_whose_token_never_comes_ends(world: World) -> None:
    late = Client(world, world.root.identity._replace(pid=77))
    token = late.hello(is_bound=False).token
    world.pass_time(world.parameters.bind_timeout_ns - 1)
    late.fails(c.Info(), Errno.EPROTO)
    world.pass_time(1)
    late.fails(c.Info(), Errno.ESTALE)
    assert world.kernel.bind(token, late.identity) is None


def test_a_bound_session_outlives_the_time_to_bind(world: World, user: Client) -> None:
    world.pass_time(10 * world.parameters.bind_timeout_ns)
    user.call(c.Info())


def test_hello_on_the_same_connection_starts_over(world: World, holder: Client) -> None:
    old = holder.session
    sessions = len(world.kernel.sessions)
    holder.hello()
    assert old.is_ended
    assert old.handles == {}
    assert holder.session is not old
    assert len(world.kernel.sessions) == sessions


# -- limits --------------------------------------------------------------------------------------


def test_sessions_are_limited_in_all_and_for_each_user(make_world: MakeWorld) -> None:
    world = make_world(sessions=4, sessions_per_uid=2)  # the administrator's is one
    first = world.client(USER)
    world.client(USER)
    third = Client(world, first.identity._replace(pid=9))
    third.fails(c.Hello(client="x"), Errno.EMFILE)
    world.client(USER + 1)
    stranger = Client(world, first.identity._replace(uid=USER + 2, pid=10))
    stranger.fails(c.Hello(client="x"), Errno.EMFILE)
    first.die()
    stranger.hello()


def test_handles_are_limited(make_world: MakeWorld) -> None:
    world = make_world(handles_per_session=3, pins_per_session=1)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(SIZE))
    user.call(c.PinCube(name="/n/a"))
    user.fails(c.PinCube(name="/n/a"), Errno.EMFILE)
    handles = [user.call(c.MmapCube(name="/n/a")).handle for _ in range(2)]
    user.fails(c.MmapCube(name="/n/a"), Errno.EMFILE)
    user.fails(c.CreateCube(name="/n/b", size_bytes=1), Errno.EMFILE)
    user.call(c.MunmapCube(handle=handles[0]))
    user.call(c.CreateCube(name="/n/b", size_bytes=1))


def test_calls_under_way_together_do_not_pass_the_limit_either(make_world: MakeWorld) -> None:
    world = make_world(pins_per_session=2)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(SIZE))
    user.call(c.Evict(name="/n/a"))
    pending = [user.start(c.PinCube(name="/n/a")) for _ in range(4)]
    world.settle()
    outcomes = []
    for call in pending:
        try:
            outcomes.append(call.result().handle)
        except MemError as error:
            outcomes.append(error.errno)
    assert outcomes.count(Errno.EMFILE) == 2
    assert len(user.session.handles) == 2
    assert user.stat("/n/a").pins == 2


# -- listed --------------------------------------------------------------------------------------


def test_a_session_is_listed_with_what_it_holds(world: World, holder: Client) -> None:
    world.clock.advance(KIB)
    late = world.client()
    late.call(c.PinCube(name="/n/pin"))
    late.call(c.PinCube(name="/n/pin"))
    waiting = late.start(c.Watch(timeout_ms=1000))
    first, second = holder.call(c.ListSessions()).sessions
    assert (first.number, first.pid) == (holder.session.number, holder.identity.pid)
    assert (first.uid, first.gid, first.client, first.is_bound) == (USER, USER, "test", True)
    assert (first.maps, first.pins, first.fills, first.pinned_bytes) == (1, 1, 1, SIZE)
    assert (first.calls, second.calls) == (0, 1)
    assert second.since_ns == first.since_ns + KIB == world.clock.wall_ns()
    assert (second.pins, second.pinned_bytes) == (2, SIZE), "it is one payload"
    late.die()
    world.settle()
    assert waiting.is_answered
    assert len(holder.call(c.ListSessions()).sessions) == 1


def test_others_sessions_are_the_administrators_to_see(world: World, user: Client) -> None:
    stranger = world.client(2000)
    unbound = Client(world, stranger.identity._replace(pid=99))
    unbound.hello(is_bound=False)
    assert {each.uid for each in user.call(c.ListSessions()).sessions} == {USER}
    mine = stranger.call(c.ListSessions()).sessions
    assert [(each.pid, each.is_bound) for each in mine] == [
        (stranger.identity.pid, True),
        (99, False),
    ]
    everyone = world.root.call(c.ListSessions()).sessions
    assert len(everyone) == world.root.call(c.Info()).sessions == 4


def test_sessions_are_listed_page_by_page(world: World) -> None:
    clients = [world.client() for _ in range(4)]
    found: list[int] = []
    after = 0
    while True:
        reply = clients[0].call(c.ListSessions(after=after, limit=3))
        found += [each.number for each in reply.sessions]
        after = reply.next_after
        if not after:
            break
    assert found == [client.session.number for client in clients]
    for limit in (0, 1001):
        clients[0].fails(c.ListSessions(limit=limit), Errno.EINVAL)


# -- handles -------------------------------------------------------------------------------------


def test_a_handle_is_good_for_its_kind_its_session_and_once(world: World, holder: Client) -> None:
    by_kind = {handle.kind: number for number, handle in holder.session.handles.items()}
    other = world.client()
    uses = {
        "map": c.MunmapCube(handle=by_kind["map"]),
        "pin": c.UnpinCube(handle=by_kind["pin"]),
        "fill": c.AbortCube(handle=by_kind["fill"]),
    }
    for kind, request in uses.items():
        for wrong in by_kind.keys() - {kind}:
            holder.fails(type(request)(handle=by_kind[wrong]), Errno.EBADF)
        other.fails(request, Errno.EBADF)
        holder.fails(type(request)(handle=-1), Errno.EBADF)
        holder.call(request)
        holder.fails(request, Errno.EBADF)
    other.fails(c.SealCube(handle=by_kind["fill"]), Errno.EBADF)
    assert holder.session.handles == {}


# -- the end -------------------------------------------------------------------------------------


def test_death_frees_maps_pins_and_fills(world: World, holder: Client) -> None:
    assert used_bytes(world) == 3 * SIZE
    holder.die()
    world.settle()
    assert used_bytes(world) == 2 * SIZE, "the memory being filled is given back"
    other = world.client()
    for name in ("/n/map", "/n/pin"):
        stat = other.stat(name)
        assert (stat.maps, stat.pins) == (0, 0)
        assert other.call(c.Evict(name=name)).freed_bytes == SIZE
    other.fails(c.StatCube(name="/n/fill"), Errno.ENOENT)


def test_death_frees_only_what_the_dead_held(world: World, holder: Client) -> None:
    other = world.client()
    other.call(c.MmapCube(name="/n/map"))
    other.call(c.PinCube(name="/n/map"))
    holder.die()
    assert (other.stat("/n/map").maps, other.stat("/n/map").pins) == (1, 1)
    other.fails(c.Evict(name="/n/map"), Errno.EBUSY)


def test_the_end_comes_once(world: World, holder: Client) -> None:
    holder.die()
    world.kernel.gone(holder.session)
    world.settle()
    assert used_bytes(world) == 2 * SIZE


@pytest.mark.parametrize("how_far", range(6))
@pytest.mark.parametrize("kind", ["create", "mmap", "pin", "read", "seal", "write"])
def test_death_in_the_middle_of_a_call_leaves_nothing_behind(
    make_world: MakeWorld, kind: str, how_far: int
) -> None:
    world = make_world(ram_budget_bytes=4 * SIZE)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(SIZE))
    # RAM is full of dirty payloads: whoever needs room waits for write-back first.
    for number in range(3):
        user.blob(f"/n/{number}", bytes(SIZE), durability="cache")
    handle = 0
    if kind == "seal":
        handle = user.call(c.CreateCube(name="/n/new", size_bytes=SIZE)).handle
    else:
        user.call(c.Evict(name="/n/a"))
        user.blob("/n/3", bytes(SIZE), durability="cache")
    requests: dict[str, c.Call[Any]] = {
        "create": c.CreateCube(name="/n/new", size_bytes=2 * SIZE),
        "mmap": c.MmapCube(name="/n/a"),
        "pin": c.PinCube(name="/n/a"),
        "read": c.ReadCube(name="/n/a"),
        "seal": c.SealCube(handle=handle),
        "write": c.WriteCube(name="/n/new", payload=bytes(SIZE), type=CubeType.BLOB),
    }
    pending = user.start(requests[kind])
    for _ in range(how_far):
        if world.io.jobs:
            world.io.finish_at(0)
    user.die()
    world.settle()
    # Whoever still listens on the control road hears the end of it.
    with suppress(MemError):
        pending.result()
    assert user.session.handles == {}
    assert world.kernel.parts.residents.held_bytes() == 0
    other = world.client()
    for cube in other.call(c.Readdir(path="/n")).entries:
        assert other.read(cube.name) == bytes(SIZE)


@pytest.mark.parametrize("kind", [c.MmapCube, c.PinCube, c.CreateCube])
def test_a_call_that_its_session_did_not_outlive_says_so(
    make_world: MakeWorld, kind: type[c.Call[Any]]
) -> None:
    world = make_world(ram_budget_bytes=SIZE)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(SIZE))
    user.blob("/n/dirty", bytes(SIZE), durability="cache")  # who needs room waits
    is_new = kind is c.CreateCube
    pending = user.start(kind(name="/n/b", size_bytes=SIZE) if is_new else kind(name="/n/a"))
    assert not pending.is_answered
    user.die()
    world.settle()
    pending.failure(Errno.ECANCELED)


def test_a_client_that_does_not_read_its_descriptors_is_told_and_holds_nothing(
    world: World, user: Client
) -> None:
    user.blob("/n/a", bytes(SIZE))
    world.gate.failure = MemError(Errno.EAGAIN, "does not read")
    user.fails(c.MmapCube(name="/n/a"), Errno.EAGAIN)
    user.fails(c.CreateCube(name="/n/b", size_bytes=SIZE), Errno.EAGAIN)
    assert user.session.handles == {}
    assert used_bytes(world) == SIZE
    world.gate.failure = None
    user.call(c.MmapCube(name="/n/a"))


def test_the_calls_of_a_session_that_wait_have_a_limit(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(SIZE))
    user.call(c.Evict(name="/n/a"))
    waiting = [user.start(c.ReadCube(name="/n/a")) for _ in range(256)]
    refused = user.start(c.ReadCube(name="/n/a"))
    assert "256 calls" in refused.failure(Errno.EAGAIN).message
    assert user.start(c.Info()).result().sessions == 2  # what does not wait is let in
    other = world.client(USER).start(c.StatNamespace(name="/n"))
    assert other.is_answered
    world.settle()
    assert {pending.errno() for pending in waiting} == {0}
    assert user.read("/n/a") == bytes(SIZE)


def test_the_end_of_a_session_hangs_up(world: World, user: Client) -> None:
    hung_up: list[int] = []
    session = user.session
    session.hang_up = lambda: hung_up.append(session.number)
    user.hello()  # the same connection starts over
    assert hung_up == [session.number]
    world.kernel.gone(session)
    assert hung_up == [session.number]


def test_the_orderly_end_waits_for_what_is_under_way(world: World, user: Client) -> None:
    handle = user.call(c.CreateCube(name="/n/a", size_bytes=SIZE)).handle
    user.blob("/n/dirty", bytes(SIZE), durability="cache")
    sealed = user.start(c.SealCube(handle=handle))
    written = user.start(c.WriteCube(name="/n/b", payload=b"x"))
    hashing = world.io.find("hash")
    world.io.jobs.remove(hashing)
    done: Completion[None] = world.stop()
    assert not done.is_done, "a call is still under way"
    world.io.jobs.append(hashing)
    world.settle()
    done.result()
    assert sealed.result().version == 1
    assert written.result().version == 1
    world.crash()
    client = world.client()
    assert client.read("/n/a") == bytes(SIZE)
    assert client.read("/n/b") == b"x"
    assert client.read("/n/dirty") == bytes(SIZE), "written back in the end"
