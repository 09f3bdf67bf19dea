"""The device tier of a real daemon: a worker of its own with torch, on the host's memory."""

import importlib.util
import os
import signal
from collections.abc import Iterator

import pytest

import libmem
from libmem.abi.calls import MigrateCube, MmapCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.state import TierStat, WorkerStat
from libmem.abi.structs import TierName
from tests.e2e.actor import Actor, require_other_users
from tests.e2e.daemon import Daemon, eventually, tier

CONFIG = '[listen]\nmode = "0666"\n[device]\nname = "{}"\nbudget_bytes = "4 MiB"\n'
MIB = 1 << 20
READ = """
import libmem.device
with libmem.device.map_device(client, "/t/a") as mapped:
    (frame,) = mapped.tensors
    say(f"{mapped.device} {frame.dtype} {tuple(frame.shape)} {frame.sum().item()}")
    frame.fill_(9)
    say(hear())
    say(f"{frame[0].item()}")
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Running, with a device of 4 MiB, a worker that is ready, and /t."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    daemon = Daemon()
    daemon.config = CONFIG.format("cpu")
    daemon.folder.chmod(0o755)
    try:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace("/t", mode=0o755)
        eventually(lambda: worker(daemon).state == "idle", "the device's worker is ready")
    except BaseException:
        daemon.destroy()
        raise
    yield daemon
    daemon.finish()


def worker(daemon: Daemon) -> WorkerStat:
    """The one that owns the device."""
    with daemon.connect() as client:
        (stat,) = client.info().workers
    return stat


def device(client: libmem.Client) -> TierStat:
    return tier(client.info(), "device")


def test_two_processes_map_one_copy(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/a", b"\1" * MIB)
        with Actor(daemon, READ) as one, Actor(daemon, READ) as other:
            for each in (one, other):
                assert each.hear() == f"cpu torch.uint8 ({MIB},) {MIB}"
            assert device(client).cubes == 1
            assert device(client).pinned_bytes == MIB
            assert client.stat("/t/a").tiers == ("device", "ram", "disk")
            for each in (one, other):
                each.tell("go on")
                assert each.hear() == "go on"
                assert each.hear() == "9", "what one writes into its own is its own"
        assert client.read("/t/a") == b"\1" * MIB
        eventually(lambda: not device(client).pinned_bytes, "what the dead held is free")


def test_the_budget_holds_and_others_give_way(daemon: Daemon) -> None:
    with daemon.connect() as client:
        for number in range(6):
            client.write(f"/t/{number}", b"x" * MIB)
            client.call(MigrateCube(f"/t/{number}", TierName.DEVICE))
            assert device(client).used_bytes <= 4 * MIB
        there = [TierName.DEVICE in client.stat(f"/t/{number}").tiers for number in range(6)]
        # Which of the others is the policy's to say: what each took to load weighs in.
        assert there[5]
        assert sum(there) == 4


def test_a_killed_worker_takes_its_frames_along(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/a", b"\1" * MIB)
        parts = client.map_parts("/t/a", tier=TierName.DEVICE)
        before = worker(daemon).pid
        os.kill(before, signal.SIGKILL)
        eventually(lambda: not device(client).cubes, "its frames are gone")
        assert client.stat("/t/a").tiers == ("ram", "disk")
        again = client.map_parts("/t/a", tier=TierName.DEVICE)
        assert worker(daemon).pid != before
        assert os.pread(again.parts[0].fd, MIB, 0) == b"\1" * MIB
        parts.give_back()
        again.give_back()


def test_who_may_not_read_gets_no_copy(daemon: Daemon) -> None:
    require_other_users()
    program = """
from libmem.abi.structs import TierName
say(errno_of(client.map_parts, "/t/a", tier=TierName.DEVICE))
"""
    with daemon.connect() as client:
        client.write("/t/a", b"\1" * MIB)
        client.call(MigrateCube("/t/a", TierName.DEVICE))
    with Actor(daemon, program, 65534, (65534,)) as stranger:
        assert stranger.hear() == "EACCES"


def test_a_device_that_torch_has_not_is_said_and_the_rest_goes_on() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    daemon = Daemon()
    daemon.config = CONFIG.format("cuda:99")
    try:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace("/t")
            client.write("/t/a", b"\1" * MIB)

            def is_said() -> bool:
                return any("cuda:99" in notice for notice in client.info().notices)

            eventually(is_said, "there is no such device")
            with pytest.raises(MemError) as caught:
                client.call(MmapCube("/t/a", tier=TierName.DEVICE))
            assert caught.value.errno is Errno.EOPNOTSUPP
            assert client.read("/t/a") == b"\1" * MIB
    finally:
        daemon.destroy()
