"""What stands on another payload: mapped with it, gone with it, and never left half way."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_CHAIN_MAX
from libmem.abi.structs import EventKind, Governance, Usage
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.kv import GRAIN, MODEL, OTHER_MODEL, fields_of, find, kv, part, write
from tests.kernel.world import KIB, Client, Pending, World

TOKENS = list(range(4 * GRAIN))
ROOT, MIDDLE, LEAF = TOKENS[:GRAIN], TOKENS[: 2 * GRAIN], TOKENS[: 3 * GRAIN]
MS_NS = 1_000_000
WHOLE = c.MmapCube("/n/leaf", is_whole=True)


@pytest.fixture
def chain(user: Client) -> Client:
    """The owner of a root, a middle and a leaf."""
    write(user, "/n/root", ROOT)
    user.world.clock.advance(MS_NS)  # so that their ids are in this order, too
    part(user, "/n/middle", MIDDLE, "/n/root")
    user.world.clock.advance(MS_NS)
    part(user, "/n/leaf", LEAF, "/n/middle")
    return user


def start_write(user: Client, name: str, tokens: list[int], *parents: str) -> Pending:
    """A paged cube, behind the first grain where it has a parent, up to its first wait."""
    header, payload = kv(tokens, GRAIN if parents else 0)
    request = c.WriteCube(name=name, payload=payload, parents=parents, **fields_of(header))
    return user.start(request)


# -- mapping -------------------------------------------------------------------------------------


def test_a_part_maps_with_what_it_stands_on(world: World, chain: Client) -> None:
    ids = {name: chain.stat(f"/n/{name}").id for name in ("middle", "root")}
    reply = chain.call(c.MmapCube("/n/leaf", model=MODEL, is_whole=True))
    assert [base.id for base in reply.bases] == [ids["middle"], ids["root"]]
    assert len(world.gate.bases[chain.session.number, reply.handle]) == 2
    chain.fails(c.Evict("/n/root"), Errno.EBUSY)
    chain.call(c.MunmapCube(reply.handle))
    chain.call(c.Evict("/n/root"))
    assert chain.call(c.MmapCube("/n/leaf")).bases == (), "only where it is asked for"


def test_a_pin_holds_all_parts_in_ram(chain: Client) -> None:
    handle = chain.call(c.PinCube("/n/leaf")).handle
    for name in ("root", "middle", "leaf"):
        assert chain.stat(f"/n/{name}").pins == 1
        chain.fails(c.Evict(f"/n/{name}"), Errno.EBUSY)
    chain.call(c.UnpinCube(handle))
    assert [chain.stat(f"/n/{name}").pins for name in ("root", "middle", "leaf")] == [0, 0, 0]


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("errno", [Errno.EIO, Errno.ECORRUPT])
def test_a_part_that_cannot_be_read_leaves_nothing_held(
    world: World, chain: Client, nth: int, errno: Errno
) -> None:
    for name in ("root", "middle", "leaf"):
        chain.call(c.Evict(f"/n/{name}"))
    world.plan.fail("load", errno, nth)
    chain.fails(WHOLE, errno)
    assert [r for r in world.kernel.parts.residents if r.is_held] == []
    if errno is Errno.EIO:
        chain.call(WHOLE)


def test_what_does_not_fit_into_ram_as_a_whole_leaves_nothing_held(
    make_world: MakeWorld,
) -> None:
    world = make_world(ram_budget_bytes=24 * KIB)
    user = world.client()
    user.make("/n")
    write(user, "/n/root", ROOT)
    part(user, "/n/middle", MIDDLE, "/n/root")
    part(user, "/n/leaf", LEAF, "/n/middle")
    user.fails(WHOLE, Errno.ENOMEM)
    assert [r for r in world.kernel.parts.residents if r.is_held] == []
    user.call(c.MmapCube("/n/middle", is_whole=True))


def test_a_session_that_ends_while_parts_are_read_holds_nothing(
    world: World, chain: Client
) -> None:
    for name in ("root", "leaf"):
        chain.call(c.Evict(f"/n/{name}"))
    pending = chain.start(WHOLE)
    world.io.finish("load")
    assert not pending.is_answered
    chain.die()
    world.settle()
    pending.failure(Errno.ECANCELED)
    assert [r for r in world.kernel.parts.residents if r.is_held] == []


def test_descriptors_that_cannot_be_sent_are_given_back(world: World, chain: Client) -> None:
    world.gate.failure = MemError(Errno.EAGAIN, "full")
    chain.fails(WHOLE, Errno.EAGAIN)
    world.gate.failure = None
    assert chain.session.handles == {}
    assert [r for r in world.kernel.parts.residents if r.is_held] == []


def test_a_chain_that_goes_while_it_is_read_is_not_there(world: World, chain: Client) -> None:
    chain.call(c.Evict("/n/root"))
    pending = chain.start(WHOLE)
    other = world.client()
    unlinked = other.start(c.UnlinkCube("/n/root"))
    world.settle()
    assert unlinked.result().dependents == 2
    pending.failure(Errno.ENOENT)
    assert len(world.kernel.parts.residents) == 0


def test_the_model_is_checked_again_when_the_name_means_another_cube(
    world: World, user: Client
) -> None:
    write(user, "/n/a", ROOT)
    user.call(c.Evict("/n/a"))
    pending = user.start(c.MmapCube("/n/a", model=MODEL))
    header, payload = kv(ROOT, model=OTHER_MODEL)
    user.start(c.WriteCube(name="/n/a", payload=payload, **fields_of(header)))
    while world.io.names().count("load") and len(world.io.jobs) > 1:
        world.io.finish_at(next(i for i, name in enumerate(world.io.names()) if name != "load"))
        world.kernel.turn()
    world.settle()
    pending.failure(Errno.EMODEL)
    assert [r for r in world.kernel.parts.residents if r.is_held] == []


def test_an_unlinked_chain_stays_with_who_mapped_it(world: World, chain: Client) -> None:
    reply = chain.call(WHOLE)
    assert chain.unlink("/n/root").dependents == 2
    assert len(world.kernel.parts.residents) == 3, "orphans, until the last lets go"
    assert chain.usage("/n").usage.cubes == 0
    world.gate.close(chain.session.number, reply.handle)
    chain.call(c.MunmapCube(reply.handle))
    assert len(world.kernel.parts.residents) == 0
    assert chain.usage("/n").usage == Usage()


# -- a base that changes while a part is written --------------------------------------------------


@pytest.mark.parametrize("steps", range(4))
def test_a_base_that_is_unlinked_meanwhile(world: World, user: Client, steps: int) -> None:
    write(user, "/n/root", ROOT)
    pending = start_write(user, "/n/part", MIDDLE, "/n/root")
    for _ in range(steps):
        world.kernel.turn()
        if world.io.jobs:
            world.io.finish_at(0)
    user.call(c.UnlinkCube("/n/root"))
    world.settle()
    user.fails(c.StatCube("/n/part"), Errno.ENOENT)
    assert pending.errno() in (0, Errno.ENOENT)
    assert user.usage("/n").usage == Usage()


def test_a_base_that_expires_meanwhile(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + SECOND_NS)
    write(user, "/n/root", ROOT, governance=soon)
    pending = start_write(user, "/n/part", MIDDLE, "/n/root")
    world.clock.advance(SECOND_NS)
    world.settle()
    pending.failure(Errno.ENOENT)
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.usage("/n").usage == Usage()


def test_a_base_that_is_overwritten_meanwhile_is_another_one(world: World, user: Client) -> None:
    write(user, "/n/root", ROOT)
    pending = start_write(user, "/n/part", MIDDLE, "/n/root")
    write(user, "/n/root", [9, *ROOT[1:]])
    world.settle()
    if pending.errno() == 0:  # it was committed first, and stands on the first version
        assert find(user, MIDDLE) == ("/n/part", 2 * GRAIN)
    else:
        pending.failure(Errno.ENOENT)
    start_write(user, "/n/again", MIDDLE, "/n/root@v1")
    world.settle()
    assert find(user, MIDDLE)[1] == 2 * GRAIN


def test_a_base_that_moves_meanwhile_is_gone_by_its_name(world: World, user: Client) -> None:
    write(user, "/n/root", ROOT)
    pending = start_write(user, "/n/part", MIDDLE, "/n/root")
    user.call(c.RenameCube("/n/root", "/n/moved"))
    world.settle()
    assert pending.errno() in (0, Errno.ENOENT)
    start_write(user, "/n/part", MIDDLE, "/n/moved")
    world.settle()
    assert find(user, MIDDLE) == ("/n/part", 2 * GRAIN)


def test_a_chain_is_made_of_so_many_parts_at_most(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=512 * KIB)
    user = world.client()
    user.make("/n")
    tokens = list(range((KV_CHAIN_MAX + 1) * GRAIN))
    write(user, "/n/1", tokens[:GRAIN])
    for number in range(2, KV_CHAIN_MAX + 1):
        part(user, f"/n/{number}", tokens[: number * GRAIN], f"/n/{number - 1}")
    reply = user.call(c.MmapCube(f"/n/{KV_CHAIN_MAX}", is_whole=True))
    assert len(reply.bases) == KV_CHAIN_MAX - 1
    header, payload = kv(tokens, KV_CHAIN_MAX * GRAIN)
    request = c.WriteCube(
        name="/n/over", payload=payload, parents=(f"/n/{KV_CHAIN_MAX}",), **fields_of(header)
    )
    user.fails(request, Errno.EINVAL)
    world.crash()
    again = world.client()
    assert find(again, tokens)[1] in (0, KV_CHAIN_MAX * GRAIN)


# -- versions and names ---------------------------------------------------------------------------


def test_an_overwritten_base_keeps_its_parts_until_it_is_pruned(user: Client) -> None:
    write(user, "/n/root", ROOT)
    part(user, "/n/part", MIDDLE, "/n/root")
    write(user, "/n/root", [7])
    assert find(user, MIDDLE) == ("/n/part", 2 * GRAIN)
    reply = user.call(c.MmapCube("/n/part", is_whole=True))
    assert [base.version for base in reply.bases] == [1]
    assert user.unlink("/n/root@v1") == c.UnlinkReply(
        freed_bytes=user_charge(user, "/n/root"), versions=1, dependents=1
    )
    user.fails(c.StatCube("/n/part"), Errno.ENOENT)
    assert find(user, [7]) == ("/n/root", 1)


def user_charge(user: Client, name: str) -> int:
    """What a version of the same shape costs: all that its namespace holds, where alone."""
    used = user.usage("/n").usage.disk_bytes
    assert user.usage("/n").usage.cubes == 1, name
    return used


def test_a_new_header_changes_nothing_of_what_stands_where(world: World, chain: Client) -> None:
    for name in ("root", "middle"):
        kept = {**chain.stat(f"/n/{name}").attributes, "note": 1}
        chain.call(c.SetHeader(f"/n/{name}", attributes=kept))
    chain.unlink("/n/root@v1")
    assert find(chain, LEAF) == ("/n/leaf", 3 * GRAIN)
    reply = chain.call(WHOLE)
    assert [base.version for base in reply.bases] == [2, 2]
    chain.call(c.MunmapCube(reply.handle))
    chain.call(c.Sync())
    world.crash()
    again = world.client()
    assert find(again, LEAF) == ("/n/leaf", 3 * GRAIN)
    assert again.unlink("/n/root").dependents == 2
    assert again.usage("/n").usage == Usage()


def test_versions_that_stand_on_each_other_over_two_cubes(user: Client) -> None:
    write(user, "/n/a", ROOT)
    part(user, "/n/b", MIDDLE, "/n/a")
    write(user, "/n/a", LEAF, 2 * GRAIN, parents=("/n/b",))
    assert find(user, LEAF) == ("/n/a", 3 * GRAIN)
    user.unlink("/n/b")
    assert user.stat("/n/a").version == 1, "the version that stood on it went"
    part(user, "/n/b", MIDDLE, "/n/a")
    write(user, "/n/a", LEAF, 2 * GRAIN, parents=("/n/b",))
    assert user.unlink("/n/a").dependents == 1
    assert user.usage("/n").usage == Usage()


def test_an_older_version_comes_back_where_only_the_newest_falls(user: Client) -> None:
    write(user, "/n/root", ROOT)
    write(user, "/n/a", [5, 6])
    part(user, "/n/a", MIDDLE, "/n/root")
    part(user, "/n/a", MIDDLE[:-1], "/n/root")
    since = user.call(c.Watch("/n")).next_seq
    assert user.unlink("/n/root").dependents == 1
    events = user.call(c.Watch("/n", since_seq=since)).events
    assert [(e.kind, e.name) for e in events] == [
        (EventKind.UNLINK, "/n/root"),
        (EventKind.LOSE, "/n/a"),
    ]
    stat = user.stat("/n/a")
    assert (stat.version, stat.latest_version) == (1, 1)
    assert find(user, MIDDLE) == ("", 0)
    assert find(user, [5, 6]) == ("/n/a", 2)


@pytest.mark.parametrize("name", ["root", "leaf"])
def test_what_moves_is_found_and_charged_where_it_went(chain: Client, name: str) -> None:
    chain.make("/m")
    before = chain.usage("/n").usage.disk_bytes
    chain.call(c.RenameCube(f"/n/{name}", f"/m/{name}"))
    moved = chain.usage("/m").usage
    assert moved.cubes == 1
    assert before == chain.usage("/n").usage.disk_bytes + moved.disk_bytes
    tokens = ROOT if name == "root" else LEAF
    assert find(chain, tokens, under="/m") == (f"/m/{name}", len(tokens))
    assert find(chain, LEAF)[1] == 3 * GRAIN
    reply = chain.call(c.MmapCube(find(chain, LEAF)[0], is_whole=True))
    assert len(reply.bases) == 2
    chain.unlink("/m/root" if name == "root" else "/n/root")
    assert chain.usage("/m").usage.cubes == chain.usage("/n").usage.cubes == 0


def test_a_move_that_is_not_committed_did_not_happen(world: World, chain: Client) -> None:
    chain.make("/m")
    world.store.fail_commit(Errno.EIO)
    chain.fails(c.RenameCube("/n/root", "/m/root"), Errno.EIO)
    assert find(chain, ROOT) == ("/n/root", GRAIN)
    assert find(chain, ROOT, under="/m") == ("", 0)
    chain.call(c.RenameCube("/n/root", "/m/root"))
    assert find(chain, ROOT, under="/m") == ("/m/root", GRAIN)


def test_a_rename_onto_the_expired_base_of_the_same_cube(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + SECOND_NS)
    write(user, "/n/root", ROOT, governance=soon)
    part(user, "/n/part", MIDDLE, "/n/root")
    world.clock.advance(SECOND_NS)
    user.fails(c.RenameCube("/n/part", "/n/root"), Errno.ENOENT)
    assert user.usage("/n").usage == Usage()


def test_a_rename_of_a_version_that_falls_on_the_way(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + SECOND_NS)
    write(user, "/n/root", ROOT, governance=soon)
    write(user, "/n/part", [5, 6])
    part(user, "/n/part", MIDDLE, "/n/root")
    world.clock.advance(SECOND_NS)
    user.fails(c.RenameCube("/n/part", "/n/root", expected_version=2), Errno.EVERSION)
    assert user.call(c.RenameCube("/n/part", "/n/root", expected_version=1)).version == 1
    assert find(user, [5, 6]) == ("/n/root", 2)


def test_an_expired_base_takes_its_parts_with_it(world: World, chain: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + SECOND_NS)
    chain.call(c.SetHeader("/n/root", governance=soon))
    world.clock.advance(SECOND_NS)
    chain.fails(WHOLE, Errno.ENOENT)
    assert find(chain, LEAF) == ("", 0), "not swept, and yet gone"
    header, payload = kv(LEAF, 2 * GRAIN)
    on_it = c.WriteCube(name="/n/x", payload=payload, parents=("/n/middle",), **fields_of(header))
    chain.fails(on_it, Errno.ENOENT)
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert chain.usage("/n").usage == Usage()
    assert len(world.kernel.parts.residents) == 0
