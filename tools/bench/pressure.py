"""`pressure`: another program takes the machine's memory, and the daemon gives its share back.

The machine is not filled for it: the line below which the daemon gives back (`ram.reserve_bytes`)
is drawn close below what is available now. The RAM tier is filled, then another process takes
memory, in steps, until less than the line is left; later it gives all of it back at once. A client
maps cubes all the while and checks each. What other programs do to the machine meanwhile moves
the figures; what is taken in all is told with them.
"""

import mmap
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

import libmem
from libmem.abi.calls import InfoReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.state import TierStat
from libmem.abi.structs import CubeType
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.process import Worker, workers
from memosd.tools.bench.report import Report, Row, at_most, row

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_MIB: Final = 1 << 20
_NAMESPACE: Final = "/pressure"
_STEP_BYTES: Final = 16 * _MIB
_PAUSE_S: Final = 0.02
_PATIENCE_S: Final = 60.0
_FLOOR: Final = 1 / 16
"""Of the budget: less than that the daemon keeps to work with."""
_BACK_BAR_S: Final = 2.0


@dataclass(frozen=True)
class Plan:
    budget_mib: int
    """Of the RAM tier; three quarters of it are filled."""
    slack_mib: int
    """Between what is available once the budget is full and the line."""
    cube_mib: int = 8

    @property
    def cubes(self) -> int:
        return self.budget_mib * 3 // 4 // self.cube_mib

    @property
    def hog_mib(self) -> int:
        """What the other process takes: half of the budget is missing then."""
        return self.budget_mib // 4 + self.slack_mib + self.budget_mib // 2


FULL = Plan(budget_mib=1024, slack_mib=256)
QUICK = Plan(budget_mib=256, slack_mib=128)


def measure(plan: Plan, directory: Path) -> Report:
    """Fill, let another process take memory, and let it go. Errors: ENOMEM."""
    with private_daemon(directory) as daemon:
        # What others take meanwhile is missing from the slack, and told.
        room_bytes = (plan.budget_mib + plan.slack_mib) * _MIB
        line_bytes = psutil.virtual_memory().available - room_bytes
        if line_bytes <= 0:
            raise MemError(Errno.ENOMEM, "the machine has too little memory", need_bytes=room_bytes)
        daemon.config = (
            f"[ram]\nbudget_bytes = {plan.budget_mib * _MIB}\nreserve_bytes = {line_bytes}\n"
        )
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace(_NAMESPACE)
            for number in range(plan.cubes):
                client.write(_name(number), _payload(plan, number), type=CubeType.BLOB)
            with workers(_hog, (plan.hog_mib * _MIB,)) as [hog], _Reader(daemon, plan) as reader:
                rows = _squeeze(client, hog, line_bytes)
        rows += [
            row("errors", reader.errors, f"of {reader.maps:,} maps meanwhile", at_most(0)),
            row("deaths", 0 if _is_alive(daemon) else 1, "of the daemon", at_most(0)),
        ]
        daemon.stop()
    return Report("pressure", tuple(rows), _notes(plan))


def _notes(plan: Plan) -> tuple[str, ...]:
    return (
        f"a RAM budget of {plan.budget_mib} MiB, {plan.cubes} cubes of {plan.cube_mib} MiB; the "
        f"other process takes {plan.hog_mib} MiB in steps of {_STEP_BYTES // _MIB}",
        "back_s: from the last step until as much as the line is available again, or all was given",
    )


def _squeeze(client: libmem.Client, hog: Worker, line_bytes: int) -> list[Row]:
    before = _ram(client.info())
    watch = _Watch(client)
    start_bytes = watch.available_bytes + before.used_bytes
    hog.send("take")
    taking = threading.Thread(target=hog.result)
    taking.start()
    while taking.is_alive():
        watch.look()
    taking.join()
    since = time.monotonic()
    watch.until(lambda: watch.available_bytes >= line_bytes or watch.has_given_all)
    back_s = time.monotonic() - since
    given_bytes = before.used_bytes - watch.ram.used_bytes
    lowest_bytes = watch.lowest_bytes
    hog.ask("give")
    since = time.monotonic()
    watch.until(lambda: watch.ram.budget_bytes == watch.ram.configured_bytes)
    regained_s = time.monotonic() - since
    regained = watch.ram.budget_bytes / watch.ram.configured_bytes
    others_bytes = start_bytes - watch.available_bytes - watch.ram.used_bytes
    under_mib = max(0, line_bytes - lowest_bytes) / _MIB
    return [
        row("back_s", back_s, "until the line is available again", at_most(_BACK_BAR_S)),
        row("given_back_mib", given_bytes / _MIB, f"of {before.used_bytes // _MIB} MiB in RAM"),
        row("least_budget_mib", watch.least_budget_bytes / _MIB, "the budget, at its lowest"),
        row("line_mib", line_bytes / _MIB, "available memory that is to be left to others"),
        row("lowest_mib", lowest_bytes / _MIB, "available memory, at its lowest"),
        row("under_line_mib", under_mib, "how far below the line that was"),
        row("regained_s", regained_s, "until the budget is whole, once the other one is gone"),
        row("regained_share", regained, "of the budget; less where others took the memory"),
        row("others_mib", others_bytes / _MIB, "taken by other programs meanwhile; below 0: freed"),
    ]


class _Watch:
    """What is available and what the tier takes, looked at again and again."""

    def __init__(self, client: libmem.Client) -> None:
        self._client = client
        self.lowest_bytes = self.available_bytes = psutil.virtual_memory().available
        self.ram = _ram(client.info())
        self.least_budget_bytes = self.ram.budget_bytes

    def look(self) -> None:
        self.available_bytes = psutil.virtual_memory().available
        self.lowest_bytes = min(self.lowest_bytes, self.available_bytes)
        self.ram = _ram(self._client.info())
        self.least_budget_bytes = min(self.least_budget_bytes, self.ram.budget_bytes)
        if self.ram.used_bytes > self.ram.budget_bytes:
            raise MemError(Errno.EIO, "the RAM tier is over its budget")
        time.sleep(_PAUSE_S)

    def until(self, is_so: Callable[[], bool]) -> None:
        """For as long as `_PATIENCE_S`: other programs may keep it from ever being so."""
        deadline = time.monotonic() + _PATIENCE_S
        self.look()
        while not is_so() and time.monotonic() < deadline:
            self.look()

    @property
    def has_given_all(self) -> bool:
        """Is the budget as low as it goes, but for what is mapped just now?"""
        floor_bytes = self.ram.configured_bytes * _FLOOR + self.ram.pinned_bytes
        return self.ram.budget_bytes <= floor_bytes + _STEP_BYTES


class _Reader:
    """A client that maps cubes at random and checks them, until it is told to end."""

    def __init__(self, daemon: Daemon, plan: Plan) -> None:
        self.maps = self.errors = 0
        self._daemon, self._plan = daemon, plan
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        draw = random.Random(1)
        with self._daemon.connect() as client:
            while not self._end.wait(_PAUSE_S):
                number = draw.randrange(self._plan.cubes)
                self.maps += 1
                try:
                    with client.map(_name(number)) as payload:
                        is_right = payload[:1] == payload[-1:] == bytes([number % 256])
                    self.errors += not is_right
                except MemError:
                    self.errors += 1


@contextmanager
def _hog(take_bytes: int) -> Iterator[Callable[[Any], Any]]:
    """A process that takes memory and gives it back."""
    held: list[mmap.mmap] = []

    def carry_out(order: str) -> None:
        if order == "give":
            while held:
                held.pop().close()
            return
        for _ in range(take_bytes // _STEP_BYTES):
            block = mmap.mmap(-1, _STEP_BYTES)
            block.write(b"\1" * _STEP_BYTES)
            held.append(block)
            time.sleep(_PAUSE_S)

    yield carry_out


def _name(number: int) -> str:
    return f"{_NAMESPACE}/{number}"


def _payload(plan: Plan, number: int) -> bytes:
    return bytes([number % 256]) * (plan.cube_mib * _MIB)


def _ram(info: InfoReply) -> TierStat:
    return next(tier for tier in info.tiers if tier.name == "ram")


def _is_alive(daemon: Daemon) -> bool:
    try:
        with daemon.connect() as client:
            return client.info().pid == daemon.pid
    except MemError:
        return False
