"""Superseding: old cubes end in the commit of the new one, whole or not at all; who may."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.limits import PARENTS_MAX, POSITION_MAX, TEXT_FIELD_MAX_BYTES
from libmem.abi.structs import (
    CubeType,
    Descriptive,
    Durability,
    EventKind,
    Governance,
    Quota,
    Usage,
)
from tests.kernel.world import KIB, PAGED, Client, World, batch_of

SIZES = pytest.mark.parametrize("size_bytes", [1, PAGED], ids=["inline", "paged"])


def superseding(
    name: str, *old: str, size_bytes: int = 1, valid_from_ns: int = 0, **fields: Any
) -> c.WriteCube:
    """A write that takes the place of others."""
    return c.WriteCube(
        name=name,
        payload=b"x" * size_bytes,
        descriptive=Descriptive(valid_from_ns=valid_from_ns),
        supersedes=old,
        **fields,
    )


def ended(client: Client, name: str) -> tuple[str, int]:
    """By whom, and when."""
    about = client.stat(name).descriptive
    return about.superseded_by, about.valid_to_ns


@SIZES
def test_the_old_ends_where_the_new_begins(world: World, user: Client, size_bytes: int) -> None:
    before = Descriptive(title="T", tags=("t",), valid_from_ns=5)
    user.write("/n/old", b"1", descriptive=before, attributes={"k": 1})
    user.write("/n/older", b"2")
    made = user.call(
        superseding("/n/new", "/n/old", "/n/older", size_bytes=size_bytes, valid_from_ns=77)
    )
    stat = user.stat("/n/old")
    assert (stat.version, stat.attributes) == (2, {"k": 1})
    assert stat.descriptive == Descriptive(
        title="T", tags=("t",), valid_from_ns=5, valid_to_ns=77, superseded_by=made.id.hex()
    )
    assert ended(user, "/n/older") == (made.id.hex(), 77)
    assert user.stat("/n/old@v1").descriptive == before, "what was believed then"
    assert user.read("/n/old") == b"1"
    assert ended(user, "/n/new") == ("", 0)


def test_without_a_beginning_this_moment_counts(world: World, user: Client) -> None:
    user.write("/n/old", b"1")
    world.clock.advance(1_000)
    now_ns = world.clock.wall_ns()
    made = user.call(superseding("/n/new", "/n/old"))
    assert ended(user, "/n/old") == (made.id.hex(), now_ns)


def test_what_had_ended_before_stays_ended_then(user: Client) -> None:
    user.write("/n/old", b"1", descriptive=Descriptive(valid_to_ns=50))
    user.write("/n/open", b"1", descriptive=Descriptive(valid_to_ns=200))
    made = user.call(superseding("/n/new", "/n/old", "/n/open", valid_from_ns=100))
    assert ended(user, "/n/old") == (made.id.hex(), 50)
    assert ended(user, "/n/open") == (made.id.hex(), 100)


def test_each_is_told_in_the_log_behind_its_successor(user: Client) -> None:
    user.write("/n/old", b"1")
    since = user.call(c.Watch(under="/n")).next_seq
    user.call(superseding("/n/new", "/n/old", "/n/old"))
    events = user.call(c.Watch(under="/n", since_seq=since)).events
    assert [(event.kind, event.name, event.version) for event in events] == [
        (EventKind.WRITE, "/n/new", 1),
        (EventKind.HEADER, "/n/old", 2),
    ]


def test_an_existing_cube_may_take_the_place_of_others(user: Client) -> None:
    made = user.write("/n/fact", b"1")
    user.write("/n/rumour", b"1")
    user.call(superseding("/n/fact", "/n/rumour", expected_version=1))
    assert ended(user, "/n/rumour")[0] == made.id.hex()
    assert user.stat("/n/fact").version == 2


def test_a_payload_in_memory_supersedes_when_it_is_sealed(world: World, user: Client) -> None:
    user.write("/n/old", b"1")
    request = c.CreateCube(name="/n/new", size_bytes=4 * KIB, supersedes=("/n/old",))
    filled = user.call(request)
    assert ended(user, "/n/old") == ("", 0)
    world.gate.close(user.session.number, filled.handle)
    made = user.call(c.SealCube(handle=filled.handle))
    assert ended(user, "/n/old")[0] == made.id.hex()


def test_what_is_gone_when_it_is_sealed_cannot_be_superseded(world: World, user: Client) -> None:
    user.write("/n/old", b"1")
    request = c.CreateCube(name="/n/new", size_bytes=4 * KIB, supersedes=("/n/old",))
    filled = user.call(request)
    user.unlink("/n/old")
    world.gate.close(user.session.number, filled.handle)
    user.fails(c.SealCube(handle=filled.handle), Errno.ENOENT)
    user.fails(c.StatCube(name="/n/new"), Errno.ENOENT)


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        (superseding("/n/new", "/n/missing"), Errno.ENOENT),
        (superseding("/n/new", "/n/old@v1"), Errno.EINVAL),
        (superseding("/n/new", "relative"), Errno.EINVAL),
        (superseding("/n/old", "/n/old"), Errno.EINVAL),
        (superseding("/n/new", *["/n/old"] * (PARENTS_MAX + 1)), Errno.EINVAL),
        (superseding("/n/new", "/n/old", durability=Durability.CACHE), Errno.EINVAL),
        (superseding("/n/new", "/n/old", "/n/missing"), Errno.ENOENT),
        (superseding("/n/new", "/n/old", expected_version=1), Errno.EVERSION),
    ],
    ids=["missing", "version", "no name", "itself", "many", "cache", "one missing", "expected"],
)
def test_what_cannot_be_leaves_all_as_it_was(
    user: Client, request_: c.WriteCube, errno: Errno
) -> None:
    user.write("/n/old", b"1")
    before = user.stat("/n/old"), user.usage("/n")
    user.fails(request_, errno)
    assert (user.stat("/n/old"), user.usage("/n")) == before


def test_superseding_takes_the_right_to_write(world: World, user: Client) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/shared", mode=0o777)
    owner.write("/shared/theirs", b"x", governance=Governance(mode=0o644))
    owner.write("/shared/ours", b"x", governance=Governance(mode=0o666))
    stranger.fails(superseding("/shared/new", "/shared/theirs"), Errno.EACCES)
    stranger.call(superseding("/shared/new", "/shared/ours"))
    assert ended(owner, "/shared/theirs") == ("", 0)
    assert ended(owner, "/shared/ours")[0]
    assert owner.stat("/shared/ours").governance.owner_uid == owner.identity.uid


def test_cubes_of_any_type_are_superseded(user: Client) -> None:
    user.blob("/n/old", bytes(PAGED))
    user.call(superseding("/n/new", "/n/old"))
    assert ended(user, "/n/old")[0]
    assert user.read("/n/old") == bytes(PAGED)


# -- whose field it is -----------------------------------------------------------------------------


def test_nobody_writes_superseded_by_himself(world: World, user: Client) -> None:
    forged = Descriptive(superseded_by="ab" * 16)
    user.write("/n/a", b"x")
    for request in (
        c.WriteCube(name="/n/b", payload=b"x", descriptive=forged),
        c.WriteCube(name="/n/a", payload=b"x", descriptive=forged),
        c.CreateCube(name="/n/b", size_bytes=1, descriptive=forged),
        c.SetHeader(name="/n/a", descriptive=forged),
    ):
        user.fails(request, Errno.EINVAL)
        world.root.fails(request, Errno.EINVAL)


def test_what_is_there_is_kept_or_cleared(user: Client) -> None:
    user.write("/n/old", b"1")
    user.call(superseding("/n/new", "/n/old"))
    about = user.stat("/n/old").descriptive
    user.call(c.SetHeader(name="/n/old", descriptive=about))
    user.write("/n/old", b"2", descriptive=about)
    user.call(c.SetHeader(name="/n/old", attributes={"k": 1}))
    assert user.stat("/n/old").descriptive == about
    user.write("/n/old", b"it holds after all")
    assert ended(user, "/n/old") == ("", 0)


@pytest.mark.parametrize(
    "bad",
    [
        Descriptive(session="s" * (TEXT_FIELD_MAX_BYTES + 1)),
        Descriptive(position=-1),
        Descriptive(position=POSITION_MAX + 1),
    ],
    ids=["session", "negative", "position"],
)
def test_a_senseless_place_is_refused(user: Client, bad: Descriptive) -> None:
    user.fails(c.WriteCube(name="/n/a", payload=b"x", descriptive=bad), Errno.EINVAL)
    user.write(
        "/n/a",
        b"x",
        descriptive=Descriptive(session="s" * TEXT_FIELD_MAX_BYTES, position=POSITION_MAX),
    )


# -- room, and what goes wrong ---------------------------------------------------------------------


def test_the_new_versions_are_charged_where_they_are(user: Client) -> None:
    user.make("/m")
    user.write("/m/old", b"1", descriptive=Descriptive(title="a title"))
    before = user.usage("/m").usage.disk_bytes
    user.call(superseding("/n/new", "/m/old"))
    assert user.usage("/m").usage.disk_bytes > before + 512
    user.unlink("/n/new")
    user.unlink("/m/old")
    assert user.usage("/m").usage == user.usage("/n").usage == Usage()


@SIZES
@pytest.mark.parametrize("short", ["/n", "/m"])
def test_without_room_for_all_nothing_is_done(
    world: World, user: Client, size_bytes: int, short: str
) -> None:
    user.make("/m")
    user.write("/m/old", b"1")
    used = user.usage(short).usage.disk_bytes
    world.root.call(c.SetQuota(namespace=short, quota=Quota(disk_bytes=used + 600)))
    request = superseding("/n/new", "/m/old", size_bytes=size_bytes)
    if short == "/m":
        user.call(request)
        request = superseding("/n/newer", "/m/old", size_bytes=size_bytes)
    elif size_bytes == 1:
        user.write("/n/ballast", b"1")
    before = user.usage("/n"), user.usage("/m"), user.stat("/m/old")
    user.fails(request, Errno.EDQUOT)
    assert (user.usage("/n"), user.usage("/m"), user.stat("/m/old")) == before


def test_the_tier_must_hold_all_together(make_world: Any) -> None:
    world = make_world(disk_budget_bytes=4 * KIB)
    user = world.client()
    user.make("/n")
    user.make("/m")
    user.write("/m/old", bytes(900).replace(b"\0", b"x"))
    user.write("/n/other", bytes(900).replace(b"\0", b"x"))
    used = user.usage("/n").usage.disk_bytes + user.usage("/m").usage.disk_bytes
    room = 4 * KIB - used
    user.fails(superseding("/n/new", "/m/old", size_bytes=room - 600), Errno.ENOSPC)
    assert user.usage("/n").usage.cubes == 1
    assert ended(user, "/m/old") == ("", 0)


@SIZES
@pytest.mark.parametrize("step", ["stage", "commit"])
def test_a_failed_commit_leaves_nothing_half_done(
    world: World, user: Client, size_bytes: int, step: str
) -> None:
    user.write("/n/old", b"1")
    before = user.stat("/n/old"), user.usage("/n")
    store = world.store
    (store.fail_stage if step == "stage" else store.fail_commit)(Errno.EIO)
    user.fails(superseding("/n/new", "/n/old", size_bytes=size_bytes), Errno.EIO)
    assert (user.stat("/n/old"), user.usage("/n")) == before
    user.fails(c.StatCube(name="/n/new"), Errno.ENOENT)
    world.forget_failures()
    user.call(superseding("/n/new", "/n/old", size_bytes=size_bytes))
    assert user.stat("/n/old").version == 2


@SIZES
def test_after_a_crash_both_happened_or_neither(make_world: Any, size_bytes: int) -> None:
    for steps in range(8):
        world = make_world()
        user = world.client()
        user.make("/n")
        user.write("/n/old", b"1")
        user.start(superseding("/n/new", "/n/old", size_bytes=size_bytes))
        for _ in range(steps):
            world.kernel.turn()
            if world.io.jobs:
                world.io.finish_at(0)
        world.crash()
        world.settle()
        names = {stat.name for stat in world.root.call(c.Readdir("/n")).entries}
        assert ("/n/new" in names) == bool(ended(world.root, "/n/old")[0])


def test_superseded_twice_in_one_batch_the_later_stays(user: Client) -> None:
    user.write("/n/old", b"1")
    user.call(batch_of(superseding("/n/a", "/n/old"), superseding("/n/b", "/n/old")))
    assert ended(user, "/n/old")[0] == user.stat("/n/b").id.hex()
    assert ended(user, "/n/old@v2")[0] == user.stat("/n/a").id.hex()


def test_the_driver_of_the_new_one_does_not_matter(user: Client) -> None:
    user.write("/n/old", b"1")
    user.call(superseding("/n/new", "/n/old", type=CubeType.BLOB))
    assert ended(user, "/n/old")[0] == user.stat("/n/new").id.hex()
