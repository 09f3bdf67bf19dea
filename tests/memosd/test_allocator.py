"""What the daemon frees goes back to the system."""

import subprocess
import sys
from typing import Final

import pytest

from libmem.abi.limits import READ_MAX_BYTES

_KEPT_MIB: Final = """
import os, sys
from memosd.allocator import return_large_buffers

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

size = int(sys.argv[1])
if sys.argv[2] == "set":
    assert return_large_buffers()
bytes(bytearray(size))
before = resident()
buffers, small = [], []
for _ in range(100):
    buffers.append(b"x" * size)
    small.append(bytearray(100_000))
del buffers
print((resident() - before - 100 * 100_000) >> 20)
"""


def _kept_mib(how: str) -> int:
    command = [sys.executable, "-c", _KEPT_MIB, str(READ_MAX_BYTES + 100), how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_large_buffers_below_others_go_back_to_the_system() -> None:
    if _kept_mib("left") < 50:
        pytest.skip("this C library keeps nothing by itself")
    assert _kept_mib("set") < 5
