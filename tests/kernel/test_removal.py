"""Removal: unlinking cubes and versions, renaming within and between namespaces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Durability, Governance, Usage
from tests.kernel.fakes import SECOND_NS
from tests.kernel.invariants import check_always, check_at_rest
from tests.kernel.world import KIB, Client, World

PAGED = 8 * KIB


# -- unlink --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [10, PAGED])
def test_an_unlinked_cube_is_gone_with_all_its_versions(
    world: World, user: Client, size_bytes: int
) -> None:
    for _ in range(3):
        user.blob("/n/a", bytes(size_bytes))
    user.call(c.SetHeader(name="/n/a", attributes={"k": 1}))
    reply = user.unlink("/n/a")
    assert reply.versions == 4
    for name in ("/n/a", "/n/a@v1", "/n/a@v4"):
        user.fails(c.ReadCube(name=name), Errno.ENOENT)
    assert user.usage("/n").usage == Usage()
    assert list(world.disk.keys()) == []
    assert user.fails(c.UnlinkCube(name="/n/a"), Errno.ENOENT).detail["cube"] == "/n/a"


def test_the_current_version_goes_only_with_the_cube(user: Client) -> None:
    user.write("/n/a", b"1")
    user.write("/n/a", b"2")
    user.fails(c.UnlinkCube(name="/n/a@v2"), Errno.EBUSY)
    user.unlink("/n/a@v1")
    user.fails(c.UnlinkCube(name="/n/a@v1"), Errno.ENOENT)
    user.fails(c.UnlinkCube(name="/n/a@v2"), Errno.EBUSY)
    assert user.read("/n/a") == b"2"


def test_bytes_go_only_once_the_unlink_is_durable(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    pending = user.start(c.UnlinkCube(name="/n/a"))
    world.kernel.turn()
    assert world.io.names() == ["commit"]
    assert len(list(world.disk.keys())) == 1
    world.io.find("commit").execute()
    assert len(list(world.disk.keys())) == 1
    world.settle()
    assert list(world.disk.keys()) == []
    assert pending.result().versions == 1


def test_an_unlink_whose_commit_fails_leaves_everything_as_it_was(
    world: World, user: Client
) -> None:
    user.blob("/n/a", b"x" * PAGED)
    user.blob("/n/a", b"small")
    before = user.usage("/n"), user.stat("/n/a")
    world.store.fail_commit(Errno.EIO)
    user.fails(c.UnlinkCube(name="/n/a"), Errno.EIO)
    assert (user.usage("/n"), user.stat("/n/a")) == before
    assert user.read("/n/a@v1") == b"x" * PAGED
    user.call(c.Evict(name="/n/a@v1"))
    assert user.read("/n/a@v1") == b"x" * PAGED


def test_an_unlink_that_crashes_before_its_commit_never_was(world: World, user: Client) -> None:
    user.blob("/n/a", b"x" * PAGED)
    user.start(c.UnlinkCube(name="/n/a"))
    world.kernel.turn()
    world.crash()
    assert world.client().read("/n/a") == b"x" * PAGED


def test_an_unlink_that_crashes_after_its_commit_leaves_no_page_file(
    world: World, user: Client
) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.start(c.UnlinkCube(name="/n/a"))
    world.kernel.turn()
    world.io.find("commit").execute()
    world.crash()
    world.settle()
    world.client().fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert list(world.disk.keys()) == []


def test_clearing_up_after_a_crash_takes_nothing_whose_unlink_may_still_fail(
    world: World, user: Client
) -> None:
    """Boot looks for page files without a row while clients work already."""
    user.blob("/n/a", b"x" * PAGED)
    world.crash()
    assert world.io.names() == ["_take"]
    user = world.client()
    user.start(c.UnlinkCube(name="/n/a"))
    world.store.fail_commit(Errno.EIO)
    world.kernel.turn()
    while "_take" in world.io.names() or "free" in world.io.names():
        world.io.finish("_take" if "_take" in world.io.names() else "free")
    world.settle()
    assert user.read("/n/a") == b"x" * PAGED


def test_a_damaged_old_version_does_not_keep_a_cube_from_being_swept(
    world: World, user: Client
) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + 1)
    cube_id = user.write("/n/a", b"1", governance=soon).id
    user.write("/n/a", b"2")
    user.write("/n/b", b"x", governance=soon)
    history = cube_id + (1).to_bytes(4, "big")
    world.damage("history", history)
    world.pass_time(world.parameters.expiry_sweep_ns)
    user.fails(c.StatCube(name="/n/b"), Errno.ENOENT)
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert user.call(c.Info()).cubes == 1, "the sweep went past what it cannot remove"
    world.damage("history", history)
    user.write("/n/a", b"3")
    assert user.usage("/n").usage.cubes == 1, "and gave way to a new one once it could"


# -- rename --------------------------------------------------------------------------------------


def test_a_renamed_cube_keeps_its_id_versions_and_header(world: World, user: Client) -> None:
    first = user.blob("/n/a", b"1", attributes={"k": 1})
    user.blob("/n/a", b"2" * PAGED)
    before = user.stat("/n/a")
    assert user.call(c.RenameCube(name="/n/a", new_name="/n/folder/b")).version == 2
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    after = user.stat("/n/folder/b")
    assert (after.id, after.version, after.created_ns) == (first.id, 2, before.created_ns)
    assert user.read("/n/folder/b@v1") == b"1"
    assert user.stat("/n/folder/b@v1").attributes == {"k": 1}
    world.crash()
    assert world.client().read("/n/folder/b") == b"2" * PAGED


def test_a_name_that_is_taken_is_not_overwritten(user: Client) -> None:
    user.write("/n/a", b"1")
    user.write("/n/b", b"2")
    for new_name in ("/n/b", "/n/a"):
        user.fails(c.RenameCube(name="/n/a", new_name=new_name), Errno.EEXIST)
    assert (user.read("/n/a"), user.read("/n/b")) == (b"1", b"2")
    user.fails(c.RenameCube(name="/n/c", new_name="/n/d"), Errno.ENOENT)
    user.fails(c.RenameCube(name="/n/a", new_name="/m/a"), Errno.ENOENT)


def test_a_name_held_by_an_expired_cube_is_free(world: World, user: Client) -> None:
    user.write("/n/a", b"1")
    user.write("/n/b", b"2", governance=Governance(expires_ns=world.clock.wall_ns() + 1))
    world.clock.advance(SECOND_NS)
    user.call(c.RenameCube(name="/n/a", new_name="/n/b"))
    assert user.read("/n/b") == b"1"
    assert user.usage("/n").usage.cubes == 1


def test_a_rename_moves_the_account_with_the_cube(world: World, user: Client) -> None:
    user.make("/m")
    user.blob("/n/a", bytes(PAGED))
    user.blob("/n/a", bytes(100))
    user.call(c.SetHeader(name="/n/a", attributes={"k": 1}))
    handle = user.call(c.MmapCube(name="/n/a")).handle
    before = user.usage("/n").usage
    assert before.ram_bytes == PAGED + 4096
    user.call(c.RenameCube(name="/n/a", new_name="/m/a"))
    assert user.usage("/m").usage == before
    assert user.usage("/n").usage == Usage()
    user.call(c.MunmapCube(handle=handle))
    user.call(c.RenameCube(name="/m/a", new_name="/n/a"))
    assert user.usage("/n").usage == before
    user.unlink("/n/a")
    assert user.usage("/n").usage == user.usage("/m").usage == Usage()


@pytest.mark.parametrize(
    "quota", [{"disk_bytes": PAGED}, {"ram_bytes": PAGED - 1}, {"cubes": 1}], ids=repr
)
def test_a_rename_into_a_full_namespace_fails_and_moves_nothing(
    world: World, user: Client, quota: dict[str, int]
) -> None:
    user.make("/m", **quota)
    user.write("/m/there", b"x")
    user.blob("/n/a", bytes(PAGED))
    user.blob("/n/a", bytes(PAGED))
    before = user.usage("/n"), user.usage("/m")
    user.fails(c.RenameCube(name="/n/a", new_name="/m/a"), Errno.EDQUOT)
    assert (user.usage("/n"), user.usage("/m")) == before
    assert user.read("/n/a") == bytes(PAGED)


def test_a_rename_whose_commit_fails_moves_nothing(world: World, user: Client) -> None:
    user.make("/m")
    user.blob("/n/a", bytes(PAGED))
    before = user.usage("/n"), user.usage("/m")
    world.store.fail_commit(Errno.EIO)
    user.fails(c.RenameCube(name="/n/a", new_name="/m/a"), Errno.EIO)
    assert (user.usage("/n"), user.usage("/m")) == before
    assert user.read("/n/a") == bytes(PAGED)


def test_a_rename_that_is_undone_finds_its_old_place_taken(world: World, user: Client) -> None:
    """While the commit was under way the old namespace's RAM quota was used up by others."""
    user.make("/m")
    user.make("/q", ram_bytes=PAGED)
    user.blob("/q/a", bytes(PAGED))
    world.store.fail_commit(Errno.EIO)
    renamed = user.start(c.RenameCube(name="/q/a", new_name="/m/a"))
    written = user.start(c.WriteCube(name="/n/x", payload=b"x"))
    world.kernel.turn()
    other = user.start(c.CreateCube(name="/q/b", size_bytes=PAGED))
    world.io.finish("commit")
    world.settle()
    for call in (renamed, written):
        call.failure(Errno.EIO)
    assert other.is_answered
    check_always(world.kernel)
    assert user.read("/q/a") == bytes(PAGED)
    user.die()
    world.settle()
    world.root.unlink("/q/a")
    assert world.root.usage("/m").usage == Usage()


def ram_of(world: World) -> list[int]:
    """The RAM charged to /n and /m."""
    parts = world.kernel.parts
    return [
        parts.residents.account.used_by(parts.namespaces.find(name).group) for name in ("/n", "/m")
    ]


def test_a_cube_renamed_while_it_is_read_is_charged_to_one_namespace(
    world: World, user: Client
) -> None:
    user.make("/m")
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    mapping = user.start(c.MmapCube(name="/n/a"))
    user.start(c.RenameCube(name="/n/a", new_name="/m/a"))
    world.settle()
    mapping.failure(Errno.ENOENT)
    assert user.mapped("/m/a") == bytes(PAGED)
    assert ram_of(world) == [0, PAGED]
    user.unlink("/m/a")
    assert ram_of(world) == [0, 0]


@pytest.mark.parametrize("is_undone", [False, True])
@pytest.mark.parametrize("step", ["room", "load"])
def test_a_rename_moves_the_charge_of_what_is_on_its_way_into_ram(
    small: World, owner: Client, step: str, is_undone: bool
) -> None:
    owner.make("/m")
    owner.blob("/n/a", bytes(PAGED))
    owner.call(c.Evict(name="/n/a"))
    small.fill_ram(owner, 3 * PAGED)
    if step == "room":
        owner.blob("/n/dirty", bytes(PAGED), durability=Durability.CACHE)
    pinned = owner.start(c.PinCube(name="/n/a"))
    assert small.io.names() == ["store" if step == "room" else "load"]
    if is_undone:
        small.store.fail_commit(Errno.EIO)
    renamed = owner.start(c.RenameCube(name="/n/a", new_name="/m/a"))
    if step == "load":
        assert ram_of(small) == [3 * PAGED, PAGED]
    small.kernel.turn()
    small.io.finish("commit")
    small.settle()
    assert renamed.errno() == (Errno.EIO if is_undone else 0)
    assert pinned.errno() == (0 if is_undone else Errno.ENOENT), "its name is another one"
    assert ram_of(small) == ([4 * PAGED, 0] if is_undone else [3 * PAGED, PAGED])
    check_always(small.kernel)


def test_a_rename_of_what_is_on_its_way_into_ram_heeds_the_quota(
    world: World, user: Client
) -> None:
    user.make("/m", ram_bytes=PAGED - 1)
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    pinned = user.start(c.PinCube(name="/n/a"))
    user.fails(c.RenameCube(name="/n/a", new_name="/m/a"), Errno.EDQUOT)
    assert pinned.result().handle
    assert ram_of(world) == [PAGED, 0]


def test_a_chain_of_renames_ends_where_it_should(user: Client) -> None:
    user.write("/n/a", b"a")
    user.write("/n/b", b"b")
    for old, new in (("a", "tmp"), ("b", "a"), ("tmp", "b")):
        user.call(c.RenameCube(name=f"/n/{old}", new_name=f"/n/{new}"))
    assert (user.read("/n/a"), user.read("/n/b")) == (b"b", b"a")
    listed = user.call(c.Readdir(path="/n")).entries
    assert [entry.name for entry in listed] == ["/n/a", "/n/b"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "header", "unlink", "unlink old", "cache", "rename"]),
        st.integers(1, 4),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_whatever_is_removed_in_whatever_order_the_rows_add_up(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.getbasetemp())
    user = world.client()
    user.make("/n")
    user.make("/m")
    home = "/n"
    for step, number in steps:
        name = f"{home}/a"
        request: c.Call[c.WriteReply] | c.Call[c.UnlinkReply] | c.Call[c.RenameReply]
        if step in ("write", "cache"):
            durability = Durability.CACHE if step == "cache" else Durability.DURABLE
            request = c.WriteCube(
                name=name, payload=bytes(number * KIB), type=CubeType.BLOB, durability=durability
            )
        elif step == "header":
            request = c.SetHeader(name=name, attributes={"k": number})
        elif step == "rename":
            other = "/m" if home == "/n" else "/n"
            request = c.RenameCube(name=name, new_name=f"{other}/a")
        else:
            request = c.UnlinkCube(name=f"{name}@v{number}" if "old" in step else name)
        pending = user.start(request)
        world.settle()
        if pending.errno() == 0 and step == "rename":
            home = "/m" if home == "/n" else "/n"
        check_at_rest(world.kernel, world.ram, world.disk)
    world.close()
