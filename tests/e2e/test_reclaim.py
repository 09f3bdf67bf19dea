"""Too little memory, and a disk that is full, over a real daemon."""

import os
import signal
import subprocess
import sys

import pytest

from libmem import CubeType, Durability
from libmem.abi.errors import Errno, MemError
from tests.e2e.daemon import ROOT, Daemon, eventually, tier

KIB = 1 << 10
CONFIG = '[ram]\nbudget_bytes = "2 MiB"\n[listen]\nmode = "0600"\n'
SIZE = 256 * KIB


def test_a_full_disk_leaves_cache_payloads_in_ram_and_says_so(idle: Daemon) -> None:
    idle.config = CONFIG + "[behaviour]\nwriteback_delay_s = 0.05\n"
    idle.start("page.fsync.before=enospc")
    with idle.connect() as client:
        client.make_namespace("/t")
        for number in range(4):
            payload = bytes([number]) * SIZE
            client.write(f"/t/{number}", payload, type=CubeType.BLOB, durability=Durability.CACHE)
        eventually(
            lambda: any("takes no page files" in told for told in client.info().notices),
            "the notice of a full disk",
        )
        assert tier(client.info(), "ram").dirty_bytes == 4 * SIZE
        for number in range(4):
            assert client.read(f"/t/{number}") == bytes([number]) * SIZE
        with pytest.raises(MemError) as refused:
            client.write("/t/durable", bytes(SIZE), type=CubeType.BLOB)
        assert refused.value.errno is Errno.ENOSPC
        client.write("/t/small", b"the table has room", type=CubeType.BLOB)
        for number in range(4):
            client.unlink(f"/t/{number}")


_HOG = """
import sys
from pathlib import Path
import libmem
client = libmem.connect(Path(sys.argv[1]))
held = [client.pin(f"/t/{number}") for number in range(7)]
print("held", flush=True)
sys.stdin.read()
"""


def test_a_client_that_pins_everything_is_told_of_and_its_death_mends_all(idle: Daemon) -> None:
    idle.config = CONFIG + "[limits]\npin_share_per_uid = 1.0\n"
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        for number in range(10):
            client.write(f"/t/{number}", bytes([number]) * SIZE, type=CubeType.BLOB)
        hog = subprocess.Popen(
            [sys.executable, "-c", _HOG, str(idle.runtime_dir)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with hog:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"held\n"
            with client.map("/t/8"), pytest.raises(MemError) as refused:
                client.map("/t/9")
            assert refused.value.errno is Errno.ENOMEM
            assert refused.value.detail["pinned_bytes"] >= 7 * SIZE
            assert client.stat("/t/1").name == "/t/1"
            os.kill(hog.pid, signal.SIGKILL)
        eventually(lambda: tier(client.info(), "ram").pinned_bytes == 0, "its pins to go")
        for number in range(10):
            assert client.read(f"/t/{number}") == bytes([number]) * SIZE
