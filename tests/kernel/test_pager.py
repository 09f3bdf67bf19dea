"""The pager: faults, shared fills, what happens to them when the world changes meanwhile."""

import itertools
import os
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice, CubeType, TierName
from memosd.drivers.tiers.ram import RamFrame
from memosd.kernel.session import Session
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import KIB, Client, World, batch_of

PAGED = 8 * KIB
SMALL = 500
"""In the table itself."""


@pytest.fixture(params=[SMALL, PAGED], ids=["inline", "paged"])
def absent(request: pytest.FixtureRequest, user: Client) -> bytes:
    """The payload of `/n/a`, which is not in RAM."""
    payload = os.urandom(request.param)
    user.blob("/n/a", payload)
    user.call(c.Evict(name="/n/a"))
    assert user.stat("/n/a").tiers == ("disk",)
    return payload


def fault_job(world: World) -> str:
    """What reads the payload: from a page file, or out of the table."""
    return "load" if "load" in world.io.names() else "fill"


# -- faults --------------------------------------------------------------------------------------


def test_an_absent_payload_is_brought_in_once_and_stays(
    world: World, user: Client, absent: bytes
) -> None:
    assert user.mapped("/n/a") == absent
    assert user.mapped("/n/a") == absent
    stat = user.stat("/n/a")
    assert stat.tiers == ("ram", "disk")
    assert (stat.behaviour.faults, stat.behaviour.maps) == (1, 2)
    assert user.call(c.Info()).faults == 1


def test_concurrent_faults_share_one_fill(world: World, user: Client, absent: bytes) -> None:
    other = world.client()
    calls = [
        user.start(c.MmapCube(name="/n/a")),
        other.start(c.MmapCube(name="/n/a")),
        user.start(c.PinCube(name="/n/a")),
        other.start(c.MigrateCube(name="/n/a", tier=TierName.RAM)),
    ]
    assert world.io.names() == [fault_job(world)]
    world.settle()
    results = [call.result() for call in calls]
    frames = [user.fd_of(results[0].handle), other.fd_of(results[1].handle)]
    assert len({os.fstat(fd).st_ino for fd in frames}) == 1
    assert [os.pread(fd, len(absent), 0) for fd in frames] == [absent] * 2
    assert user.stat("/n/a").behaviour.faults == 1
    assert len(world.kernel.parts.residents) == 1


def test_different_payloads_are_filled_side_by_side(world: World, user: Client) -> None:
    for name in "abc":
        user.blob(f"/n/{name}", name.encode() * PAGED)
        user.call(c.Evict(name=f"/n/{name}"))
    calls = [user.start(c.MmapCube(name=f"/n/{name}")) for name in "abc"]
    assert world.io.names() == ["load"] * 3
    for place in (2, 0, 0):
        world.io.finish_at(place)
    for call, name in zip(calls, "abc", strict=True):
        handle = call.result().handle
        assert os.pread(user.fd_of(handle), PAGED, 0) == name.encode() * PAGED


def test_old_versions_fault_like_any_other(world: World, user: Client) -> None:
    for number in range(3):
        user.blob("/n/a", bytes([number]) * PAGED)
        user.call(c.Evict(name="/n/a"))
    for number in (1, 0, 2):
        assert user.mapped(f"/n/a@v{number + 1}") == bytes([number]) * PAGED
    assert len(world.kernel.parts.residents) == 3


def test_a_failed_fill_fails_all_who_wait_and_the_next_one_starts_anew(
    world: World, user: Client
) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    world.plan.fail("load", Errno.EIO)
    calls = [user.start(c.MmapCube(name="/n/a")) for _ in range(3)]
    world.settle()
    for call in calls:
        call.failure(Errno.EIO)
    assert world.kernel.parts.residents.account.used_bytes == 0
    assert user.mapped("/n/a") == bytes(PAGED), "an error in reading is not damage"


# -- unlinked meanwhile --------------------------------------------------------------------------


@pytest.mark.parametrize("is_durable", [True, False], ids=["durable", "pending"])
@pytest.mark.parametrize("what", ["/n/a", "/n/a@v1"])
def test_an_unlink_during_a_fill_wins(
    world: World, user: Client, absent: bytes, is_durable: bool, what: str
) -> None:
    if what != "/n/a":
        user.blob("/n/a", b"newer")
    maps = [user.start(c.MmapCube(name=what)) for _ in range(2)]
    gone = user.start(c.UnlinkCube(name=what))
    if is_durable:
        world.kernel.turn()
        world.io.finish("commit")
    world.io.finish(fault_job(world))
    world.settle()
    for mapping in maps:
        mapping.failure(Errno.ENOENT)
    assert gone.result().versions == 1
    assert user.session.handles == {}
    assert world.kernel.parts.table.quarantined == set()
    assert world.kernel.parts.residents.account.used_bytes == 0


@pytest.mark.parametrize("is_durable", [True, False], ids=["durable", "pending"])
def test_an_unlink_while_a_fault_waits_for_room_wins(
    make_world: MakeWorld, is_durable: bool
) -> None:
    for size in (SMALL, PAGED):
        world = make_world(ram_budget_bytes=PAGED)
        user = world.client()
        user.make("/n")
        user.blob("/n/a", bytes(size))
        user.call(c.Evict(name="/n/a"))
        user.blob("/n/dirty", bytes(PAGED), durability="cache")
        mapping = user.start(c.MmapCube(name="/n/a"))
        assert world.io.names() == ["store"], "the dirty one is written back first"
        gone = user.start(c.UnlinkCube(name="/n/a"))
        if is_durable:
            world.kernel.turn()
            world.io.finish("commit")
        world.settle()
        mapping.failure(Errno.ENOENT)
        assert gone.result().versions == 1
        assert world.kernel.parts.table.quarantined == set()


def test_a_rename_during_a_fill_is_no_unlink(world: World, user: Client, absent: bytes) -> None:
    calls = [user.start(c.ReadCube(name="/n/a")), user.start(c.PinCube(name="/n/a"))]
    user.start(c.RenameCube(name="/n/a", new_name="/n/b"))
    world.settle()
    assert user.read("/n/b") == absent
    assert calls[0].result().payload == absent
    calls[1].failure(Errno.ENOENT)  # what is handed out is what the name means by now
    assert world.kernel.parts.table.quarantined == set()


def test_a_new_version_during_a_fill_is_what_is_handed_out(
    world: World, user: Client, absent: bytes
) -> None:
    mapping = user.start(c.MmapCube(name="/n/a"))
    user.start(c.WriteCube(name="/n/a", payload=b"newer" * 1000, type=CubeType.BLOB))
    while not mapping.is_answered:
        world.settle()
    reply = mapping.result()
    content = os.pread(user.fd_of(reply.handle), reply.size_bytes, 0)
    assert (reply.version, content) in ((1, absent), (2, b"newer" * 1000))


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
def test_a_damaged_page_file_is_never_served(world: World, user: Client, damage: str) -> None:
    written = user.blob("/n/a", os.urandom(PAGED))
    user.blob("/n/other", b"fine")
    user.call(c.Evict(name="/n/a"))
    if damage == "flip":
        world.plan.flip_bit(at=4097)
    elif damage == "truncate":
        world.plan.truncate()
    else:
        world.disk.free(next(iter(world.disk.keys())))
    calls = [user.start(c.MmapCube(name="/n/a")), user.start(c.ReadCube(name="/n/a"))]
    world.settle()
    for call in calls:
        assert call.failure(Errno.ECORRUPT).detail["cube"] == "/n/a"
    for request in (c.MmapCube, c.ReadCube, c.PinCube):
        user.fails(request(name="/n/a"), Errno.ECORRUPT)
    assert user.stat("/n/a").is_quarantined
    assert user.read("/n/other") == b"fine"
    assert world.kernel.parts.residents.account.used_bytes == 0
    actions = [d.action for d in user.call(c.Explain(name="/n/a")).decisions]
    assert actions[-1] == "quarantine"
    assert any("quarantined" in notice for notice in user.call(c.Info()).notices)
    world.crash()
    user = world.client()
    user.fails(c.MmapCube(name="/n/a"), Errno.ECORRUPT)
    user.blob("/n/a", b"a new version is a new payload")
    assert user.read("/n/a") == b"a new version is a new payload"
    user.fails(c.ReadCube(name="/n/a@v1"), Errno.ECORRUPT)
    assert user.unlink("/n/a").versions == 2
    assert world.kernel.parts.table.quarantined == set()
    assert written.version == 1


@pytest.mark.parametrize("how", ["read", "mmap", "pin", "read a part"])
def test_a_damaged_payload_in_the_table_is_never_served(
    world: World, user: Client, how: str
) -> None:
    key = user.blob("/n/a", b"x" * SMALL).id
    world.damage("payloads", key)
    requests: dict[str, c.Call[Any]] = {
        "read": c.ReadCube(name="/n/a"),
        "read a part": c.ReadCube(name="/n/a", offset_bytes=1, length_bytes=2),
        "mmap": c.MmapCube(name="/n/a"),
        "pin": c.PinCube(name="/n/a"),
    }
    user.fails(requests[how], Errno.ECORRUPT)
    user.fails(requests[how], Errno.ECORRUPT)
    assert user.stat("/n/a").is_quarantined
    user.unlink("/n/a")


@pytest.mark.parametrize("table", ["names", "cubes"])
def test_a_damaged_row_reads_as_corrupt_and_harms_no_other(
    world: World, user: Client, table: str
) -> None:
    cube_id = user.write("/n/a", b"x").id
    user.write("/n/b", b"y")
    key = b"/n/a" if table == "names" else cube_id
    whole = world.kernel.parts.table.ledger.get(table, key)
    assert whole is not None
    for at in range(len(whole)):
        world.damage(table, key, at)
        requests: list[c.Call[Any]] = [
            c.ReadCube(name="/n/a"),
            c.StatCube(name="/n/a"),
            c.WriteCube(name="/n/a", payload=b"z"),
            c.MmapCube(name="/n/a"),
            c.SetHeader(name="/n/a"),
            c.RenameCube(name="/n/a", new_name="/n/c"),
            c.HistoryCube(name="/n/a"),
        ]
        for request in requests if at % 16 == 0 else requests[:2]:
            user.fails(request, Errno.ECORRUPT)
        world.damage(table, key, at)
    assert user.read("/n/a") == b"x"
    assert user.read("/n/b") == b"y"


def test_a_damaged_old_version_harms_no_other(world: World, user: Client) -> None:
    cube_id = user.write("/n/a", b"1").id
    user.write("/n/a", b"2")
    world.damage("history", cube_id + (1).to_bytes(4, "big"))
    user.fails(c.ReadCube(name="/n/a@v1"), Errno.ECORRUPT)
    assert user.read("/n/a") == b"2"
    user.write("/n/a", b"3")
    assert user.read("/n/a@v2") == b"2"
    world.damage("history", cube_id + (1).to_bytes(4, "big"))


# -- evicted while somebody waits ----------------------------------------------------------------


def test_a_waiter_may_evict_what_another_waited_for(
    world: World, user: Client, absent: bytes
) -> None:
    """The one who started the fill goes on last; what it waited for may be gone again."""
    other = world.client()
    first = user.start(c.MmapCube(name="/n/a"))
    batch = other.start(
        batch_of(c.MigrateCube(name="/n/a", tier=TierName.RAM), c.Evict(name="/n/a"))
    )
    world.settle()
    assert [item.errno for item in batch.result().results] == [0, 0]
    assert os.pread(user.fd_of(first.result().handle), len(absent), 0) == absent
    assert user.stat("/n/a").behaviour.faults == 2, "the first one's had to be repeated"
    world.fill_ram(other, world.parameters.ram_budget_bytes - 2 * PAGED)
    other.blob("/n/more", bytes(PAGED))  # and reclaim still finds its way
    other.blob("/n/yet-more", bytes(PAGED))


# -- room ----------------------------------------------------------------------------------------


def test_a_fault_that_finds_no_room_says_what_it_needs(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 * PAGED)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(2 * PAGED))
    user.call(c.Evict(name="/n/a"))
    world.fill_ram(user, 3 * PAGED)
    for request in (c.MmapCube(name="/n/a"), c.PinCube(name="/n/a"), c.ReadCube(name="/n/a")):
        error = user.fails(request, Errno.ENOMEM)
        assert error.detail == {"need_bytes": 2 * PAGED, "free_bytes": PAGED}
    user.fails(c.CreateCube(name="/n/b", size_bytes=2 * PAGED), Errno.ENOMEM)
    user.fails(c.MigrateCube(name="/n/a", tier=TierName.RAM), Errno.ENOMEM)


def test_a_write_by_value_that_finds_no_room_says_so(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=2 * PAGED)
    user = world.client()
    user.make("/n")
    world.fill_ram(user, 2 * PAGED)
    user.fails(c.WriteCube(name="/n/b", payload=bytes(PAGED), type=CubeType.BLOB), Errno.ENOMEM)
    assert user.write("/n/c", b"what goes into the table needs none").version == 1


def test_a_namespace_over_its_ram_quota_says_what_it_needs(world: World, user: Client) -> None:
    user.make("/q", ram_bytes=2 * PAGED)
    user.blob("/n/beside", bytes(PAGED))
    user.blob("/q/a", bytes(PAGED))
    user.blob("/q/b", bytes(PAGED))
    user.blob("/q/c", bytes(PAGED))
    assert user.usage("/q").usage.ram_bytes == 2 * PAGED, "it made room among its own"
    assert user.stat("/n/beside").tiers == ("ram", "disk"), "not at a neighbour's cost"
    user.call(c.PinCube(name="/q/b"))
    user.call(c.PinCube(name="/q/c"))
    error = user.fails(c.MmapCube(name="/q/a"), Errno.EDQUOT)
    assert error.detail == {"need_bytes": PAGED, "free_bytes": 0}
    user.call(c.MmapCube(name="/n/beside"))


def test_where_no_frame_can_be_made_nothing_stays_charged(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(size_bytes: int) -> RamFrame:
        raise MemError(Errno.EMFILE, "out of descriptors")

    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    with monkeypatch.context() as patch:
        patch.setattr(world.ram, "allocate", allocate)
        user.fails(c.MmapCube(name="/n/a"), Errno.EMFILE)
        user.fails(c.CreateCube(name="/n/b", size_bytes=PAGED), Errno.EMFILE)
    assert world.kernel.parts.residents.account.used_bytes == 0
    assert user.mapped("/n/a") == bytes(PAGED)


def test_frames_are_limited_as_descriptors_are(make_world: MakeWorld) -> None:
    world = make_world(ram_frames=3)
    user = world.client()
    user.make("/n")
    for number in range(5):
        user.blob(f"/n/{number}", bytes(PAGED))
    assert len(world.kernel.parts.residents) == 3
    for number in range(3):
        user.call(c.PinCube(name=f"/n/{number}"))
    assert user.fails(c.MmapCube(name="/n/4"), Errno.ENOMEM).detail == {"frames": 3}


# -- pins and maps -------------------------------------------------------------------------------


def test_what_is_held_is_never_a_victim(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 * PAGED)
    user = world.client()
    user.make("/n")
    user.blob("/n/mapped", b"m" * PAGED)
    user.blob("/n/pinned", b"p" * PAGED)
    mapped = user.call(c.MmapCube(name="/n/mapped")).handle
    user.call(c.PinCube(name="/n/pinned"))
    for number in range(10):
        user.blob(f"/n/{number}", bytes(2 * PAGED))
    for name in ("/n/mapped", "/n/pinned"):
        assert "ram" in user.stat(name).tiers
        user.fails(c.Evict(name=name), Errno.EBUSY)
        user.fails(c.MigrateCube(name=name, tier=TierName.DISK), Errno.EBUSY)
        user.call(c.AdviseCube(name=name, advice=Advice.DONTNEED))
    assert os.pread(user.fd_of(mapped), PAGED, 0) == b"m" * PAGED


def test_every_hold_counts(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    handles = [user.call(c.MmapCube(name="/n/a")).handle for _ in range(2)]
    pins = [user.call(c.PinCube(name="/n/a")).handle for _ in range(2)]
    stat = user.stat("/n/a")
    assert (stat.maps, stat.pins) == (2, 2)
    for step in (
        c.MunmapCube(handle=handles[0]),
        c.UnpinCube(handle=pins[0]),
        c.MunmapCube(handle=handles[1]),
        c.UnpinCube(handle=pins[1]),
    ):
        user.fails(c.Evict(name="/n/a"), Errno.EBUSY)
        user.call(step)
    assert user.call(c.Evict(name="/n/a")).freed_bytes == PAGED


def test_an_unlinked_payload_stays_for_who_holds_it(world: World, user: Client) -> None:
    other = world.client()
    user.blob("/n/a", b"held" * 2048)
    handle = user.call(c.MmapCube(name="/n/a")).handle
    pin = other.call(c.PinCube(name="/n/a")).handle
    other.unlink("/n/a")
    assert os.pread(user.fd_of(handle), 4, 0) == b"held"
    account = world.kernel.parts.residents.account
    assert account.used_bytes == PAGED, "still charged, for it is still there"
    other.call(c.UnpinCube(handle=pin))
    assert account.used_bytes == PAGED
    user.call(c.MunmapCube(handle=handle))
    assert account.used_bytes == 0
    assert list(world.disk.keys()) == []


def test_orphans_go_with_the_session_of_their_last_holder(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.call(c.MmapCube(name="/n/a"))
    user.unlink("/n/a")
    user.die()
    world.settle()
    assert world.kernel.parts.residents.account.used_bytes == 0


def test_an_orphan_never_comes_back_to_the_policy(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=2 * PAGED)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(PAGED))
    handles = [user.call(c.MmapCube(name="/n/a")).handle for _ in range(2)]
    user.unlink("/n/a")
    user.call(c.MunmapCube(handle=handles[0]))
    user.blob("/n/b", bytes(PAGED))
    user.blob("/n/c", bytes(PAGED))
    user.call(c.MunmapCube(handle=handles[1]))
    user.blob("/n/d", bytes(PAGED))


# -- hints and orders ----------------------------------------------------------------------------


def test_willneed_brings_in_and_never_fails_for_lack_of_room(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=2 * PAGED)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    pending = user.start(c.AdviseCube(name="/n/a", advice=Advice.WILLNEED))
    assert pending.is_answered, "a hint is not waited for"
    world.settle()
    assert "ram" in user.stat("/n/a").tiers
    user.call(c.Evict(name="/n/a"))
    world.fill_ram(user, 2 * PAGED)
    user.call(c.AdviseCube(name="/n/a", advice=Advice.WILLNEED))
    last = user.call(c.Explain(name="/n/a")).decisions[-1]
    assert last.action == "prefetch failed"
    assert "ENOMEM" in last.reason


def test_the_other_hints_say_who_goes_first(make_world: MakeWorld) -> None:
    for advice, is_gone in itertools.product(
        (Advice.COLD, Advice.SEQUENTIAL, Advice.DONTNEED), (True, False)
    ):
        world = make_world(ram_budget_bytes=3 * PAGED)
        user = world.client()
        user.make("/n")
        for name in "abc":
            user.blob(f"/n/{name}", bytes(PAGED))
        if is_gone:  # hints about what is not in RAM are as good as none
            user.call(c.Evict(name="/n/c"))
        user.call(c.AdviseCube(name="/n/c", advice=advice))
        if advice is Advice.SEQUENTIAL and not is_gone:
            user.mapped("/n/c")  # used once, and done with
        user.blob("/n/d", bytes(PAGED))
        in_ram = {name for name in "abcd" if "ram" in user.stat(f"/n/{name}").tiers}
        assert in_ram == {"a", "b", "d"}


def test_dontneed_drops_at_once_but_nothing_that_is_only_there(world: World, user: Client) -> None:
    user.blob("/n/clean", bytes(PAGED))
    user.blob("/n/dirty", bytes(PAGED), durability="cache")
    for name in ("/n/clean", "/n/dirty"):
        user.call(c.AdviseCube(name=name, advice=Advice.DONTNEED))
    assert user.stat("/n/clean").tiers == ("disk",)
    assert user.stat("/n/dirty").tiers == ("ram",)


def test_migration_goes_both_ways(world: World, user: Client, absent: bytes) -> None:
    assert user.call(c.MigrateCube(name="/n/a", tier=TierName.RAM)).tiers == ("ram", "disk")
    assert user.call(c.MigrateCube(name="/n/a", tier=TierName.DISK)).tiers == ("disk",)
    user.blob("/n/cache", bytes(PAGED), durability="cache")
    assert user.call(c.MigrateCube(name="/n/cache", tier=TierName.DISK)).tiers == ("disk",)
    assert user.read("/n/cache") == bytes(PAGED)
    assert user.read("/n/a") == absent


@pytest.mark.parametrize("size", [SMALL, PAGED])
def test_eviction_tells_what_it_freed(world: World, user: Client, size: int) -> None:
    user.blob("/n/a", bytes(size))
    user.mapped("/n/a")
    assert user.call(c.Evict(name="/n/a")).freed_bytes == -(-size // 4096) * 4096
    assert user.call(c.Evict(name="/n/a")).freed_bytes == 0
    assert user.stat("/n/a").behaviour.evictions == 1


def test_an_eviction_gives_way_to_who_came_meanwhile(world: World, user: Client) -> None:
    user.blob("/n/a", b"x" * PAGED, durability="cache")
    evicted = user.start(c.Evict(name="/n/a"))
    mapped = user.start(c.MmapCube(name="/n/a"))
    world.settle()
    evicted.failure(Errno.EBUSY)
    assert os.pread(user.fd_of(mapped.result().handle), 1, 0) == b"x"
    assert user.stat("/n/a").tiers == ("ram", "disk"), "but it was written back"


def test_a_read_under_way_keeps_the_frame(world: World, user: Client) -> None:
    user.blob("/n/a", b"x" * PAGED)
    read = user.start(c.ReadCube(name="/n/a"))
    evicted = user.start(c.Evict(name="/n/a"))
    gone = user.start(c.UnlinkCube(name="/n/a"))
    world.kernel.turn()
    world.io.finish("commit")
    world.settle()
    evicted.failure(Errno.EBUSY)
    assert read.result().payload == b"x" * PAGED
    assert gone.result().versions == 1
    assert world.kernel.parts.residents.account.used_bytes == 0


def test_a_client_gone_before_its_descriptor_was_sent_holds_nothing(
    world: World, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.blob("/n/a", bytes(PAGED))

    def gone(session: Session, handle: int, fd: int) -> None:
        user.world.kernel.gone(session)

    monkeypatch.setattr(world.gate, "send_fd", gone)
    user.start(c.MmapCube(name="/n/a"))
    world.settle()
    assert user.session.handles == {}
    assert world.kernel.parts.residents.held_bytes() == 0
