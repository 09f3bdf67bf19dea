"""The device tier: copies that a worker makes, and what becomes of them when it dies."""

import os
from collections.abc import Callable

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.jobs import JobClass
from libmem.abi.structs import TierName
from memosd.kernel.residents import Resident
from tests.kernel.devices import (
    DeviceWorker,
    let_go,
    on_device,
    start,
)
from tests.kernel.world import KIB, Client, World

MakeWorld = Callable[..., World]
SECRET = b"what others may not see" * 400


@pytest.fixture(params=["cpu", "cuda:0"])
def world(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    """A device of 64 KiB, of the host or not."""
    return make_world(device=request.param, device_budget_bytes=64 * KIB)


@pytest.fixture
def worker(world: World) -> DeviceWorker:
    return DeviceWorker(world)


@pytest.fixture
def user(world: World) -> Client:
    """Somebody with cubes /n/0 to /n/4 of 16 KiB."""
    user = world.client()
    user.make("/n")
    for number in range(5):
        user.blob(f"/n/{number}", bytes([number]) * 16 * KIB)
    return user


def content(user: Client, worker: DeviceWorker, reply: c.MapReply) -> bytes:
    """What a mapping shows."""
    if reply.openings:
        return worker.frames[reply.openings[0].removeprefix(b"open ")]
    return os.pread(user.fd_of(reply.handle), reply.size_bytes, 0)


def there(user: Client) -> list[str]:
    """The cubes that have a copy on the device."""
    return [
        f"/n/{number}" for number in range(5) if TierName.DEVICE in user.stat(f"/n/{number}").tiers
    ]


def used(world: World) -> int:
    """Bytes charged there."""
    return world.kernel.parts.on_device.account.used_bytes


def test_a_cube_is_copied_once_and_mapped_by_all(user: Client, worker: DeviceWorker) -> None:
    first, second = start(user, "/n/1"), start(user, "/n/1")
    assert worker.work() == [JobClass.LOAD], "one copy for both"
    user.world.settle()
    for reply in (first.result(), second.result()):
        assert content(user, worker, reply) == bytes([1]) * 16 * KIB
        assert reply.device == user.world.kernel.device.name
        assert bool(reply.openings) == (reply.device != "cpu")
    assert worker.work() == []
    assert user.stat("/n/1").tiers == ("device", "ram", "disk")
    assert user.stat("/n/1").maps == 2
    assert used(user.world) == 16 * KIB


def test_the_longest_unused_makes_room_and_the_held_stay(
    user: Client, worker: DeviceWorker
) -> None:
    kept = on_device(user, worker, "/n/0")
    for number in (1, 2, 3):
        let_go(user, on_device(user, worker, f"/n/{number}"))
    on_device(user, worker, "/n/4")
    assert there(user) == ["/n/0", "/n/2", "/n/3", "/n/4"]
    assert content(user, worker, kept) == bytes(16 * KIB)
    assert used(user.world) == 64 * KIB


def test_a_frame_is_dropped_before_the_next_is_copied(make_world: MakeWorld) -> None:
    world = make_world(device="cuda", device_budget_bytes=16 * KIB)
    worker, user = DeviceWorker(world), world.client()
    user.make("/n")
    for name in ("/n/a", "/n/b"):
        user.blob(name, name.encode() * 4 * KIB)
    let_go(user, on_device(user, worker, "/n/a"))
    pending = start(user, "/n/b")
    assert worker.work() == [JobClass.DROP, JobClass.LOAD]
    assert len(worker.frames) == 1
    world.settle()
    pending.result()


def test_the_hosts_memory_is_charged_until_it_is_given_back(make_world: MakeWorld) -> None:
    world = make_world(device="cpu", device_budget_bytes=16 * KIB, free_at_once_bytes=8 * KIB)
    worker, user = DeviceWorker(world), world.client()
    user.make("/n")
    for name in ("/n/a", "/n/b"):
        user.blob(name, name.encode() * 4 * KIB)
    let_go(user, on_device(user, worker, "/n/a"))
    pending = user.start(c.MmapCube(name="/n/b", tier=TierName.DEVICE))
    assert world.io.names() == ["discard"]
    assert used(world) == 16 * KIB
    assert worker.take().id == 0, "there is no room to copy it to yet"
    world.settle()
    worker.work()
    world.settle()
    pending.result()
    assert used(world) == 16 * KIB


def test_only_frames_of_the_host_share_its_descriptors(make_world: MakeWorld) -> None:
    for device, frames in (("cpu", (75, 25)), ("cuda", (100, 100))):
        world = make_world(
            device=device, ram_frames=100, ram_budget_bytes=192 * KIB, device_budget_bytes=64 * KIB
        )
        parts = world.kernel.parts
        accounts = parts.residents.account, parts.on_device.account
        assert tuple(account.budget_frames for account in accounts) == frames


def test_what_is_all_held_leaves_no_room(user: Client, worker: DeviceWorker) -> None:
    for number in range(4):
        on_device(user, worker, f"/n/{number}")
    failure = start(user, "/n/4").failure(Errno.ENOMEM)
    assert failure.detail["need_bytes"] == 16 * KIB
    assert failure.detail["free_bytes"] == 0
    assert worker.work() == []
    user.die()
    assert used(user.world) == 64 * KIB, "what nobody holds stays until its room is needed"
    other = user.world.client()
    other.make("/m")
    other.blob("/m/x", bytes(16 * KIB))
    on_device(other, worker, "/m/x")


def test_a_dead_workers_frames_are_gone_and_come_again(user: Client, worker: DeviceWorker) -> None:
    held = on_device(user, worker, "/n/0")
    let_go(user, on_device(user, worker, "/n/1"))
    worker.die()
    assert there(user) == []
    assert used(user.world) == 16 * KIB, "one is still held"
    user.world.pass_time(1_000_000_000)
    following = DeviceWorker(user.world)
    again = on_device(user, following, "/n/0")
    assert content(user, following, again) == bytes(16 * KIB)
    assert used(user.world) == 32 * KIB
    let_go(user, held)
    following.work()
    assert used(user.world) == 16 * KIB
    assert content(user, following, again) == bytes(16 * KIB), "not dropped for the lost one"


def test_a_worker_that_dies_in_the_middle_has_it_copied_by_the_next(
    user: Client, worker: DeviceWorker
) -> None:
    pending = start(user, "/n/2")
    assert worker.take().id
    worker.die()
    user.world.pass_time(1_000_000_000)
    following = DeviceWorker(user.world)
    following.work()
    user.world.settle()
    assert content(user, following, pending.result()) == bytes([2]) * 16 * KIB


def test_a_copy_that_fails_leaves_nothing(user: Client, worker: DeviceWorker) -> None:
    pending = start(user, "/n/3")
    job = worker.take()
    worker.client.call(c.FinishJob(job.id, errno=Errno.ENOMEM, message="out of memory"))
    user.world.settle()
    pending.failure(Errno.ENOMEM)
    worker.work()
    assert used(user.world) == 0
    resident = user.world.resident("/n/3")
    assert resident is not None
    assert not resident.is_held


def test_nonsense_from_a_worker_is_one_error(user: Client, worker: DeviceWorker) -> None:
    pending = start(user, "/n/3")
    worker.client.call(c.FinishJob(worker.take().id, b"nonsense"))
    user.world.settle()
    pending.failure(Errno.EIO)
    assert used(user.world) == 0


def test_an_unlink_during_the_copy_wins(user: Client, worker: DeviceWorker) -> None:
    pending = start(user, "/n/1")
    user.unlink("/n/1")
    worker.work()
    user.world.settle()
    pending.failure(Errno.ENOENT)
    worker.work()
    assert used(user.world) == 0
    assert worker.frames == {}


def test_what_is_unlinked_stays_for_its_holder_alone(user: Client, worker: DeviceWorker) -> None:
    reply = on_device(user, worker, "/n/1")
    let_go(user, on_device(user, worker, "/n/2"))
    for number in (1, 2):
        user.unlink(f"/n/{number}")
    worker.work()
    assert used(user.world) == 16 * KIB
    assert content(user, worker, reply) == bytes([1]) * 16 * KIB
    let_go(user, reply)
    worker.work()
    assert used(user.world) == 0
    assert worker.frames == {}


def test_who_may_not_read_gets_nothing_of_the_device(user: Client, worker: DeviceWorker) -> None:
    user.blob("/n/0", SECRET)
    on_device(user, worker, "/n/0")
    stranger = user.world.client(2000)
    stranger.fails(c.MmapCube(name="/n/0", tier=TierName.DEVICE), Errno.EACCES)
    stranger.fails(c.MapJob(b"k" * 16), Errno.EPERM)
    user.fails(c.MapJob(b"k" * 16), Errno.EPERM)


def test_a_worker_sees_only_what_it_copies(user: Client, worker: DeviceWorker) -> None:
    resident = user.world.resident("/n/0")
    assert isinstance(resident, Resident)
    worker.client.fails(c.MapJob(resident.key), Errno.EBADF)
    on_device(user, worker, "/n/0")
    worker.client.fails(c.MapJob(resident.key), Errno.EBADF)


def test_a_copy_is_timed_and_what_is_slow_to_copy_is_worth_more(
    user: Client, worker: DeviceWorker
) -> None:
    world = user.world
    for number in range(4):
        pending = start(user, f"/n/{number}")
        job = worker.take()
        world.clock.advance(80_000_000)
        worker.client.call(c.FinishJob(job.id, worker.do(job)))
        world.settle()
        let_go(user, pending.result())
    costs = {each.name: each for each in user.call(c.Info()).costs}
    assert costs["device load"].samples == 4
    residents = list(world.kernel.parts.on_device)
    assert all(0.04 < each.restore_s < 0.16 for each in residents), "the first ones anew"
    tier = user.call(c.Info()).tiers[-1]
    assert tier.configured_bytes == tier.budget_bytes == 64 * KIB
    assert tier.some.total_us == 4 * 80_000


def test_another_policy_is_the_devices_too(user: Client, worker: DeviceWorker) -> None:
    for number in range(4):
        let_go(user, on_device(user, worker, f"/n/{number}"))
    let_go(user, on_device(user, worker, "/n/0"))
    residents = user.world.kernel.parts.on_device
    before = residents.policy
    user.world.root.call(c.SetPolicy("lru"))
    assert residents.policy is not before
    let_go(user, on_device(user, worker, "/n/4"))
    assert there(user) == ["/n/0", "/n/2", "/n/3", "/n/4"], "in their old order"
    user.world.root.call(c.SetPolicy("gdsf"))
    assert residents.policy.name == "gdsf"


def test_migration_goes_up_and_down(user: Client, worker: DeviceWorker) -> None:
    pending = user.start(c.MigrateCube(name="/n/0", tier=TierName.DEVICE))
    user.world.settle()
    worker.work()
    user.world.settle()
    assert pending.result().tiers == ("device", "ram", "disk")
    assert user.call(c.MigrateCube(name="/n/0", tier=TierName.RAM)).tiers == ("ram", "disk")
    reply = on_device(user, worker, "/n/0")
    user.fails(c.MigrateCube(name="/n/0", tier=TierName.RAM), Errno.EBUSY)
    let_go(user, reply)
    assert user.call(c.MigrateCube(name="/n/0", tier=TierName.DISK)).tiers == ("disk",)
    worker.work()
    assert used(user.world) == 0
    actions = [each.action for each in user.call(c.Explain(name="/n/0")).decisions]
    assert "promote" in actions
    assert "demote" in actions


def test_nothing_is_mapped_on_disk(user: Client) -> None:
    user.fails(c.MmapCube(name="/n/0", tier=TierName.DISK), Errno.EINVAL)


def test_without_a_device_it_is_refused(make_world: MakeWorld) -> None:
    world = make_world()
    user = world.client()
    user.make("/n")
    user.blob("/n/x", bytes(16 * KIB))
    failure = user.fails(c.MmapCube(name="/n/x", tier=TierName.DEVICE), Errno.EOPNOTSUPP)
    assert "no device is configured" in failure.message
    assert world.device_workers.pids == []
    assert [tier.name for tier in user.call(c.Info()).tiers] == ["ram", "disk"]


def test_a_device_that_cannot_be_used_says_why(user: Client, worker: DeviceWorker) -> None:
    reason = "torch cannot use it"
    worker.client.call(c.FinishJob(0, errno=Errno.EOPNOTSUPP, message=reason))
    worker.die()
    failure = start(user, "/n/0").failure(Errno.EOPNOTSUPP)
    assert reason in failure.message
    info = user.call(c.Info())
    assert any(reason in notice for notice in info.notices)
    assert info.tiers[-1].name == "device"
    assert user.read("/n/0") == bytes(16 * KIB), "all else goes on"


def test_the_end_is_the_end_of_the_device_too(user: Client, worker: DeviceWorker) -> None:
    pending = start(user, "/n/0")
    gone = user.world.kernel.device.jobs.close()
    pending.failure(Errno.ESHUTDOWN)
    assert user.world.device_workers.asked_to_end == [worker.pid]
    worker.die()
    assert gone.is_done, "reaped"
    assert used(user.world) == 0
