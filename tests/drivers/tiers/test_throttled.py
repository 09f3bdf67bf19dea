"""The throttled disk: there only where the environment says so, and as slow as it is told."""

import os
import threading
from pathlib import Path

import pytest

from libmem.abi.digest import manifest_of
from memosd.drivers.tiers.disk import DiskTier
from memosd.drivers.tiers.throttled import VARIABLE, Speed, ThrottledDisk, disk_tier

KEY = bytes(range(16))
PAYLOAD = b"x" * 10_000


@pytest.fixture
def speed_path(tmp_path: Path) -> Path:
    return tmp_path / "speed"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands still but for what is slept."""
    naps: list[float] = []
    monkeypatch.setattr("memosd.drivers.tiers.throttled.time.sleep", naps.append)
    monkeypatch.setattr("memosd.drivers.tiers.throttled.time.monotonic", lambda: 100.0)
    return naps


def test_nothing_but_the_environment_throttles(
    tmp_path: Path, speed_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert type(disk_tier(tmp_path)) is DiskTier
    monkeypatch.setenv(VARIABLE, str(speed_path))
    assert type(disk_tier(tmp_path)) is ThrottledDisk


def test_transfers_take_turns_on_one_device(
    tmp_path: Path, speed_path: Path, slept: list[float]
) -> None:
    disk = ThrottledDisk(tmp_path, speed_path)
    manifest = manifest_of(PAYLOAD)
    fd = os.memfd_create("test")
    try:
        os.pwrite(fd, PAYLOAD, 0)
        disk.store(KEY, fd, manifest)
        assert slept == [0.0], "no file, no throttle"
        Speed(0.5, 10_000.0).write(speed_path)
        disk.load(KEY, fd, manifest.size_bytes, manifest.digest)
        assert slept[1:] == [1.5]
        assert b"".join(disk.blocks(KEY, manifest.size_bytes, manifest.digest)) == PAYLOAD
        assert slept[2:] == [3.0], "behind the other"
        Speed().write(speed_path)
        disk.store(KEY, fd, manifest)
        assert slept[3:] == [3.0]
        assert disk.store_blocks(KEY, [PAYLOAD]).digest == manifest.digest
    finally:
        os.close(fd)


def test_threads_share_the_device(tmp_path: Path, speed_path: Path) -> None:
    disk = ThrottledDisk(tmp_path, speed_path)
    Speed(0.001).write(speed_path)
    ends: list[float] = []
    threads = [
        threading.Thread(target=lambda: ends.append(vars(ThrottledDisk)["_reserve"](disk, 1)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ends)) == 8
