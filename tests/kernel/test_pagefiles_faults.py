"""Page files in another form: interrupted, damaged, without their codec; never wrong."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Durability, TierName
from memosd.drivers.activation import coding as kv_coding
from memosd.kernel.rows import encode_page
from tests.caches import attributes_of, header_of
from tests.kernel.conftest import MakeWorld
from tests.kernel.stored import BOTH, HEADER, PAYLOAD, TOKENS, decisions, draft, saved_bytes, write
from tests.kernel.world import ROOT, Client, World

# -- without a codec -----------------------------------------------------------------------------


def test_what_cannot_be_decoded_here_is_not_damaged(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemError(Errno.EOPNOTSUPP, "a form of a later version")

    write(user, "/n/a")
    user.call(c.Evict(name="/n/a"))
    with monkeypatch.context() as patch:
        patch.setattr(kv_coding.KvCoding, "decode", refuse)
        for request in (
            c.MmapCube(name="/n/a"),
            c.ReadCube(name="/n/a"),
            c.PinCube(name="/n/a"),
            c.MigrateCube(name="/n/a", tier=TierName.RAM),
        ):
            assert "later version" in user.fails(request, Errno.EOPNOTSUPP).message
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
