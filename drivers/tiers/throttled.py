"""A disk tier that is slower than it is: for benchmarks and tests of what decides by cost.

Owns a schedule of one slow device: every transfer takes `latency_s + size / bytes_per_s` of it,
one after another. How slow it is stands in a file, read at each transfer, so that a disk can turn
slow and quick again under a running daemon. The tier behind does all the work. Only the
environment variable MEMOSD_THROTTLED_DISK, which names the file, puts this in the place of the
disk tier (`memosd.boot`); no configuration and no client can. Called from I/O threads.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from libmem.abi.digest import Manifest
from memosd.drivers.tiers.disk import DiskTier
from memosd.drivers.tiers.payload import PayloadKey

__all__ = ["VARIABLE", "Speed", "ThrottledDisk", "disk_tier"]

VARIABLE: Final = "MEMOSD_THROTTLED_DISK"


class Speed(NamedTuple):
    """Of a disk. The file holds both numbers as text; an empty one, or none, is no throttle."""

    latency_s: float = 0.0
    bytes_per_s: float = float("inf")

    def seconds(self, size_bytes: int) -> float:
        return self.latency_s + size_bytes / self.bytes_per_s

    def write(self, path: Path) -> None:
        """Let the daemons that look there be so slow from now on."""
        text = f"{self.latency_s!r} {self.bytes_per_s!r}"
        made = path.with_suffix(".new")
        made.write_text(text, encoding="ascii")
        made.replace(path)  # never seen half written


class ThrottledDisk(DiskTier):
    """The disk tier at the speed that a file says."""

    def __init__(self, directory: Path, speed_path: Path) -> None:
        super().__init__(directory)
        self._speed_path = speed_path
        self._lock = threading.Lock()
        self._busy_until_s = 0.0

    def store(self, key: PayloadKey, fd: int, manifest: Manifest) -> None:
        """As the disk tier's, in the time it takes."""
        end_s = self._reserve(manifest.size_bytes)
        super().store(key, fd, manifest)
        _wait(end_s)

    def store_blocks(self, key: PayloadKey, blocks: Iterable[memoryview | bytes]) -> Manifest:
        """As the disk tier's, in the time it takes."""
        manifest = super().store_blocks(key, blocks)
        _wait(self._reserve(manifest.size_bytes))
        return manifest

    def load(self, key: PayloadKey, fd: int, size_bytes: int, digest: bytes) -> None:
        """As the disk tier's, in the time it takes."""
        end_s = self._reserve(size_bytes)
        super().load(key, fd, size_bytes, digest)
        _wait(end_s)

    def blocks(self, key: PayloadKey, size_bytes: int, digest: bytes) -> Iterator[bytes]:
        """As the disk tier's, in the time it takes."""
        _wait(self._reserve(size_bytes))
        yield from super().blocks(key, size_bytes, digest)

    def _reserve(self, size_bytes: int) -> float:
        """Take up the device for a transfer; when that is over, by time.monotonic."""
        with self._lock:
            begin_s = max(time.monotonic(), self._busy_until_s)
            self._busy_until_s = begin_s + self._speed().seconds(size_bytes)
            return self._busy_until_s

    def _speed(self) -> Speed:
        try:
            return Speed(*map(float, self._speed_path.read_text(encoding="ascii").split()))
        except FileNotFoundError:
            return Speed()


def disk_tier(directory: Path) -> DiskTier:
    """The disk tier; a slow one where the environment asks for it."""
    speed_path = os.environ.get(VARIABLE)
    return ThrottledDisk(directory, Path(speed_path)) if speed_path else DiskTier(directory)


def _wait(end_s: float) -> None:
    time.sleep(max(0.0, end_s - time.monotonic()))
