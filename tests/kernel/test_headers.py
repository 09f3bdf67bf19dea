"""Headers: what is kept, who may change it, what is refused; parents."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import (
    ATTRIBUTES_MAX_BYTES,
    HALF_LIFE_MAX_S,
    HALF_LIFE_MIN_S,
    PARENTS_MAX,
    PRIORITY_MAX,
    TAGS_MAX,
    TEXT_FIELD_MAX_BYTES,
)
from libmem.abi.structs import (
    Descriptive,
    Durability,
    Governance,
    Sensitivity,
)
from tests.kernel.world import KIB, USER, Client, World

PAGED = 4 * KIB
"""Beyond the inline limit of these tests."""


# -- headers -------------------------------------------------------------------------------------


def test_a_header_is_kept_as_it_was_given(user: Client) -> None:
    descriptive = Descriptive(
        title="Über", semantic_type="fact", origin="o", producer="p", media_type="text/plain",
        event_time_ns=-5, valid_from_ns=1, valid_to_ns=(1 << 63) - 1, tags=("a", "b"),
    )  # fmt: skip
    governance = Governance(
        mode=0o640, owner_uid=USER, owner_gid=USER, expires_ns=1 << 62, priority=7,
        sensitivity=Sensitivity.SECRET, half_life_s=90.5,
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
        {"governance": Governance(half_life_s=-1)},
        {"governance": Governance(half_life_s=HALF_LIFE_MIN_S / 2)},
        {"governance": Governance(half_life_s=HALF_LIFE_MAX_S * 2)},
        {"governance": Governance(half_life_s=float("nan"))},
        {"governance": Governance(half_life_s=float("inf"))},
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


JSON = Descriptive(media_type="application/json")


@pytest.mark.parametrize("size_bytes", [0, PAGED], ids=["inline", "paged"])
def test_a_text_becomes_json_only_where_it_is(user: Client, size_bytes: int) -> None:
    filler = b" " * size_bytes
    user.write("/n/a", b"{not json" + filler)
    before = user.stat("/n/a"), user.usage("/n").usage.disk_bytes
    error = user.fails(c.SetHeader(name="/n/a", descriptive=JSON), Errno.EILSEQ)
    assert error.detail["offset_bytes"] == 1
    assert (user.stat("/n/a"), user.usage("/n").usage.disk_bytes) == before
    user.write("/n/a", b'{"is": "json"}' + filler)
    assert user.call(c.SetHeader(name="/n/a", descriptive=JSON)).version == 3
    assert user.stat("/n/a").descriptive == JSON
    titled = Descriptive(title="T", media_type="application/ld+json")
    assert user.call(c.SetHeader(name="/n/a", descriptive=titled)).version == 4
    assert user.call(c.SetHeader(name="/n/a", descriptive=Descriptive())).version == 5


def test_a_header_that_promises_nothing_new_leaves_the_payload_where_it_is(
    world: World, user: Client
) -> None:
    user.write("/n/text", b"x" * PAGED)
    user.blob("/n/blob", bytes(PAGED))
    for name, media_type in (("/n/text", "text/markdown"), ("/n/blob", "application/json")):
        user.call(c.Evict(name=name))
        changed = user.start(c.SetHeader(name=name, descriptive=Descriptive(media_type=media_type)))
        assert world.io.names() == []
        world.settle()
        assert changed.result().version == 2
        assert user.stat(name).tiers == ("disk",)


@pytest.mark.parametrize("step", ["load", "check_payload"])
def test_what_is_written_while_a_payload_is_checked_is_checked_too(
    world: World, user: Client, step: str
) -> None:
    user.write("/n/a", b"{}" + b" " * PAGED)
    user.call(c.Evict(name="/n/a"))
    changed = user.start(c.SetHeader(name="/n/a", descriptive=JSON))
    if step == "check_payload":
        world.io.finish("load")
    assert world.io.names() == [step]
    written = user.start(c.WriteCube(name="/n/a", payload=b"{no json"))
    world.settle()
    assert written.result().version == 2
    changed.failure(Errno.EILSEQ)
    assert user.stat("/n/a").descriptive == Descriptive()
    assert world.kernel.parts.residents.held_bytes() == 0


def test_a_cube_unlinked_while_its_payload_is_checked_stays_so(world: World, user: Client) -> None:
    user.write("/n/a", b"{}" + b" " * PAGED)
    changed = user.start(c.SetHeader(name="/n/a", descriptive=JSON))
    unlinked = user.start(c.UnlinkCube(name="/n/a"))
    world.settle()
    assert unlinked.result().versions == 1
    changed.failure(Errno.ENOENT)


def test_a_damaged_payload_is_not_called_json(world: World, user: Client) -> None:
    cube_id = user.write("/n/a", b"{}").id
    world.damage("payloads", cube_id)
    user.fails(c.SetHeader(name="/n/a", descriptive=JSON), Errno.ECORRUPT)
    assert user.stat("/n/a").is_quarantined


def test_limits_themselves_are_allowed(user: Client) -> None:
    longest = "t" * TEXT_FIELD_MAX_BYTES
    user.write(
        "/n/a",
        b"x",
        governance=Governance(
            mode=0o777,
            priority=PRIORITY_MAX,
            expires_ns=(1 << 63) - 1,
            half_life_s=HALF_LIFE_MAX_S,
        ),
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
