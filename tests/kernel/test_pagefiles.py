"""Payloads that lie on disk in another form: smaller, accounted for, and told about."""

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno
from libmem.abi.kv import KvForm, KvStored, digest_of_tokens
from libmem.abi.structs import CubeType, Durability
from tests.caches import attributes_of, header_of, payload_of, planes, wavy
from tests.kernel.stored import (
    BOTH,
    HEADER,
    INT8_BYTES,
    PAYLOAD,
    TOKENS,
    decisions,
    draft,
    saved_bytes,
    write,
)
from tests.kernel.world import Client, World, charge_of

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
    sizes = f"{len(PAYLOAD):,} -> {form.size_bytes:,} bytes"
    assert decisions(user, "/n/a") == [f"int8: error {form.error:.4f}, {sizes}"]
    residency = user.call(c.Explain(name="/n/a")).residency
    assert f"in a page file as int8, error {form.error:.4f}" in residency


def test_parts_lie_there_each_in_its_form(user: Client) -> None:
    write(user, "/n/a")
    before = digest_of_tokens(PAYLOAD[: 48 * 4])
    part = msgspec.structs.replace(header_of(100), start=48, before=before)
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
