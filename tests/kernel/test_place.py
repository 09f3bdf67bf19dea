"""Where payloads are: room, pins and mappings, hints and orders."""

import itertools
import os

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice, CubeType, TierName
from memosd.drivers.tiers.ram import RamFrame
from memosd.kernel.session import Session
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import PAGED, Client, World

SMALL = 500
"""In the table itself."""


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
        assert error.detail == {
                "need_bytes": 2 * PAGED, "free_bytes": PAGED, "pinned_bytes": 3 * PAGED
            }  # fmt: skip
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
    assert error.detail == {"group": "/q", "need_bytes": PAGED, "free_bytes": 0}
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
    assert user.fails(c.MmapCube(name="/n/4"), Errno.ENOMEM).detail["frames"] == 3


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
    assert last.action == "prefetch refused"
    assert "no room" in last.reason


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

    monkeypatch.setattr(world.gate, "send_fds", gone)
    user.start(c.MmapCube(name="/n/a"))
    world.settle()
    assert user.session.handles == {}
    assert world.kernel.parts.residents.held_bytes() == 0
