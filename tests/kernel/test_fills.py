"""Fills: memory filled in place, then sealed, validated, stored and committed, or given back."""

import fcntl
import mmap
import os

import pytest

from libmem.abi import calls as c
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import PAYLOAD_MAX_BYTES
from libmem.abi.structs import CubeType, Descriptive, Durability, Governance
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import KIB, Client, World

PAGED = 8 * KIB


def create(user: Client, size_bytes: int = PAGED, name: str = "/n/a", **fields: object) -> int:
    """The handle of memory to fill."""
    request = c.CreateCube(name=name, size_bytes=size_bytes, **fields)  # type: ignore[arg-type]
    return user.call(request).handle


def used_bytes(world: World) -> int:
    """RAM charged."""
    return world.kernel.parts.residents.account.used_bytes


# -- the way in ----------------------------------------------------------------------------------


def test_a_filled_memory_becomes_the_cube_without_a_copy(world: World, user: Client) -> None:
    handle = create(user)
    fd = user.fd_of(handle)
    inode = os.fstat(fd).st_ino
    user.fill(handle, b"filled in place")
    user.call(c.SealCube(handle=handle))
    mapped = user.call(c.MmapCube(name="/n/a")).handle
    assert os.fstat(user.fd_of(mapped)).st_ino == inode
    assert user.read("/n/a")[:15] == b"filled in place"
    assert used_bytes(world) == PAGED


def test_the_memory_is_zeroed_of_its_size_and_cannot_grow(user: Client) -> None:
    fd = user.fd_of(create(user))
    assert os.pread(fd, PAGED + 1, 0) == bytes(PAGED)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, PAGED + 1)


def test_a_sealed_memory_never_changes(user: Client) -> None:
    handle = create(user)
    fd = user.fd_of(handle)
    user.call(c.SealCube(handle=handle))
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"late", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    assert user.mapped("/n/a") == bytes(PAGED)


def test_a_writable_mapping_keeps_it_from_being_sealed_and_may_be_undone(user: Client) -> None:
    handle = create(user)
    with mmap.mmap(user.fd_of(handle), PAGED) as writable:
        writable[:4] = b"mine"
        user.fails(c.SealCube(handle=handle), Errno.EBUSY)
        writable[:4] = b"more"
    assert user.call(c.SealCube(handle=handle)).version == 1
    assert user.read("/n/a")[:4] == b"more"


@pytest.mark.parametrize("size_bytes", [0, 1, 1 * KIB, 4 * KIB, PAGED - 1, PAGED])
def test_the_rest_is_given_back_when_sealed_shorter(
    world: World, user: Client, size_bytes: int
) -> None:
    handle = create(user)
    user.fill(handle, bytes(range(256)) * (PAGED // 256))
    reply = user.call(c.SealCube(handle=handle, size_bytes=size_bytes))
    wanted = (bytes(range(256)) * (PAGED // 256))[:size_bytes]
    assert reply.digest == digest_of(wanted)
    assert user.read("/n/a") == wanted
    assert used_bytes(world) in (0, -(-size_bytes // 4096) * 4096)
    stat = user.stat("/n/a")
    assert stat.size_bytes == size_bytes


def test_a_size_that_makes_no_sense_is_refused_and_the_fill_stays(user: Client) -> None:
    handle = create(user)
    for size_bytes in (-1, PAGED + 1, 1 << 62):
        user.fails(c.SealCube(handle=handle, size_bytes=size_bytes), Errno.EINVAL)
    user.call(c.SealCube(handle=handle))
    for size_bytes in (-1, PAYLOAD_MAX_BYTES + 1):
        user.fails(c.CreateCube(name="/n/b", size_bytes=size_bytes), Errno.EINVAL)


@pytest.mark.parametrize("tampering", ["shrunk", "sealed"])
def test_a_writer_that_tampers_with_the_memory_only_hurts_itself(
    world: World, user: Client, tampering: str
) -> None:
    handle = create(user)
    fd = user.fd_of(handle)
    if tampering == "shrunk":
        os.ftruncate(fd, 10)
    else:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    user.fails(c.SealCube(handle=handle), Errno.EINVAL)
    user.call(c.AbortCube(handle=handle))
    world.settle()
    assert used_bytes(world) == 0
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)


def test_aborting_gives_everything_back(world: World, user: Client) -> None:
    handle = create(user)
    assert used_bytes(world) == PAGED
    user.call(c.AbortCube(handle=handle))
    assert used_bytes(world) == 0
    user.fails(c.SealCube(handle=handle), Errno.EBADF)
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)


def test_a_fill_under_a_pin_limit_counts_as_a_handle(make_world: MakeWorld) -> None:
    world = make_world(handles_per_session=1)
    user = world.client()
    user.make("/n")
    create(user)
    user.fails(c.CreateCube(name="/n/b", size_bytes=1), Errno.EMFILE)


# -- the header of create is the header of the cube ----------------------------------------------


def test_what_create_said_is_what_the_cube_says(world: World, user: Client) -> None:
    user.write("/n/parent", b"x")
    handle = create(
        user,
        descriptive=Descriptive(title="T"),
        governance=Governance(priority=9, mode=0o644),
        attributes={"k": 1},
        parents=("/n/parent",),
        durability=Durability.CACHE,
    )
    user.call(c.SealCube(handle=handle))
    stat = user.stat("/n/a")
    assert (stat.descriptive.title, stat.attributes) == ("T", {"k": 1})
    assert (stat.governance.priority, stat.governance.mode) == (9, 0o644)
    assert (stat.parents, stat.durability) == (("/n/parent@v1",), Durability.CACHE)
    resident = world.resident("/n/a")
    assert resident is not None
    assert resident.weight.priority == 9


def test_a_new_version_of_a_cube_inherits_its_priority(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED), governance=Governance(priority=9))
    user.call(c.SealCube(handle=create(user)))
    resident = world.resident("/n/a")
    assert resident is not None
    assert resident.weight.priority == 9


def test_everything_is_checked_before_any_memory_is_given(world: World, user: Client) -> None:
    user.blob("/n/a", b"x")
    for request, errno in (
        (c.CreateCube(name="/m/a", size_bytes=1), Errno.ENOENT),
        (c.CreateCube(name="/n/a", size_bytes=1, type=CubeType.PLAINTEXT), Errno.EINVAL),
        (c.CreateCube(name="/n/b", size_bytes=1, parents=("/n/c",)), Errno.ENOENT),
        (c.CreateCube(name="/n/b", size_bytes=1, expected_version=1), Errno.EVERSION),
        (c.CreateCube(name="/n/b", size_bytes=1, type=CubeType.PARAMETRIC), Errno.EINVAL),
        (c.CreateCube(name="/n/b", size_bytes=1 << 40), Errno.ENOSPC),
    ):
        user.fails(request, errno)
    assert used_bytes(world) == 0
    assert user.session.handles == {}


# -- what can go wrong on the way ----------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [100, PAGED])
def test_a_payload_that_is_not_what_its_type_says_is_refused(
    world: World, user: Client, size_bytes: int
) -> None:
    handle = create(user, size_bytes, type=CubeType.PLAINTEXT)
    user.fill(handle, b"\xff" * size_bytes)
    user.fails(c.SealCube(handle=handle), Errno.EILSEQ)
    assert used_bytes(world) == 0
    user.fails(
        c.WriteCube(name="/n/a", payload=b"{", descriptive=Descriptive(media_type="a/b+json")),
        Errno.EILSEQ,
    )
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert user.usage("/n").usage.disk_bytes == 0


@pytest.mark.parametrize(
    ("injected", "told"), [(Errno.ENOSPC, Errno.ENOSPC), (Errno.EIO, Errno.EIO)]
)
@pytest.mark.parametrize("road", ["write", "seal"])
def test_a_disk_that_refuses_the_page_file_loses_nothing(
    world: World, user: Client, injected: Errno, told: Errno, road: str
) -> None:
    user.blob("/n/a", b"before")
    before = user.usage("/n")
    world.plan.fail("store", injected)
    if road == "seal":
        user.fails(c.SealCube(handle=create(user)), told)
    else:
        user.fails(c.WriteCube(name="/n/a", payload=bytes(PAGED), type=CubeType.BLOB), told)
    assert user.usage("/n") == before
    assert user.read("/n/a") == b"before"
    user.blob("/n/a", bytes(PAGED))


def test_a_page_file_whose_commit_fails_is_removed(world: World, user: Client) -> None:
    handle = create(user)
    sealed = user.start(c.SealCube(handle=handle))
    for name in ("hash", "check_payload", "store"):
        world.io.finish(name)
    assert len(list(world.disk.keys())) == 1
    world.store.fail_commit(Errno.ENOSPC)
    world.settle()
    sealed.failure(Errno.ENOSPC)
    assert list(world.disk.keys()) == []
    assert used_bytes(world) == 0


def test_a_page_file_whose_write_lost_the_race_is_removed(world: World, user: Client) -> None:
    handle = create(user, expected_version=0)
    sealed = user.start(c.SealCube(handle=handle))
    for name in ("hash", "check_payload"):
        world.io.finish(name)
    user.start(c.WriteCube(name="/n/a", payload=b"first", type=CubeType.BLOB))
    world.settle()
    sealed.failure(Errno.EVERSION)
    assert list(world.disk.keys()) == []
    assert user.read("/n/a") == b"first"


def test_a_durable_cube_is_on_disk_before_the_reply(world: World, user: Client) -> None:
    handle = create(user)
    sealed = user.start(c.SealCube(handle=handle))
    while not sealed.is_answered:
        world.kernel.turn()
        names = world.io.names()
        if "commit" in names:
            assert len(list(world.disk.keys())) == 1, "the file before the row"
        world.io.finish_at(0)
    world.crash()
    assert world.client().read("/n/a") == bytes(PAGED)


def test_nothing_half_written_is_visible_after_a_crash(make_world: MakeWorld) -> None:
    """Crash after every single step of a seal: the version is there whole or not at all."""
    for steps in range(8):
        world = make_world()
        user = world.client()
        user.make("/n")
        user.blob("/n/a", b"before")
        handle = create(user)
        user.fill(handle, b"after")
        sealed = user.start(c.SealCube(handle=handle))
        for _ in range(steps):
            world.kernel.turn()
            if world.io.jobs:
                world.io.finish_at(0)
        was_told = sealed.is_answered
        world.crash()
        world.settle()
        client = world.client()
        payload, version = client.read("/n/a"), client.stat("/n/a").version
        assert (payload[:6], version) in ((b"before", 1), (b"after\0", 2))
        assert version == 2 or not was_told


def test_a_small_fill_goes_into_the_table(world: World, user: Client) -> None:
    handle = create(user, 100)
    user.fill(handle, b"small")
    user.call(c.SealCube(handle=handle, size_bytes=5))
    assert used_bytes(world) == 0, "its memory is not needed any more"
    assert list(world.disk.keys()) == []
    assert user.read("/n/a") == b"small"


def test_a_cache_fill_is_written_back_later(world: World, user: Client) -> None:
    handle = create(user, durability=Durability.CACHE)
    user.fill(handle, b"cached")
    user.call(c.SealCube(handle=handle))
    assert user.stat("/n/a").tiers == ("ram",)
    ram = {tier.name: tier for tier in user.call(c.Info()).tiers}["ram"]
    assert ram.dirty_bytes == PAGED
    world.pass_time(world.parameters.writeback_delay_ns)
    assert user.stat("/n/a").tiers == ("ram", "disk")
    assert [d.action for d in user.call(c.Explain(name="/n/a")).decisions] == ["write-back"]
    world.crash()
    assert world.client().read("/n/a")[:6] == b"cached"
