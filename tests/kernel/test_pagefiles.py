"""Payloads that lie on disk in another form: smaller, accounted for, checked, and told about."""

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno
from libmem.abi.kv import KvForm, KvHeader, KvStored
from libmem.abi.structs import CubeType, Durability, TierName
from memosd.drivers.activation import coding as kv_coding
from memosd.kernel.rows import encode_page
from tests.caches import attributes_of, header_of, payload_of, planes, wavy
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import ROOT, Client, World, charge_of

TOKENS = 60
HEADER = header_of(TOKENS)
PAYLOAD = payload_of(HEADER, wavy)
INT8_BYTES = 4096 + 4 * 64 * (TOKENS + 4)
BOTH = pytest.mark.parametrize("durability", Durability)


def write(
    user: Client,
    name: str,
    header: KvHeader = HEADER,
    durability: Durability = Durability.CACHE,
) -> c.WriteReply:
    """An activation cube."""
    return user.call(draft(name, header, durability))


def draft(
    name: str, header: KvHeader = HEADER, durability: Durability = Durability.DURABLE
) -> c.WriteCube:
    """The request."""
    return c.WriteCube(
        name,
        PAYLOAD,
        type=CubeType.ACTIVATION,
        attributes=attributes_of(header),
        durability=durability,
    )


def decisions(user: Client, name: str, action: str = "encode") -> list[str]:
    """The reasons of all decisions of a kind."""
    found = user.call(c.Explain(name=name)).decisions
    return [decision.reason for decision in found if decision.action == action]


def saved_bytes(world: World) -> int:
    """How much less the small form is charged."""
    return world.disk.charge_bytes(len(PAYLOAD)) - world.disk.charge_bytes(INT8_BYTES)


# -- there and back ------------------------------------------------------------------------------


@BOTH
def test_until_it_is_evicted_nothing_is_lost(user: Client, durability: Durability) -> None:
    written = write(user, "/n/a", durability=durability)
    assert user.mapped("/n/a") == PAYLOAD
    user.call(c.Evict(name="/n/a"))
    lossy = user.mapped("/n/a")
    assert lossy != PAYLOAD
    stat = user.stat("/n/a")
    assert stat.digest == written.digest == digest_of(PAYLOAD)
    assert stat.size_bytes == len(PAYLOAD)
    form = stat.stored
    assert form is not None
    assert (form.form, form.size_bytes, form.content_digest) == (
        "int8",
        INT8_BYTES,
        digest_of(lossy),
    )
    assert 0 < form.error < 0.02
    for before, after in zip(planes(HEADER, PAYLOAD), planes(HEADER, lossy), strict=True):
        assert abs(before - after).max() < abs(before).max() / 200


@BOTH
def test_it_stays_the_same_from_then_on(world: World, user: Client, durability: Durability) -> None:
    write(user, "/n/a", durability=durability)
    user.call(c.Evict(name="/n/a"))
    lossy = user.mapped("/n/a")
    user.call(c.Evict(name="/n/a"))
    assert user.mapped("/n/a") == lossy, "it is not encoded a second time"
    world.crash()
    user = world.client()
    assert user.mapped("/n/a") == lossy
    assert user.read("/n/a@v1")[:4096] == PAYLOAD[:4096]
    assert world.root.call(c.Fsck()).findings == ()


def test_tokens_are_found_as_before(world: World, user: Client) -> None:
    write(user, "/n/a", durability=Durability.DURABLE)
    world.crash()
    user = world.client()
    tokens = PAYLOAD[: 4 * TOKENS]
    reply = user.call(c.FindPrefix(model=HEADER.model, tokens=tokens))
    assert (reply.name, reply.tokens) == ("/n/a@v1", TOKENS)


@pytest.mark.parametrize("stored", [None, KvStored(KvForm.EXACT)])
def test_who_does_not_ask_for_it_loses_nothing(user: Client, stored: KvStored | None) -> None:
    header = header_of(TOKENS, stored)
    write(user, "/n/a", header)
    user.call(c.Evict(name="/n/a"))
    assert user.mapped("/n/a") == PAYLOAD
    assert user.stat("/n/a").stored is None
    assert decisions(user, "/n/a") == []


@BOTH
def test_why_it_stays_is_told(user: Client, durability: Durability) -> None:
    header = header_of(TOKENS, KvStored(KvForm.INT8, error_max=0.0001))
    write(user, "/n/a", header, durability=durability)
    user.call(c.Evict(name="/n/a"))
    assert user.mapped("/n/a") == PAYLOAD
    assert user.stat("/n/a").stored is None
    (reason,) = decisions(user, "/n/a")
    assert reason.startswith("stays as it is: error 0.0")
    assert reason.endswith("is above 0.0001")


@BOTH
def test_what_it_became_is_told(user: Client, durability: Durability) -> None:
    write(user, "/n/a", durability=durability)
    user.call(c.Evict(name="/n/a"))
    form = user.stat("/n/a").stored
    assert form is not None
    assert decisions(user, "/n/a") == [f"int8: error {form.error:.4f}, 0.1 -> 0.0 MiB"]
    residency = user.call(c.Explain(name="/n/a")).residency
    assert f"in a page file as int8, error {form.error:.4f}" in residency


@BOTH
def test_without_numpy_it_stays(
    user: Client, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ImportError

    monkeypatch.setattr(kv_coding, "_int8", absent)
    write(user, "/n/a", durability=durability)
    user.call(c.Evict(name="/n/a"))
    assert user.mapped("/n/a") == PAYLOAD
    assert "numpy" in decisions(user, "/n/a")[0]


def test_what_cannot_be_decoded_here_is_not_damaged(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ImportError

    write(user, "/n/a")
    user.call(c.Evict(name="/n/a"))
    with monkeypatch.context() as patch:
        patch.setattr(kv_coding, "_int8", absent)
        for request in (
            c.MmapCube(name="/n/a"),
            c.ReadCube(name="/n/a"),
            c.PinCube(name="/n/a"),
            c.MigrateCube(name="/n/a", tier=TierName.RAM),
        ):
            assert "numpy" in user.fails(request, Errno.EOPNOTSUPP).message
        assert world.root.call(c.Fsck()).findings == ()
    assert len(user.mapped("/n/a")) == len(PAYLOAD)


@BOTH
def test_an_encoder_that_breaks(
    user: Client, surprises: list[object], durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_coding.KvCoding, "encode", lambda *_: 1 // 0)
    write(user, "/n/a", durability=durability)
    user.call(c.Evict(name="/n/a"))
    assert user.mapped("/n/a") == PAYLOAD
    assert "ZeroDivisionError" in decisions(user, "/n/a")[0]
    assert len(surprises) == 1
    surprises.clear()


def test_a_decoder_that_breaks(
    user: Client, surprises: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(user, "/n/a")
    user.call(c.Evict(name="/n/a"))
    with monkeypatch.context() as patch:
        patch.setattr(kv_coding.KvCoding, "decode", lambda *_: 1 // 0)
        user.fails(c.MmapCube(name="/n/a"), Errno.EIO)
    surprises.clear()
    assert len(user.mapped("/n/a")) == len(PAYLOAD), "nothing was held against it"


def test_parts_lie_there_each_in_its_form(user: Client) -> None:
    write(user, "/n/a")
    part = msgspec.structs.replace(header_of(100), start=48)
    payload = payload_of(part, wavy)
    request = c.WriteCube(
        "/n/b", payload, type=CubeType.ACTIVATION, attributes=attributes_of(part), parents=("/n/a",)
    )
    user.call(request)
    for name in ("/n/a", "/n/b"):
        user.call(c.Evict(name=name))
    reply = user.call(c.MmapCube(name="/n/b", is_whole=True))
    assert [base.size_bytes for base in reply.bases] == [user.stat("/n/a").size_bytes]
    user.call(c.MunmapCube(handle=reply.handle))
    assert user.stat("/n/b").stored is not None
    assert user.mapped("/n/b")[: 52 * 4] == payload[: 52 * 4]


# -- the account ---------------------------------------------------------------------------------


@BOTH
def test_the_quota_is_charged_for_what_is_on_disk(
    world: World, user: Client, durability: Durability
) -> None:
    write(user, "/n/exact", header_of(TOKENS, KvStored(KvForm.EXACT)), durability=durability)
    exact_bytes = user.usage("/n").usage.disk_bytes
    user.unlink("/n/exact")
    write(user, "/n/a", durability=durability)
    before = user.usage("/n").usage.disk_bytes
    user.call(c.Evict(name="/n/a"))
    after = user.usage("/n").usage.disk_bytes
    names_bytes = len("exact") - len("int8")
    assert exact_bytes - names_bytes - after == saved_bytes(world)
    assert before - after == (saved_bytes(world) if durability is Durability.CACHE else 0)
    user.unlink("/n/a")
    assert user.usage("/n").usage.disk_bytes == 0


def test_room_for_the_whole_payload_is_needed_before(world: World, user: Client) -> None:
    user.make("/q", disk_bytes=charge_of(world, len(PAYLOAD)) // 2)
    user.fails(draft("/q/a"), Errno.EDQUOT)
    assert user.usage("/q").usage.disk_bytes == 0


def test_a_cube_takes_its_small_charge_along(world: World, user: Client) -> None:
    user.make("/q")
    write(user, "/n/a")
    user.call(c.SetHeader(name="/n/a", attributes={**attributes_of(HEADER), "more": 1}))
    user.call(c.Evict(name="/n/a"))
    held = user.usage("/n").usage.disk_bytes
    user.call(c.RenameCube(name="/n/a", new_name="/q/b"))
    assert user.usage("/n").usage.disk_bytes == 0
    assert user.usage("/q").usage.disk_bytes == held
    world.crash()
    user = world.client()
    assert user.stat("/q/b@v1").stored == user.stat("/q/b").stored is not None
    user.unlink("/q/b")


# -- interrupted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("errno", [Errno.ENOSPC, Errno.EIO])
@BOTH
def test_a_disk_that_fails(
    world: World, user: Client, durability: Durability, errno: Errno
) -> None:
    write(user, "/n/cache")
    used = user.usage("/n").usage.disk_bytes
    world.plan.fail("store", errno)
    if durability is Durability.CACHE:
        user.fails(c.Evict(name="/n/cache"), errno)
    else:
        user.fails(draft("/n/a"), errno)
    assert user.usage("/n").usage.disk_bytes == used
    assert user.mapped("/n/cache") == PAYLOAD
    assert user.stat("/n/cache").tiers == ("ram",)
    user.call(c.Evict(name="/n/cache"))
    assert user.stat("/n/cache").stored is not None


@pytest.mark.parametrize("step", ["stage", "commit"])
def test_a_row_that_cannot_be_committed(world: World, user: Client, step: str) -> None:
    write(user, "/n/a")
    used = user.usage("/n").usage.disk_bytes
    (world.store.fail_stage if step == "stage" else world.store.fail_commit)(Errno.ENOSPC)
    user.fails(c.Evict(name="/n/a"), Errno.ENOSPC)
    stat = user.stat("/n/a")
    assert (stat.tiers, stat.stored) == (("ram",), None)
    assert user.mapped("/n/a") == PAYLOAD, "nothing was lost, not even precision"
    assert user.usage("/n").usage.disk_bytes == used
    user.call(c.Evict(name="/n/a"))
    assert user.stat("/n/a").stored is not None
    assert used - user.usage("/n").usage.disk_bytes == saved_bytes(world)


def test_a_crash_between_file_and_row(world: World, user: Client) -> None:
    user.blob("/n/before", b"x")
    write(user, "/n/a")
    user.start(c.Evict(name="/n/a"))
    world.io.find("_encode").execute()
    assert len(list(world.disk.keys())) == 1
    world.crash()
    world.settle()
    user = world.client()
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)  # a cache cube, in RAM only
    assert list(world.disk.keys()) == []


@pytest.mark.parametrize("moment", ["encoding", "committing"])
def test_an_unlink_during_the_write_back(world: World, user: Client, moment: str) -> None:
    write(user, "/n/a")
    evicted = user.start(c.Evict(name="/n/a"))
    if moment == "committing":
        world.io.finish("_encode")
    gone = user.start(c.UnlinkCube(name="/n/a"))
    world.settle()
    assert gone.result().versions == 1
    assert evicted.is_answered
    assert user.usage("/n").usage.disk_bytes == 0
    assert list(world.disk.keys()) == []


def test_an_unlink_that_fails_during_the_write_back(world: World, user: Client) -> None:
    write(user, "/n/a")
    evicted = user.start(c.Evict(name="/n/a"))
    gone = user.start(c.UnlinkCube(name="/n/a"))
    world.store.fail_commit(Errno.ENOSPC)
    world.io.finish("_encode")
    world.settle()
    gone.failure(Errno.ENOSPC)
    evicted.failure(Errno.ENOSPC)
    assert user.mapped("/n/a") == PAYLOAD


def test_a_rename_during_the_write_back(world: World, user: Client) -> None:
    user.make("/q")
    write(user, "/n/a")
    user.start(c.Evict(name="/n/a"))
    user.start(c.RenameCube(name="/n/a", new_name="/q/a"))
    world.settle()
    assert user.usage("/n").usage.disk_bytes == 0
    assert user.stat("/q/a").stored is not None


# -- damaged -------------------------------------------------------------------------------------


@BOTH
def test_a_damaged_file_is_quarantined_and_never_decoded(
    world: World, user: Client, durability: Durability
) -> None:
    write(user, "/n/a", durability=durability)
    user.call(c.Evict(name="/n/a"))
    world.plan.flip_bit()
    user.fails(c.MmapCube(name="/n/a"), Errno.ECORRUPT)
    stat = user.stat("/n/a")
    assert stat.is_quarantined
    assert stat.tiers == ("disk",)
    assert world.kernel.parts.residents.account.used_bytes == 0
    user.unlink("/n/a")
    assert user.usage("/n").usage.disk_bytes == 0


def test_fsck_finds_a_damaged_file(make_world: MakeWorld) -> None:
    world = make_world(is_real=True)
    user = world.client(ROOT)
    user.make("/n")
    write(user, "/n/a")
    user.call(c.Evict(name="/n/a"))
    assert user.call(c.Fsck()).findings == ()
    (path,) = (world.directory / "pages").glob("*/*.page")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    (finding,) = user.call(c.Fsck(repair=True)).findings
    assert (finding.name, finding.action) == ("/n/a", "quarantined")
    user.fails(c.MmapCube(name="/n/a"), Errno.ECORRUPT)


def test_what_decodes_to_something_else_is_quarantined(world: World, user: Client) -> None:
    """As it would with another codec than the one that encoded it."""
    write(user, "/n/a", durability=Durability.DURABLE)
    user.call(c.Evict(name="/n/a"))
    table = world.kernel.parts.table
    (key,) = world.disk.keys()
    form = table.stored_form(key)
    assert form is not None
    other = type(form)(form.form, form.size_bytes, form.digest, form.error, bytes(16))
    table.put_page_file(key, table.find_id("/n/a") or b"", other)
    failure = user.fails(c.MmapCube(name="/n/a"), Errno.ECORRUPT)
    assert "decodes to something else" in failure.message
    assert user.stat("/n/a").is_quarantined


def test_a_damaged_row_serves_nothing_wrong(world: World, user: Client) -> None:
    write(user, "/n/a", durability=Durability.DURABLE)
    user.call(c.Evict(name="/n/a"))
    (key,) = world.disk.keys()
    good = world.store.get("pages", key)
    world.damage("pages", key)
    assert user.stat("/n/a").stored is None
    user.fails(c.MmapCube(name="/n/a"), Errno.ECORRUPT)
    world.store.stage({"pages": {key: good}})()
    world.store.settle()


def test_a_row_of_before_is_read_as_it_was(world: World, user: Client) -> None:
    user.blob("/n/a", PAYLOAD)
    (key,) = world.disk.keys()
    cube_id = world.kernel.parts.table.find_id("/n/a")
    assert cube_id is not None
    assert world.store.get("pages", key) == encode_page(key, cube_id, None)
    assert world.kernel.parts.table.stored_form(key) is None


@pytest.mark.parametrize("error_max", [0, -1, 1.5, float("nan"), "much"])
def test_a_bound_is_a_share(user: Client, error_max: object) -> None:
    attributes = attributes_of(HEADER)
    attributes["kv"]["stored"] = {"as": "int8", "error_max": error_max}
    request = c.WriteCube("/n/a", PAYLOAD, type=CubeType.ACTIVATION, attributes=attributes)
    user.fails(request, Errno.EINVAL)


def test_the_form_is_the_payloads_and_stays(user: Client) -> None:
    write(user, "/n/a")
    other = attributes_of(header_of(TOKENS, None))
    assert attributes_of(HEADER)["kv"]["stored"] == {"as": "int8"}
    user.fails(c.SetHeader(name="/n/a", attributes=other), Errno.EINVAL)
