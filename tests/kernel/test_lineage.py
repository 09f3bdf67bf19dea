"""Lineage: what was derived from a changed, superseded or removed cube falls in the same commit."""

from typing import Any

import pytest
from msgspec.structs import replace

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.lineage import LineageEdge, Receipt
from libmem.abi.structs import CubeType, Descriptive, Durability, EventKind, Governance
from tests.kernel import kv
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import Client, World

STRANGER = 3000
DERIVED = {"derivation": {"recipe": "summary"}}


def derive(user: Client, name: str, *parents: str, **options: Any) -> c.WriteReply:
    """A durable text made from others."""
    options.setdefault("attributes", DERIVED)
    return user.call(c.WriteCube(name=name, payload=name.encode(), parents=parents, **options))


def cache(user: Client, name: str, *parents: str) -> c.WriteReply:
    """A cache cube: it can be made again."""
    return derive(user, name, *parents, durability=Durability.CACHE, type=CubeType.BLOB)


def is_there(user: Client, name: str) -> bool:
    listed = user.call(c.Readdir("/n", is_recursive=True)).entries
    return name in {entry.name for entry in listed}


def outdated(user: Client, name: str) -> bool:
    """Does it say so, and is it not handed out?"""
    stat = user.stat(name)
    if not stat.outdated:
        assert user.call(c.ReadCube(name=name)).payload
        return False
    user.fails(c.ReadCube(name=name), Errno.EOUTDATED)
    assert user.call(c.ReadCube(name=name, allow_outdated=True)).payload
    return True


def fallen(receipt: Receipt | None) -> dict[str, bool]:
    """Name -> is it removed?"""
    assert receipt is None or receipt.count == len(receipt.fallen)
    return {each.name: each.is_removed for each in receipt.fallen} if receipt else {}


def test_a_change_removes_caches_and_outdates_what_is_durable(world: World, user: Client) -> None:
    user.write("/n/a", b"one")
    cache(user, "/n/kv", "/n/a")
    derive(user, "/n/lora", "/n/a")
    reply = user.call(c.WriteCube(name="/n/a", payload=b"two"))
    assert fallen(reply.receipt) == {"/n/kv": True, "/n/lora": False}
    assert not is_there(user, "/n/kv")
    assert outdated(user, "/n/lora")
    kinds = {row.name: row.kind for row in user.call(c.Watch(since_seq=0)).events}
    assert kinds["/n/kv"] is EventKind.FALL
    assert kinds["/n/lora"] is EventKind.OUTDATE


@pytest.mark.parametrize("how", ["unlink", "expire", "supersede", "end"])
def test_whatever_ends_a_source_ends_what_came_from_it(
    world: World, user: Client, how: str
) -> None:
    expires_ns = world.clock.wall_ns() + SECOND_NS
    governance = Governance(expires_ns=expires_ns if how == "expire" else 0)
    user.call(c.WriteCube(name="/n/a", payload=b"one", governance=governance))
    cache(user, "/n/kv", "/n/a")
    derive(user, "/n/lora", "/n/a")
    receipt = None
    if how == "unlink":
        receipt = user.call(c.UnlinkCube("/n/a")).receipt
    elif how == "supersede":
        draft = c.WriteCube(name="/n/b", payload=b"two", supersedes=("/n/a",))
        receipt = user.call(draft).receipt
    elif how == "end":
        ended = Descriptive(valid_to_ns=world.clock.wall_ns())
        receipt = user.call(c.SetHeader("/n/a", descriptive=ended)).receipt
    else:
        world.clock.advance(2 * SECOND_NS)
        world.kernel.removal.expire()
        world.settle()
    assert how == "expire" or fallen(receipt) == {"/n/kv": True, "/n/lora": False}
    assert not is_there(user, "/n/kv")
    assert outdated(user, "/n/lora")


def test_it_goes_all_the_way_down(user: Client) -> None:
    user.write("/n/a", b"one")
    user.write("/n/other", b"one")
    derive(user, "/n/1", "/n/a")
    cache(user, "/n/2", "/n/1", "/n/other")
    derive(user, "/n/3", "/n/2")
    derive(user, "/n/4", "/n/other")
    assert fallen(user.call(c.WriteCube(name="/n/a", payload=b"two")).receipt) == {
        "/n/1": False,
        "/n/2": True,
        "/n/3": False,
    }
    assert outdated(user, "/n/1")
    assert outdated(user, "/n/3")
    assert not outdated(user, "/n/4")


def test_what_changes_nothing_of_the_source_leaves_all(user: Client) -> None:
    user.write("/n/a", b"one")
    derive(user, "/n/b", "/n/a")
    assert user.call(c.SetHeader("/n/a", descriptive=Descriptive(title="t"))).receipt is None
    user.call(c.RenameCube("/n/a", "/n/renamed"))
    assert not outdated(user, "/n/b")
    assert fallen(user.call(c.UnlinkCube("/n/renamed")).receipt) == {"/n/b": False}


def test_parents_without_a_derivation_are_provenance(user: Client) -> None:
    user.write("/n/a", b"one")
    derive(user, "/n/b", "/n/a", attributes={})
    assert user.call(c.UnlinkCube("/n/a")).receipt is None
    assert not outdated(user, "/n/b")


def test_a_new_version_made_from_what_holds_is_good_again(user: Client) -> None:
    user.write("/n/a", b"one")
    derive(user, "/n/b", "/n/a")
    user.write("/n/a", b"two")
    assert outdated(user, "/n/b")
    derive(user, "/n/b", "/n/a")
    assert not outdated(user, "/n/b")
    user.fails(c.ReadCube(name="/n/b@v1"), Errno.EOUTDATED)
    assert fallen(user.call(c.UnlinkCube("/n/a")).receipt) == {"/n/b": False}


def test_a_header_keeps_the_derivation(user: Client) -> None:
    user.write("/n/a", b"one")
    derive(user, "/n/b", "/n/a")
    user.fails(c.SetHeader("/n/b", attributes={}), Errno.EINVAL)
    more = {**DERIVED, "mine": 1}
    user.call(c.SetHeader("/n/b", attributes=more))
    user.write("/n/a", b"two")
    assert outdated(user, "/n/b")


# -- what nothing is made from -----------------------------------------------------------------


def test_only_what_holds_is_a_source(world: World, user: Client) -> None:
    user.write("/n/a", b"one")
    derive(user, "/n/b", "/n/a")
    user.write("/n/a", b"two")
    ended = Descriptive(valid_to_ns=world.clock.wall_ns())
    user.call(c.WriteCube(name="/n/ended", payload=b"x", descriptive=ended))
    later = Descriptive(valid_to_ns=world.clock.wall_ns() + SECOND_NS)
    user.call(c.WriteCube(name="/n/later", payload=b"x", descriptive=later))
    draft = c.WriteCube(name="/n/c", payload=b"x", attributes=DERIVED)
    for parents, errno in (
        (("/n/a@v1",), Errno.EOUTDATED),
        (("/n/b",), Errno.EOUTDATED),
        (("/n/ended",), Errno.EOUTDATED),
        (("/n/none",), Errno.ENOENT),
        ((), Errno.EINVAL),
    ):
        user.fails(replace(draft, parents=parents), errno)
    derive(user, "/n/c", "/n/a@v2", "/n/later")


def test_what_is_derived_takes_the_place_of_no_source(user: Client) -> None:
    user.write("/n/a", b"one")
    derive(user, "/n/b", "/n/a")
    draft = c.WriteCube(name="/n/a", payload=b"x", parents=("/n/b",), attributes=DERIVED)
    user.fails(draft, Errno.EINVAL)
    user.fails(replace(draft, parents=("/n/a",)), Errno.EINVAL)
    user.fails(replace(draft, name="/n/c", supersedes=("/n/a",)), Errno.EINVAL)


@pytest.mark.parametrize(
    "derivation",
    [1, {}, {"recipe": ""}, {"recipe": 1}, {"recipe": "x" * 5000}, {"recipe": "x", "more": 1}],
    ids=lambda it: str(it)[:20],
)
def test_a_bad_derivation_is_refused(user: Client, derivation: Any) -> None:
    user.write("/n/a", b"one")
    attributes = {"derivation": derivation}
    draft = c.WriteCube(name="/n/b", payload=b"x", parents=("/n/a",), attributes=attributes)
    user.fails(draft, Errno.EINVAL)


def test_a_source_that_changes_during_a_fill_stops_it(world: World, user: Client) -> None:
    user.write("/n/a", b"one")
    draft = c.CreateCube(name="/n/b", size_bytes=8, parents=("/n/a",), attributes=DERIVED)
    made = user.call(draft)
    user.write("/n/a", b"two")
    user.fails(c.SealCube(made.handle), Errno.EOUTDATED)
    assert not is_there(user, "/n/b")
    made = user.call(draft)
    user.call(c.UnlinkCube("/n/a"))
    user.fails(c.SealCube(made.handle), Errno.ENOENT)


# -- who sees what -----------------------------------------------------------------------------


def test_a_receipt_names_what_the_caller_may_read(world: World, user: Client) -> None:
    user.make("/o", mode=0o777)
    stranger = world.client(STRANGER)
    user.call(c.WriteCube(name="/o/a", payload=b"x", governance=Governance(mode=0o644)))
    derive(stranger, "/o/theirs", "/o/a")
    derive(user, "/o/mine", "/o/a")
    assert [node.name for node in user.call(c.Lineage("/o/a")).nodes] == ["/o/a", "/o/mine"]
    receipt = user.call(c.UnlinkCube("/o/a")).receipt
    assert receipt is not None
    assert receipt.count == 2
    assert [each.name for each in receipt.fallen] == ["/o/mine"]


def test_the_graph_goes_both_ways(user: Client) -> None:
    user.write("/n/a", b"one")
    user.write("/n/b", b"one")
    derive(user, "/n/ab", "/n/a", "/n/b")
    derive(user, "/n/abc", "/n/ab")
    cache(user, "/n/kv", "/n/ab")
    reply = user.call(c.Lineage("/n/ab"))
    names = [node.name for node in reply.nodes]
    assert names[:3] == ["/n/ab", "/n/a", "/n/b"]
    assert set(names[3:]) == {"/n/abc", "/n/kv"}
    place = {name: number for number, name in enumerate(names)}
    assert set(reply.edges) == {
        LineageEdge(place[parent], place[child])
        for parent, child in (
            ("/n/a", "/n/ab"),
            ("/n/b", "/n/ab"),
            ("/n/ab", "/n/abc"),
            ("/n/ab", "/n/kv"),
        )
    }
    assert reply.nodes[0].recipe == "summary"
    user.write("/n/a", b"two")
    reply = user.call(c.Lineage("/n/ab"))
    assert reply.nodes[0].outdated
    assert "/n/kv" not in [node.name for node in reply.nodes]


# -- restarts ----------------------------------------------------------------------------------


def test_it_outlives_a_restart(world: World, user: Client) -> None:
    user.write("/n/a", b"one")
    user.write("/n/b", b"one")
    derive(user, "/n/old", "/n/a")
    derive(user, "/n/new", "/n/b")
    user.write("/n/a", b"two")
    world.crash()
    user = world.client()
    assert outdated(user, "/n/old")
    assert fallen(user.call(c.UnlinkCube("/n/b")).receipt) == {"/n/new": False}
    for name in ("/n/old", "/n/new", "/n/a"):
        user.call(c.UnlinkCube(name))
    world.settle()
    ledger = world.kernel.parts.table.ledger
    assert [list(ledger.scan(table, b"")) for table in ("derived", "edges", "outdated")] == [[]] * 3


def test_a_failed_commit_takes_all_back(world: World, user: Client) -> None:
    user.write("/n/a", b"one")
    derive(user, "/n/b", "/n/a")
    world.store.fail_commit(Errno.EIO)
    user.fails(c.WriteCube(name="/n/a", payload=b"two"), Errno.EIO)
    assert not outdated(user, "/n/b")
    assert fallen(user.call(c.UnlinkCube("/n/a")).receipt) == {"/n/b": False}


def test_two_versions_of_a_cache_fall_at_once(user: Client) -> None:
    user.write("/n/a", b"one")
    cache(user, "/n/kv", "/n/a")
    cache(user, "/n/kv", "/n/a")
    cache(user, "/n/other", "/n/kv")
    user.write("/n/b", b"plain")
    receipt = user.call(c.UnlinkCube("/n/a")).receipt
    assert receipt is not None
    assert {each.name for each in receipt.fallen} == {"/n/kv", "/n/other"}
    assert not is_there(user, "/n/kv")
    assert not is_there(user, "/n/other")
    usage = user.usage("/n").usage
    assert usage.cubes == 1
    user.unlink("/n/b")
    assert user.usage("/n").usage.disk_bytes == 0


# -- found by a reviewer ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "supersede"])
def test_what_holds_for_a_while_can_be_ended_before(world: World, user: Client, how: str) -> None:
    later = Descriptive(valid_to_ns=world.clock.wall_ns() + 100 * SECOND_NS)
    user.call(c.WriteCube(name="/n/a", payload=b"x", descriptive=later))
    derive(user, "/n/b", "/n/a")
    if how == "end":
        ended = Descriptive(valid_to_ns=world.clock.wall_ns())
        receipt = user.call(c.SetHeader("/n/a", descriptive=ended)).receipt
    else:
        draft = c.WriteCube(name="/n/c", payload=b"y", supersedes=("/n/a",))
        receipt = user.call(draft).receipt
    assert fallen(receipt) == {"/n/b": False}
    assert outdated(user, "/n/b")


def test_a_receipt_tells_the_version_that_fell(user: Client) -> None:
    user.write("/n/a", b"1")
    user.write("/n/b", b"1")
    for make in (derive, cache):
        for source in ("/n/a", "/n/b"):
            make(user, f"/n/{make.__name__}", source)
    start = user.call(c.Watch()).next_seq
    receipt = user.call(c.UnlinkCube("/n/a")).receipt
    assert receipt is not None
    assert {(each.name, each.version) for each in receipt.fallen} == {
        ("/n/derive", 1),
        ("/n/cache", 1),
    }
    assert not outdated(user, "/n/derive")
    assert user.stat("/n/cache").version == 2
    told = [event.kind for event in user.call(c.Watch(since_seq=start)).events]
    assert EventKind.OUTDATE not in told


@pytest.mark.parametrize("table", ["derived", "history"])
def test_damage_hands_out_nothing_that_fell(world: World, user: Client, table: str) -> None:
    user.write("/n/a", b"1")
    made = cache(user, "/n/b", "/n/a")
    if table == "history":
        cache(user, "/n/b", "/n/a")
    world.settle()
    key = made.id if table == "derived" else made.id + (1).to_bytes(4, "big")
    world.damage(table, key)
    user.call(c.UnlinkCube("/n/a"))
    user.fails(c.ReadCube(name="/n/b@v1" if table == "derived" else "/n/b"), Errno.EOUTDATED)
    world.root.call(c.UnlinkCube("/n/b"))


def test_a_part_goes_with_a_base_that_is_outdated(make_world: MakeWorld) -> None:
    world = make_world(disk_budget_bytes=64 << 20, ram_budget_bytes=4 << 20)
    user = world.client()
    user.make("/n")
    user.write("/n/a", b"1")
    header, payload = kv.kv([1, 2, 3, 4, 5, 6, 7, 8])
    fields = kv.fields_of(header)
    fields["attributes"] |= DERIVED
    fields["durability"] = Durability.DURABLE
    user.call(c.WriteCube(name="/n/base", payload=payload, parents=("/n/a",), **fields))
    longer = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    kv.part(user, "/n/part", longer, "/n/base")
    assert kv.find(user, longer)[1] == 12
    user.write("/n/a", b"2")
    assert outdated_map(user, "/n/base")
    assert not is_there(user, "/n/part")
    assert kv.find(user, longer) == ("", 0)
    with pytest.raises(MemError) as refused:
        kv.part(user, "/n/again", longer, "/n/base")
    assert refused.value.errno is Errno.EOUTDATED


def outdated_map(user: Client, name: str) -> bool:
    user.fails(c.MmapCube(name), Errno.EOUTDATED)
    return bool(user.stat(name).outdated)


def test_nothing_stands_on_what_falls_with_it(make_world: MakeWorld) -> None:
    world = make_world(disk_budget_bytes=64 << 20, ram_budget_bytes=4 << 20)
    user = world.client()
    user.make("/n")
    kv.write(user, "/n/a", [1, 2, 3, 4])
    header, payload = kv.kv([1, 2, 3, 4, 5, 6, 7, 8])
    fields = kv.fields_of(header)
    fields["attributes"] |= DERIVED
    user.call(c.WriteCube(name="/n/base", payload=payload, parents=("/n/a",), **fields))
    kv.part(user, "/n/middle", [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9], "/n/base")
    for base, tokens in (("/n/base", 12), ("/n/middle", 16)):
        with pytest.raises(MemError) as refused:
            kv.part(user, "/n/a", ([1, 2, 3, 4, 5, 6, 7, 8] + [9] * 8)[:tokens], base)
        assert refused.value.errno is Errno.EINVAL
    assert user.stat("/n/a").version == 1
