"""Booting: the format, the epoch, what a crash left behind, what damage must not prevent."""

from pathlib import Path

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Governance
from memosd.drivers.fake_store import FakeStore
from memosd.kernel.boot import open_format
from memosd.kernel.rows import FORMAT_VERSION, TABLES
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import KIB, Client, World

PAGED = 8 * KIB


def commit(store: FakeStore, table: str, key: bytes, value: bytes) -> None:
    """Put one row."""
    store.stage({table: {key: value}})()
    store.settle()


def test_every_boot_has_an_epoch_of_its_own() -> None:
    store = FakeStore(TABLES)
    epochs = []
    for _ in range(3):
        epochs.append(open_format(store))
        store = store.reopen()
    assert epochs == [1, 2, 3]


def test_an_epoch_that_could_not_be_kept_is_not_used() -> None:
    store = FakeStore(TABLES)
    store.fail_commit(Errno.ENOSPC)
    with pytest.raises(MemError) as caught:
        open_format(store)
    assert caught.value.errno is Errno.ENOSPC
    assert open_format(store.reopen()) == 1


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, 1 << 31])
def test_another_format_is_refused_and_left_as_it_is(version: int) -> None:
    store = FakeStore(TABLES)
    commit(store, "meta", b"format", version.to_bytes(4, "big"))
    with pytest.raises(MemError) as caught:
        open_format(store)
    assert caught.value.errno is Errno.EPROTONOSUPPORT
    assert str(version) in caught.value.message
    assert str(FORMAT_VERSION) in caught.value.message
    assert store.get("meta", b"epoch") is None


def test_rows_without_a_format_are_refused() -> None:
    store = FakeStore(TABLES)
    commit(store, "cubes", b"i" * 16, b"row")
    with pytest.raises(MemError) as caught:
        open_format(store)
    assert caught.value.errno is Errno.ECORRUPT


@pytest.mark.parametrize("is_real", [False, True])
def test_everything_acknowledged_is_there_after_a_crash(tmp_path: Path, is_real: bool) -> None:
    world = World(tmp_path, is_real=is_real)
    user = world.client()
    user.make("/n", cubes=10)
    user.write("/n/small", b"text", attributes={"k": 1})
    user.blob("/n/paged", b"p" * PAGED)
    user.blob("/n/paged", b"q" * PAGED)
    user.call(c.RenameCube(name="/n/paged", new_name="/n/renamed"))
    user.write("/n/gone", b"x")
    user.unlink("/n/gone")
    before = user.usage("/n").usage
    for _ in range(2):
        world.crash()
        world.settle()
        user = world.client()
        assert user.read("/n/renamed") == b"q" * PAGED
        assert user.read("/n/renamed@v1") == b"p" * PAGED
        assert user.read("/n/small") == b"text"
        user.fails(c.StatCube(name="/n/gone"), Errno.ENOENT)
        after = user.usage("/n").usage
        assert (after.disk_bytes, after.cubes) == (before.disk_bytes, 2)
        assert user.usage("/n").quota.cubes == 10
    world.close()


def test_page_files_that_no_row_names_are_removed(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    handle = user.call(c.CreateCube(name="/n/b", size_bytes=PAGED)).handle
    user.start(c.SealCube(handle=handle))
    for name in ("hash", "check_payload", "store"):
        world.io.finish(name)
    assert len(list(world.disk.keys())) == 2
    world.crash()
    world.settle()
    assert len(list(world.disk.keys())) == 1
    assert world.client().read("/n/a") == bytes(PAGED)


def test_clearing_up_leaves_page_files_that_are_just_being_written(
    make_world: MakeWorld,
) -> None:
    world = make_world(is_real=True)  # which is listed as it is, not as it was
    world.client().make("/m")
    world.crash()
    user = world.client()
    assert world.io.names() == ["_take"]
    handle = user.start(c.CreateCube(name="/m/a", size_bytes=PAGED)).result().handle
    sealed = user.start(c.SealCube(handle=handle))
    world.io.finish("hash")
    world.io.finish("check_payload")
    world.io.find("store").execute()
    world.io.finish("_take")  # sees the file; no row names it yet
    world.settle()
    assert sealed.result().version == 1
    user.call(c.Evict(name="/m/a"))
    assert user.read("/m/a") == bytes(PAGED)


def test_clearing_up_that_fails_keeps_nobody_from_working(world: World, user: Client) -> None:
    handle = user.call(c.CreateCube(name="/n/a", size_bytes=PAGED)).handle
    user.start(c.SealCube(handle=handle))
    for name in ("hash", "check_payload", "store"):
        world.io.finish(name)
    world.crash()
    world.plan.fail("free", Errno.EIO)
    world.settle()
    assert len(list(world.disk.keys())) == 1
    client = world.client()
    client.blob("/n/a", b"x" * PAGED)
    world.crash()
    world.settle()
    assert len(list(world.disk.keys())) == 1, "the next boot cleared up"
    assert world.client().read("/n/a") == b"x" * PAGED


def damage_and_reboot(world: World, table: str, key: bytes) -> Client:
    """Flip a bit of a row, crash, boot; a user of what has nothing to do with it."""
    world.damage(table, key, 0)
    world.crash()
    world.settle()
    client = world.client()
    assert client.read("/n/fine") == b"fine"
    return client


@pytest.fixture
def damaged(world: World, user: Client) -> bytes:
    """The id of the cube `/damaged/a`, about to be; `/n/fine` is beside it."""
    user.make("/damaged")
    user.write("/n/fine", b"fine")
    return user.write("/damaged/a", b"damaged", governance=Governance(mode=0o644)).id


@pytest.mark.parametrize("table", ["names", "cubes", "payloads"])
def test_one_flipped_bit_of_a_cube_keeps_nobody_from_the_rest(
    world: World, damaged: bytes, table: str
) -> None:
    key = b"/damaged/a" if table == "names" else damaged
    client = damage_and_reboot(world, table, key)
    client.fails(c.ReadCube(name="/damaged/a"), Errno.ECORRUPT)
    client = damage_and_reboot(world, table, key)
    if table == "payloads":  # put aside once and for all
        client.fails(c.ReadCube(name="/damaged/a"), Errno.ECORRUPT)
    else:
        assert client.read("/damaged/a") == b"damaged"


def test_one_flipped_bit_of_the_log_keeps_nobody_from_anything(
    world: World, damaged: bytes
) -> None:
    seq = world.kernel.parts.table.log.durable_seq
    client = damage_and_reboot(world, "log", seq.to_bytes(8, "big") * 2)
    assert client.read("/damaged/a") == b"damaged"
    client.write("/n/new", b"x")


def test_one_flipped_bit_of_a_namespace_keeps_nobody_from_the_others(
    world: World, damaged: bytes
) -> None:
    number = max(space.id for space in world.kernel.parts.namespaces)
    key = number.to_bytes(4, "big")
    client = damage_and_reboot(world, "namespaces", key)
    client.fails(c.ReadCube(name="/damaged/a"), Errno.ENOENT)
    assert [space.name for space in client.call(c.Readdir(path="/")).namespaces] == ["/n"]
    findings = world.root.call(c.Fsck()).findings
    assert [finding.id for finding in findings] == [key]
    assert any("out of reach" in notice for notice in client.call(c.Info()).notices)
    stranger = world.client(2000)
    # Neither by its name nor by its number does somebody else come by its cubes.
    stranger.fails(c.MakeNamespace(name="/damaged"), Errno.EEXIST)
    stranger.make("/fresh")
    stranger.write("/fresh/b", b"x")
    assert world.kernel.parts.namespaces.find("/fresh").id > number
    client = damage_and_reboot(world, "namespaces", key)
    assert client.read("/damaged/a") == b"damaged"
    assert client.usage("/damaged").usage.cubes == 1
