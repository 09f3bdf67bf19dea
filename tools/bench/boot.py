"""`boot`: how long a program waits for libmem, and a machine for memosd.

`import libmem` is timed inside fresh interpreters, next to the two compiled libraries it stands
on, which are its floor. READY on an empty store is timed from spawn to sd_notify, next to an
interpreter that does nothing.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libmem.abi.errors import Errno, MemError
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.report import Report, at_most, row
from memosd.tools.bench.samples import interleave, sample

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_TIMED_IMPORT: Final = (
    "import time; before = time.perf_counter(); import {}; print(time.perf_counter() - before)"
)


@dataclass(frozen=True)
class Plan:
    rounds: int


FULL = Plan(rounds=9)
QUICK = Plan(rounds=3)


def measure(plan: Plan, directory: Path) -> Report:
    """Medians over fresh processes; the first round, which warms the caches, is not counted."""
    imported, floor, ready, bare = (
        sample(times[1:])
        for times in interleave(
            plan.rounds + 1,
            lambda: _import_ms("libmem"),
            lambda: _import_ms("zmq, msgspec"),
            lambda: _ready_s(directory),
            _bare_s,
        )
    )
    return Report(
        "boot",
        (
            row("import_ms", imported, "import libmem", at_most(80)),
            row("ready_s", ready, "spawn to READY, empty store", at_most(1)),
            row("import_floor_ms", floor, "import zmq, msgspec"),
            row("interpreter_s", bare, "an interpreter that does nothing"),
        ),
        (f"{plan.rounds} fresh processes each, alternating, files in the page cache",),
    )


def _import_ms(modules: str) -> float:
    return float(_python(_TIMED_IMPORT.format(modules))) * 1e3


def _ready_s(directory: Path) -> float:
    with private_daemon(directory) as daemon:
        seconds = daemon.start()
        daemon.stop()
        return seconds


def _bare_s() -> float:
    before = time.perf_counter()
    _python("pass")
    return time.perf_counter() - before


def _python(program: str) -> str:
    """What a fresh interpreter prints. Errors: EIO with its last words."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise MemError(Errno.EIO, f"an interpreter ended with {done.returncode}: {words[0]}")
    return done.stdout
