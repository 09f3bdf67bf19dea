"""Removing cubes whose own rows are damaged: what can be told goes, and the account adds up.

The end of each test adds up all rows, frames and files (`check_at_rest`).
"""

from collections.abc import Callable

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Descriptive, Durability, Governance, Usage
from memosd.kernel import salvage
from tests.kernel.world import PAGED, Client, World

Damage = Callable[[World, bytes], None]


def damage_row(world: World, cube_id: bytes) -> None:
    """The cube's row: the last byte, so that all else can still be read by whoever dares."""
    world.damage("cubes", cube_id)


def damage_start(world: World, cube_id: bytes) -> None:
    """The cube's row, where its structure is."""
    world.damage("cubes", cube_id, 8)


def damage_history(world: World, cube_id: bytes) -> None:
    world.damage("history", cube_id + (1).to_bytes(4, "big"))


def damage_name(world: World, _cube_id: bytes) -> None:
    """What is left of the name's row leads to the right cube."""
    world.damage("names", b"/n/a", 0)


def damage_id(world: World, _cube_id: bytes) -> None:
    """What is left of the name's row leads to no cube."""
    world.damage("names", b"/n/a")


def swap_name(world: World, _cube_id: bytes) -> None:
    """Another cube's row strayed to this name."""
    store = world.store
    store.stage({"names": {b"/n/a": store.get("names", b"/n/other")}})()
    store.settle()


def damage_both(world: World, cube_id: bytes) -> None:
    damage_name(world, cube_id)
    damage_row(world, cube_id)


ALL = (
    damage_row, damage_start, damage_history, damage_name, damage_id, swap_name, damage_both,
)  # fmt: skip


@pytest.fixture
def cube_id(user: Client) -> bytes:
    """A cube with every kind of row, beside one that must not notice."""
    other = user.write("/n/other", b"a small one", descriptive=Descriptive(title="T")).id
    late = Governance(expires_ns=1 << 62)
    # The same bytes as its parent has: by its digest alone one could be taken for the other.
    made = user.blob("/n/a", b"a small one", parents=("/n/other",), governance=late)
    user.blob("/n/a", bytes(PAGED), attributes={"k": "v" * 100})
    user.call(c.SetHeader(name="/n/a", descriptive=Descriptive(title="U")))
    user.blob("/n/a", bytes([1]) * PAGED, durability=Durability.CACHE)
    user.blob("/n/a", b"another small one", parents=("/n/other",))
    assert other != made.id
    return made.id


@pytest.mark.parametrize("is_after_crash", [False, True])
@pytest.mark.parametrize("damage", ALL)
def test_the_administrator_removes_what_is_left(
    world: World, user: Client, cube_id: bytes, damage: Damage, is_after_crash: bool
) -> None:
    user.call(c.Sync())
    before = user.usage("/n").usage
    user.write("/n/third", b"x")
    third_bytes = user.usage("/n").usage.disk_bytes - before.disk_bytes
    damage(world, cube_id)
    if is_after_crash:
        world.crash()
    user = world.client()
    user.fails(c.UnlinkCube(name="/n/a"), Errno.ECORRUPT)
    reply = world.root.unlink("/n/a")
    assert 2 * PAGED < reply.freed_bytes < before.disk_bytes
    assert reply.versions == 5
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert user.usage("/n").usage.cubes == 2
    assert user.read("/n/other") == b"a small one"
    user.unlink("/n/other")
    assert user.usage("/n").usage == Usage(disk_bytes=third_bytes, cubes=1)
    assert world.root.call(c.Fsck()).findings == ()
    assert user.write("/n/a", b"anew").version == 1


@pytest.mark.parametrize("damage", ALL)
def test_fsck_says_what_a_damaged_cube_is_called(
    world: World, cube_id: bytes, damage: Damage
) -> None:
    damage(world, cube_id)
    findings = world.root.call(c.Fsck()).findings
    assert {finding.name for finding in findings if finding.id == cube_id} == {"/n/a"}
    world.root.unlink("/n/a")


def test_nobody_else_may_and_nothing_but_the_whole(
    world: World, user: Client, cube_id: bytes
) -> None:
    world.damage("cubes", cube_id)
    usage = user.usage("/n")
    user.fails(c.UnlinkCube(name="/n/a"), Errno.ECORRUPT)
    world.root.fails(c.UnlinkCube(name="/n/a@v1"), Errno.ECORRUPT)
    world.root.fails(c.UnlinkCube(name="/n/a", expected_version=5), Errno.ECORRUPT)
    assert user.usage("/n") == usage
    world.damage("cubes", cube_id)  # the bit flips back
    assert user.read("/n/a") == b"another small one"
    assert user.stat("/n/a@v2").size_bytes == PAGED


def test_of_several_damaged_cubes_the_last_brings_the_charge_back(
    world: World, user: Client
) -> None:
    ids = [user.blob(f"/n/{name}", bytes(PAGED)).id for name in "abc"]
    before = user.usage("/n").usage
    for cube_id in ids[:2]:
        world.damage("cubes", cube_id)
    assert world.root.unlink("/n/a").freed_bytes == 0
    assert user.usage("/n").usage == Usage(
        disk_bytes=before.disk_bytes, ram_bytes=2 * PAGED, cubes=2
    )
    assert 3 * world.root.unlink("/n/b").freed_bytes == 2 * before.disk_bytes
    user.unlink("/n/c")
    user.call(c.RemoveNamespace(name="/n"))


def test_a_mapping_of_it_stays_good_until_it_is_given_up(world: World, user: Client) -> None:
    payload = b"m" * PAGED
    cube_id = user.blob("/n/a", payload).id
    mapped = user.call(c.MmapCube(name="/n/a"))
    world.store.fail_commit(Errno.EIO)  # with it goes what was resolved lately
    user.fails(c.WriteCube(name="/n/b", payload=b"x"), Errno.EIO)
    world.damage("cubes", cube_id)
    user.fails(c.StatCube(name="/n/a"), Errno.ECORRUPT)
    world.root.unlink("/n/a")
    assert world.kernel.parts.residents.account.used_bytes == PAGED
    user.call(c.MunmapCube(handle=mapped.handle))
    assert world.kernel.parts.residents.account.used_bytes == 0


def test_a_payload_that_is_only_in_ram_goes_too(world: World, user: Client) -> None:
    world.damage("cubes", user.blob("/n/a", bytes(PAGED), durability=Durability.CACHE).id)
    world.root.unlink("/n/a")
    assert world.kernel.parts.table.volatile == {}
    assert user.usage("/n").usage == Usage()


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_crash_leaves_all_or_nothing(
    world: World, user: Client, cube_id: bytes, is_committed: bool
) -> None:
    user.call(c.Sync())
    usage = user.usage("/n").usage
    world.damage("cubes", cube_id)
    pending = world.root.start(c.UnlinkCube(name="/n/a"))
    world.kernel.turn()
    if is_committed:
        world.io.find("commit").execute()
    assert not pending.is_answered
    world.crash()
    world.settle()
    cubes = world.root.usage("/n").usage.cubes
    assert cubes == usage.cubes - is_committed
    if not is_committed:
        world.client().fails(c.StatCube(name="/n/a"), Errno.ECORRUPT)
        world.root.unlink("/n/a")


def test_a_commit_that_fails_removes_nothing(world: World, user: Client, cube_id: bytes) -> None:
    usage = user.usage("/n")
    world.damage("cubes", cube_id)
    world.store.fail_commit(Errno.ENOSPC)
    world.root.fails(c.UnlinkCube(name="/n/a"), Errno.ENOSPC)
    assert user.usage("/n") == usage
    world.damage("cubes", cube_id)
    assert user.read("/n/a") == b"another small one"


def test_it_is_told_and_found_no_more(world: World, user: Client) -> None:
    cube_id = user.write("/n/a", b"a heron").id
    user.write("/n/b", b"a heron")
    assert len(user.call(c.Search(query="heron")).hits) == 2
    start = user.call(c.Watch()).next_seq
    world.damage("cubes", cube_id)
    world.root.unlink("/n/a")
    assert [hit.name for hit in user.call(c.Search(query="heron")).hits] == ["/n/b"]
    assert cube_id not in world.index.documents
    (event,) = user.call(c.Watch(since_seq=start)).events
    assert (event.kind.value, event.name, event.id) == ("unlink", "/n/a", cube_id)


def test_a_small_payload_that_nothing_leads_to_stays_in_the_table(
    world: World, user: Client
) -> None:
    cube_id = user.blob("/n/a", b"first").id
    user.blob("/n/a", b"second")
    keys = [key for key, _ in world.store.scan("payloads", b"")]
    row = world.store.get("cubes", cube_id) or b""
    (lost,) = [key for key in keys if key != cube_id]
    world.damage("cubes", cube_id, row.index(lost))
    world.root.unlink("/n/a")
    assert user.usage("/n").usage == Usage(), "it is nobody's, and nobody is charged"
    left = [key for key, _ in world.store.scan("payloads", b"")]
    assert left == [lost]
    world.store.stage({"payloads": {lost: None}})()
    world.store.settle()


def test_a_large_namespace_is_added_up_while_it_stands_still(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(salvage, "_STRETCH", 3)
    for number in range(10):
        user.write(f"/n/{number}", b"x")
    cube_id = user.write("/n/a", b"y").id
    usage = user.usage("/n").usage
    world.damage("cubes", cube_id)
    pending = world.root.start(c.UnlinkCube(name="/n/a"))
    while not pending.is_answered:
        user.write("/n/0", b"z")
        user.unlink("/n/0@v1") if user.stat("/n/0").version == 2 else None
    pending.failure(Errno.EBUSY)
    assert user.usage("/n").usage.cubes == usage.cubes
    quiet = world.root.start(c.UnlinkCube(name="/n/a"))
    other = user.start(c.ReadCube(name="/n/1"))
    assert other.is_answered
    assert not quiet.is_answered, "others have their turn"
    world.settle()
    assert 11 * quiet.result().freed_bytes == usage.disk_bytes


def test_what_is_renamed_meanwhile_is_not_removed(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an old version is damaged, so its owner still uses it."""
    monkeypatch.setattr(salvage, "_STRETCH", 1)
    cube_id = user.write("/n/a", b"1").id
    user.blob("/n/paged", bytes(PAGED))
    user.write("/n/a", b"2")
    damage_history(world, cube_id)
    pending = world.root.start(c.UnlinkCube(name="/n/a"))
    assert not pending.is_answered
    renamed = user.start(c.RenameCube(name="/n/a", new_name="/n/b"))
    world.settle()
    assert renamed.result().version == 2
    assert pending.errno() in (Errno.ENOENT, Errno.EBUSY)
    assert user.read("/n/b") == b"2"
    assert world.root.unlink("/n/b").versions == 2
