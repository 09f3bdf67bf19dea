"""Cubes: versions, compare and swap, headers, governance, parents, names, expiry."""

from typing import Any

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import (
    ATTRIBUTES_MAX_BYTES,
    NAME_MAX_BYTES,
    PARENTS_MAX,
    PRIORITY_MAX,
    READ_MAX_BYTES,
    SEGMENT_MAX_BYTES,
    TAGS_MAX,
    TEXT_FIELD_MAX_BYTES,
)
from libmem.abi.structs import (
    CubeType,
    Descriptive,
    Durability,
    Governance,
    Sensitivity,
    TierName,
)
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.invariants import check_at_rest
from tests.kernel.world import KIB, ROOT, USER, Client, World

PAGED = 4 * KIB
"""Beyond the inline limit of these tests."""


def put(user: Client, name: str, payload: bytes, **fields: Any) -> c.WriteReply:
    """A write by the road of large payloads: create, fill in place, seal."""
    made = user.call(c.CreateCube(name=name, size_bytes=len(payload), type=CubeType.BLOB, **fields))
    user.fill(made.handle, payload)
    return user.call(c.SealCube(handle=made.handle))


# -- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, 1, 1 * KIB, 1 * KIB + 1, PAGED, PAGED + 1, 64 * KIB])
@pytest.mark.parametrize("road", ["write", "create"])
def test_what_is_written_is_read_whatever_its_size(
    user: Client, size_bytes: int, road: str
) -> None:
    payload = bytes(i * 7 % 251 for i in range(size_bytes))
    written = (user.blob if road == "write" else lambda n, p: put(user, n, p))("/n/a", payload)
    assert (written.version, written.digest) == (1, digest_of(payload))
    assert user.read("/n/a") == payload
    stat = user.stat("/n/a")
    assert (stat.id, stat.size_bytes, stat.digest) == (written.id, size_bytes, written.digest)
    assert "disk" in stat.tiers
    if size_bytes:
        assert user.mapped("/n/a") == payload


def test_every_version_is_kept_and_readable(user: Client) -> None:
    payloads = [b"one", bytes(PAGED), b"", b"four" * 1000]
    for payload in payloads:
        user.blob("/n/a", payload)
    for number, payload in enumerate(payloads, 1):
        reply = user.call(c.ReadCube(name=f"/n/a@v{number}"))
        assert (reply.payload, reply.version) == (payload, number)
        stat = user.stat(f"/n/a@v{number}")
        assert (stat.version, stat.latest_version) == (number, 4)
    assert user.read("/n/a") == payloads[-1]
    history = user.call(c.HistoryCube(name="/n/a")).versions
    assert [stat.version for stat in history] == [4, 3, 2, 1]
    assert [stat.digest for stat in history] == [digest_of(p) for p in reversed(payloads)]
    short = user.call(c.HistoryCube(name="/n/a", limit=2)).versions
    assert [stat.version for stat in short] == [4, 3]


@pytest.mark.parametrize("version", [3, 1 << 31, (1 << 32) - 1, 1 << 32, 9_999_999_999])
def test_a_version_that_never_was_is_absent(user: Client, version: int) -> None:
    user.write("/n/a", b"1")
    user.write("/n/a", b"2")
    for request in (c.ReadCube, c.StatCube, c.MmapCube, c.PinCube, c.UnlinkCube):
        user.fails(request(name=f"/n/a@v{version}"), Errno.ENOENT)


def test_a_version_number_is_never_used_twice(user: Client) -> None:
    for _ in range(3):
        user.write("/n/a", b"x")
    user.unlink("/n/a@v2")
    assert user.write("/n/a", b"y").version == 4
    user.fails(c.ReadCube(name="/n/a@v2"), Errno.ENOENT)
    assert [s.version for s in user.call(c.HistoryCube(name="/n/a")).versions] == [4, 3, 1]


def test_a_cube_of_an_old_name_is_another_cube(user: Client) -> None:
    first = user.write("/n/a", b"x")
    user.unlink("/n/a")
    second = user.write("/n/a", b"y")
    assert second.version == 1
    assert second.id != first.id


def test_a_cube_keeps_its_type_and_its_creation(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    made = user.stat("/n/a")
    world.clock.advance(SECOND_NS)
    user.fails(c.WriteCube(name="/n/a", payload=b"x", type=CubeType.BLOB), Errno.EINVAL)
    user.write("/n/a", b"y")
    stat = user.stat("/n/a")
    assert (stat.created_ns, stat.modified_ns) == (made.created_ns, made.modified_ns + SECOND_NS)
    user.fails(c.WriteCube(name="/n/b", payload=b"x", type=CubeType.ACTIVATION), Errno.EOPNOTSUPP)


def test_parts_are_read_by_offset_and_length(user: Client) -> None:
    for name, payload in (("/n/in", b"0123456789"), ("/n/out", bytes(range(250)) * 20)):
        user.blob(name, payload)
        for offset, length in ((0, None), (3, 4), (3, None), (9, 100), (len(payload), 5), (0, 0)):
            reply = user.call(c.ReadCube(name=name, offset_bytes=offset, length_bytes=length))
            end = None if length is None else offset + length
            assert reply.payload == payload[offset:end]
            assert reply.size_bytes == len(payload)
        user.fails(c.ReadCube(name=name, offset_bytes=-1), Errno.EINVAL)
        user.fails(c.ReadCube(name=name, length_bytes=-1), Errno.EINVAL)
        beyond = c.ReadCube(name=name, offset_bytes=1 << 62, length_bytes=1 << 62)
        assert user.call(beyond).payload == b""


def test_too_much_for_one_message_is_refused(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 << 20, disk_budget_bytes=16 << 20)
    user = world.client()
    user.make("/n")
    put(user, "/n/a", bytes(READ_MAX_BYTES + 1))
    error = user.fails(c.ReadCube(name="/n/a"), Errno.EFBIG)
    assert error.detail["need_bytes"] == READ_MAX_BYTES + 1
    assert len(user.call(c.ReadCube(name="/n/a", offset_bytes=1)).payload) == READ_MAX_BYTES
    too_large = c.WriteCube(
        name="/n/b", payload=bytes(world.parameters.call_by_value_bytes + 1), type=CubeType.BLOB
    )
    user.fails(too_large, Errno.EFBIG)


def test_an_empty_payload_is_read_but_not_mapped(user: Client) -> None:
    user.blob("/n/a", b"")
    assert user.read("/n/a") == b""
    user.fails(c.MmapCube(name="/n/a"), Errno.EINVAL)
    user.fails(c.MigrateCube(name="/n/a", tier=TierName.RAM), Errno.EOPNOTSUPP)
    handle = user.call(c.PinCube(name="/n/a")).handle
    user.fails(c.Evict(name="/n/a"), Errno.EBUSY)
    user.call(c.UnpinCube(handle=handle))
    assert user.call(c.Evict(name="/n/a")).freed_bytes == 4 * KIB, "a frame is never for nothing"


# -- compare and swap ----------------------------------------------------------------------------


def mutations(user: Client, name: str, expected: int | None) -> list[c.Call[Any]]:
    """Every call that changes a cube, with what version it expects."""
    return [
        c.WriteCube(name=name, payload=b"new", type=CubeType.BLOB, expected_version=expected),
        c.CreateCube(name=name, size_bytes=3, type=CubeType.BLOB, expected_version=expected),
        c.SetHeader(name=name, attributes={"new": 1}, expected_version=expected),
        c.RenameCube(name=name, new_name=name + "-renamed", expected_version=expected),
        c.UnlinkCube(name=name, expected_version=expected),
    ]


@pytest.mark.parametrize("which", range(5))
def test_every_mutation_compares_and_swaps(user: Client, which: int) -> None:
    user.blob("/n/a", b"1")
    user.blob("/n/a", b"2")
    for wrong in (0, 1, 3, -1):
        error = user.fails(mutations(user, "/n/a", wrong)[which], Errno.EVERSION)
        assert error.detail == {"cube": "/n/a", "version": 2, "expected_version": wrong}
    assert user.read("/n/a") == b"2"
    assert user.stat("/n/a").version == 2
    user.call(mutations(user, "/n/a", 2)[which])
    user.blob("/n/b", b"1")
    user.call(mutations(user, "/n/b", None)[which])


def test_expecting_nothing_makes_a_new_cube_and_never_overwrites(user: Client) -> None:
    user.call(c.WriteCube(name="/n/a", payload=b"1", expected_version=0))
    user.fails(c.WriteCube(name="/n/a", payload=b"2", expected_version=0), Errno.EVERSION)
    user.fails(c.WriteCube(name="/n/b", payload=b"2", expected_version=1), Errno.EVERSION)
    user.fails(c.StatCube(name="/n/b"), Errno.ENOENT)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_writers_who_saw_the_same_version_one_loses(
    world: World, user: Client, order: tuple[int, int]
) -> None:
    user.blob("/n/a", b"seen by both")
    calls = [
        user.start(
            c.WriteCube(
                name="/n/a", payload=bytes([n]) * PAGED, type=CubeType.BLOB, expected_version=1
            )
        )
        for n in range(2)
    ]
    for _ in range(10):
        for place in order:
            if place < len(world.io.jobs):
                world.io.finish_at(place)
    world.settle()
    outcomes = [call.errno() for call in calls]
    assert sorted(outcomes) == [0, Errno.EVERSION]
    winner = outcomes.index(0)
    assert user.read("/n/a") == bytes([winner]) * PAGED
    assert user.stat("/n/a").version == 2


def test_a_fill_is_compared_again_when_it_is_sealed(user: Client) -> None:
    made = user.call(c.CreateCube(name="/n/a", size_bytes=4, expected_version=0))
    user.write("/n/a", b"first", type=CubeType.BLOB)
    user.fails(c.SealCube(handle=made.handle), Errno.EVERSION)
    assert user.read("/n/a") == b"first"
    assert user.session.handles == {}, "the fill is given back"


# -- headers -------------------------------------------------------------------------------------


def test_a_header_is_kept_as_it_was_given(user: Client) -> None:
    descriptive = Descriptive(
        title="Über", semantic_type="fact", origin="o", producer="p", media_type="text/plain",
        event_time_ns=-5, valid_from_ns=1, valid_to_ns=(1 << 63) - 1, tags=("a", "b"),
    )  # fmt: skip
    governance = Governance(
        mode=0o640, owner_uid=USER, owner_gid=USER, expires_ns=1 << 62, priority=7,
        sensitivity=Sensitivity.SECRET,
    )  # fmt: skip
    attributes = {"k": [1, 2.5, None, True, {"deep": b"x"}], "large": (1 << 64) - 1}
    user.write("/n/a", b"x", descriptive=descriptive, governance=governance, attributes=attributes)
    stat = user.stat("/n/a")
    assert (stat.descriptive, stat.governance, stat.attributes) == (
        descriptive, governance, attributes,
    )  # fmt: skip


def test_a_new_header_is_a_version_that_shares_the_payload(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED), attributes={"k": 1})
    before = user.usage("/n").usage.disk_bytes
    changed = user.call(c.SetHeader(name="/n/a", descriptive=Descriptive(title="T")))
    assert (changed.version, changed.digest) == (2, digest_of(bytes(PAGED)))
    assert 0 < user.usage("/n").usage.disk_bytes - before < PAGED
    new, old = user.stat("/n/a"), user.stat("/n/a@v1")
    assert (new.descriptive.title, new.attributes) == ("T", {"k": 1})
    assert (old.descriptive.title, old.attributes) == ("", {"k": 1})
    assert user.read("/n/a") == user.read("/n/a@v1") == bytes(PAGED)
    assert len(world.kernel.parts.residents) == 1, "both are one payload"
    user.unlink("/n/a@v1")
    assert user.read("/n/a") == bytes(PAGED), "the payload stays with the version that shares it"
    user.unlink("/n/a")
    assert user.usage("/n").usage.disk_bytes == 0


def test_a_header_group_that_is_given_replaces_the_old_one_whole(user: Client) -> None:
    user.write("/n/a", b"x", descriptive=Descriptive(title="T", tags=("t",)), attributes={"k": 1})
    user.call(c.SetHeader(name="/n/a", descriptive=Descriptive(origin="O"), attributes={}))
    stat = user.stat("/n/a")
    assert (stat.descriptive, stat.attributes) == (Descriptive(origin="O"), {})


def test_a_header_belongs_to_the_current_version(user: Client) -> None:
    user.write("/n/a", b"x")
    user.fails(c.SetHeader(name="/n/a@v1", attributes={}), Errno.EINVAL)


def test_only_the_owner_changes_the_header(world: World) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/shared", mode=0o777)
    owner.write("/shared/a", b"x", governance=Governance(mode=0o666))
    stranger.write("/shared/a", b"y")
    stranger.fails(c.SetHeader(name="/shared/a", attributes={}), Errno.EPERM)
    governed = c.WriteCube(name="/shared/a", payload=b"z", governance=Governance(mode=0o600))
    stranger.fails(governed, Errno.EPERM)
    world.root.call(c.SetHeader(name="/shared/a", attributes={"by": "root"}))
    assert owner.stat("/shared/a").governance.owner_uid == USER, "as it was: still the owner's"


def test_only_the_administrator_gives_cubes_away(world: World, user: Client) -> None:
    gift = Governance(owner_uid=2000, owner_gid=2000, mode=0o600)
    user.fails(c.WriteCube(name="/n/a", payload=b"x", governance=gift), Errno.EPERM)
    user.write("/n/a", b"x")
    user.fails(c.SetHeader(name="/n/a", governance=gift), Errno.EPERM)
    world.root.call(c.SetHeader(name="/n/a", governance=gift))
    user.fails(c.ReadCube(name="/n/a"), Errno.EACCES)
    assert world.root.stat("/n/a").governance.owner_uid == 2000


def test_a_group_is_given_by_its_members_only(world: World) -> None:
    member = world.client(USER, USER, 100)
    member.make("/n")
    member.write("/n/a", b"x", governance=Governance(owner_gid=100))
    outside = Governance(owner_gid=101)
    member.fails(c.WriteCube(name="/n/b", payload=b"x", governance=outside), Errno.EPERM)
    left = world.client(USER, USER)  # the same user, no longer in the group
    left.call(c.SetHeader(name="/n/a", governance=Governance(owner_gid=100, priority=1)))
    assert left.stat("/n/a").governance == Governance(owner_uid=USER, owner_gid=100, priority=1), (
        "what it is already may stay"
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"governance": Governance(mode=0o1000)},
        {"governance": Governance(mode=-1)},
        {"governance": Governance(priority=-1)},
        {"governance": Governance(priority=PRIORITY_MAX + 1)},
        {"governance": Governance(expires_ns=-1)},
        {"governance": Governance(expires_ns=1 << 63)},
        {"descriptive": Descriptive(tags=("t",) * (TAGS_MAX + 1))},
        {"descriptive": Descriptive(tags=("t" * (TEXT_FIELD_MAX_BYTES + 1),))},
        {"descriptive": Descriptive(title="t" * (TEXT_FIELD_MAX_BYTES + 1))},
        {"descriptive": Descriptive(producer="ü" * (TEXT_FIELD_MAX_BYTES // 2 + 1))},
        {"descriptive": Descriptive(event_time_ns=1 << 63)},
        {"descriptive": Descriptive(media_type="image/png")},
        {"attributes": {"k": b"x" * ATTRIBUTES_MAX_BYTES}},
    ],
    ids=lambda bad: repr(bad)[:60],
)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_senseless_header_is_refused_and_changes_nothing(
    user: Client, bad: dict[str, Any], is_new: bool
) -> None:
    user.write("/n/a", b"x")
    before = user.stat("/n/a"), user.usage("/n")
    request: c.Call[Any] = c.SetHeader(name="/n/a", **bad)
    if is_new:
        request = c.WriteCube(name="/n/b", payload=b"x", **bad)
    user.fails(request, Errno.EINVAL)
    assert (user.stat("/n/a"), user.usage("/n")) == before


def test_limits_themselves_are_allowed(user: Client) -> None:
    longest = "t" * TEXT_FIELD_MAX_BYTES
    user.write(
        "/n/a",
        b"x",
        governance=Governance(mode=0o777, priority=PRIORITY_MAX, expires_ns=(1 << 63) - 1),
        descriptive=Descriptive(title=longest, tags=("t",) * TAGS_MAX),
        attributes={"k": b"x" * (ATTRIBUTES_MAX_BYTES - 8)},
    )
    assert user.read("/n/a") == b"x"


def test_durability_is_the_types_unless_asked_and_then_stays(user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    assert user.stat("/n/a").durability is Durability.DURABLE
    user.blob("/n/a", bytes(PAGED), durability=Durability.CACHE)
    user.blob("/n/a", bytes(PAGED))
    stat = user.stat("/n/a")
    assert (stat.durability, stat.tiers) == (Durability.CACHE, ("ram",))
    user.blob("/n/a", bytes(PAGED), durability=Durability.DURABLE)
    assert user.stat("/n/a").tiers == ("ram", "disk")


# -- parents -------------------------------------------------------------------------------------


def test_parents_are_remembered_by_version(user: Client) -> None:
    user.write("/n/source", b"1")
    user.write("/n/source", b"2")
    user.write("/n/other", b"x")
    user.write("/n/child", b"x", parents=("/n/source@v1", "/n/other"))
    assert user.stat("/n/child").parents == ("/n/source@v1", "/n/other@v1")
    user.call(c.RenameCube(name="/n/other", new_name="/n/renamed"))
    gone = user.stat("/n/source").id
    user.unlink("/n/source")
    assert user.stat("/n/child").parents == (f"{gone.hex()}@v1", "/n/renamed@v1")
    user.write("/n/child", b"y")
    assert user.stat("/n/child").parents == ()
    assert len(user.stat("/n/child@v1").parents) == 2


def test_a_parent_must_be_there_and_readable(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    stranger = world.client(2000)
    stranger.make("/s")
    for parent, errno in (
        ("/n/a", Errno.EACCES),
        ("/s/missing", Errno.ENOENT),
        ("/missing/a", Errno.ENOENT),
        ("relative", Errno.EINVAL),
    ):
        stranger.fails(c.WriteCube(name="/s/b", payload=b"x", parents=(parent,)), errno)
    many = ("/n/a",) * (PARENTS_MAX + 1)
    user.fails(c.WriteCube(name="/n/b", payload=b"x", parents=many), Errno.EINVAL)
    user.write("/n/b", b"x", parents=many[1:])


# -- names ---------------------------------------------------------------------------------------

BAD_NAMES = {
    "": Errno.EINVAL,
    "n/a": Errno.EINVAL,
    "/": Errno.EINVAL,
    "/n": Errno.EINVAL,
    "/n/": Errno.EINVAL,
    "//a": Errno.EINVAL,
    "/n//a": Errno.EINVAL,
    "/n/../m/a": Errno.EINVAL,
    "/n/.": Errno.EINVAL,
    "/n/..": Errno.EINVAL,
    "/n/a\0b": Errno.EINVAL,
    "/n/a\nb": Errno.EINVAL,
    "/n/a\x1bb": Errno.EINVAL,
    "/n/a\u202eb": Errno.EINVAL,
    "/n/" + "x" * (SEGMENT_MAX_BYTES + 1): Errno.ENAMETOOLONG,
    "/n/" + "ü" * (SEGMENT_MAX_BYTES // 2 + 1): Errno.ENAMETOOLONG,
    "/n/" + "x" * 5000: Errno.ENAMETOOLONG,
    "/n" + "/x" * (NAME_MAX_BYTES // 2): Errno.ENAMETOOLONG,
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:20]))
def test_a_name_that_is_none_is_refused_by_every_call(user: Client, name: str) -> None:
    requests: list[c.Call[Any]] = [
        c.WriteCube(name=name, payload=b"x"),
        c.CreateCube(name=name, size_bytes=1),
        c.ReadCube(name=name),
        c.MmapCube(name=name),
        c.StatCube(name=name),
        c.UnlinkCube(name=name),
        c.RenameCube(name=name, new_name="/n/b"),
        c.RenameCube(name="/n/a", new_name=name),
        c.SetHeader(name=name),
        c.Explain(name=name),
        c.Evict(name=name),
    ]
    user.write("/n/a", b"x")
    for request in requests:
        user.fails(request, BAD_NAMES[name])
    assert user.read("/n/a") == b"x"


@pytest.mark.parametrize(
    "name",
    [
        "/n/" + "x" * SEGMENT_MAX_BYTES,
        "/n" + "/x" * (NAME_MAX_BYTES // 2 - 1),
        "/n/.hidden",
        "/n/...",
        "/n/a b",
        "/n/a@b",
        "/n/a@v0",
        "/n/ümlaut/日本",
        "/n/a'\"$(x)",
    ],
    ids=lambda name: ascii(name[:20]),
)
def test_any_other_name_is_a_name(user: Client, name: str) -> None:
    user.write(name, b"x")
    assert user.read(name) == b"x"
    assert user.read(name + "@v1") == b"x"
    listed = user.call(c.Readdir(path="/n", is_recursive=True))
    assert [entry.name for entry in listed.entries] == [name]
    user.unlink(name)


def test_a_new_name_cannot_look_like_a_version(user: Client) -> None:
    user.fails(c.WriteCube(name="/n/a@v1", payload=b"x"), Errno.EINVAL)
    user.write("/n/a", b"x")
    user.fails(c.RenameCube(name="/n/a", new_name="/n/b@v2"), Errno.EINVAL)
    user.fails(c.RenameCube(name="/n/a@v1", new_name="/n/b"), Errno.EINVAL)


# -- expiry --------------------------------------------------------------------------------------


def test_an_expired_cube_is_gone_at_once_and_swept_later(world: World, user: Client) -> None:
    soon = world.clock.wall_ns() + SECOND_NS
    user.blob("/n/a", bytes(PAGED), governance=Governance(expires_ns=soon))
    handle = user.call(c.MmapCube(name="/n/a")).handle
    world.clock.advance(SECOND_NS - 1)
    user.stat("/n/a")
    world.clock.advance(1)
    requests: list[c.Call[Any]] = [
        c.StatCube(name="/n/a"),
        c.ReadCube(name="/n/a"),
        c.MmapCube(name="/n/a"),
        c.UnlinkCube(name="/n/a"),
        c.RenameCube(name="/n/a", new_name="/n/b"),
        c.SetHeader(name="/n/a"),
    ]
    for request in requests:
        user.fails(request, Errno.ENOENT)
    assert user.call(c.Readdir(path="/n")).entries == ()
    assert user.usage("/n").usage.cubes == 1, "not swept yet"
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.usage("/n").usage.cubes == 0
    assert user.usage("/n").usage.disk_bytes == 0
    user.call(c.MunmapCube(handle=handle))
    world.settle()
    assert user.usage("/n").usage.ram_bytes == 0


def test_an_expired_name_is_free_to_write(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + 1)
    first = user.blob("/n/a", bytes(PAGED), governance=soon)
    world.clock.advance(SECOND_NS)
    second = user.call(
        c.WriteCube(name="/n/a", payload=b"new", type=CubeType.BLOB, expected_version=0)
    )
    assert second.id != first.id
    assert user.read("/n/a") == b"new"
    assert user.usage("/n").usage.cubes == 1
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.read("/n/a") == b"new"


def test_expiry_follows_the_header(world: World, user: Client) -> None:
    soon = world.clock.wall_ns() + SECOND_NS
    user.write("/n/a", b"x", governance=Governance(expires_ns=soon))
    user.write("/n/b", b"x")
    user.call(c.SetHeader(name="/n/a", governance=Governance(expires_ns=0)))
    user.call(c.SetHeader(name="/n/b", governance=Governance(expires_ns=soon)))
    user.call(c.RenameCube(name="/n/b", new_name="/n/c"))
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.read("/n/a") == b"x"
    user.fails(c.StatCube(name="/n/c"), Errno.ENOENT)
    assert user.usage("/n").usage.cubes == 1


def test_an_expiry_that_is_put_off_leaves_no_trace(world: World, user: Client) -> None:
    now = world.clock.wall_ns()
    user.write("/n/a", b"x", governance=Governance(expires_ns=now + SECOND_NS))
    user.call(c.SetHeader(name="/n/a", governance=Governance(expires_ns=now + 9 * SECOND_NS)))
    user.write("/n/a", b"y", governance=Governance(expires_ns=now + 5 * SECOND_NS))
    check_at_rest(world.kernel, world.ram, world.disk)
    world.clock.advance(4 * SECOND_NS)
    assert user.read("/n/a") == b"y"


def test_many_cubes_expire_together(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + 1)
    for number in range(600):
        user.start(c.WriteCube(name=f"/n/{number}", payload=b"x", governance=soon))
    world.settle()
    assert user.usage("/n").usage.cubes == 600
    world.pass_time(world.parameters.expiry_sweep_ns)
    world.pass_time(world.parameters.expiry_sweep_ns)
    assert user.usage("/n").usage.cubes == 0


def test_a_reader_of_what_it_may_not_know_learns_no_more_than_a_stranger(world: World) -> None:
    root = world.client(ROOT)
    root.make("/r")
    root.write("/r/a", b"x")
    stranger = world.client()
    there = stranger.fails(c.ReadCube(name="/r/a"), Errno.EACCES)
    absent = stranger.fails(c.ReadCube(name="/r/b"), Errno.EACCES)
    assert there.detail == absent.detail
    assert there.message == absent.message


def test_ids_of_cubes_are_of_their_time(world: World, user: Client) -> None:
    first = user.write("/n/a", b"x").id
    world.clock.advance(SECOND_NS)
    second = user.write("/n/b", b"x").id
    assert len(first) == len(second) == 16
    assert first < second
    assert msgspec.structs.asdict(user.stat("/n/a"))["id"] == first
