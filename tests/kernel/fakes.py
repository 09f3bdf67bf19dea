"""What the kernel is handed in its tests: a clock, I/O threads, a gate, an index, peers.

Nothing here runs by itself: time moves and work is done when a test says so, in the order it says.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from libmem.abi.errors import Errno, MemError
from memosd.kernel.machine import Bound, MachineMemory
from memosd.kernel.pagetable import new_id
from memosd.kernel.session import Session
from memosd.kernel.wait import Completion

__all__ = [
    "FakeClock",
    "FakeGate",
    "FakeIo",
    "FakeMachine",
    "FakePeer",
    "FakeTraces",
    "FakeWorkers",
    "count_ids",
    "Job",
]

T = TypeVar("T")
SECOND_NS = 1_000_000_000


class FakeClock:
    """Both clocks of a machine; they stand still unless moved."""

    def __init__(self) -> None:
        self._passed_ns = 0

    def wall_ns(self) -> int:
        return 1_700_000_000 * SECOND_NS + self._passed_ns

    def monotonic_ns(self) -> int:
        return SECOND_NS + self._passed_ns

    def advance(self, by_ns: int) -> None:
        """Let time pass."""
        self._passed_ns += by_ns


class Job:
    """A piece of slow work: `execute` does it, `deliver` tells the kernel, `finish` is both."""

    def __init__(self, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        name = getattr(work, "__name__", "?")
        self.name = "commit" if name == "<lambda>" else name
        """store, load, verify, free, hash, discard, pwrite, pread, commit, ..."""
        self.args = args
        self.done: Completion[Any] = Completion()
        self._work = work
        self._outcome: tuple[Any, BaseException | None] | None = None

    def execute(self) -> None:
        """What the thread does; once."""
        if self._outcome is not None:
            return
        try:
            self._outcome = (self._work(*self.args), None)
        except OSError as error:  # as the real threads translate it
            self._outcome = (None, MemError(Errno.EIO, str(error)))
        except Exception as error:  # noqa: BLE001
            self._outcome = (None, error)

    def deliver(self) -> None:
        """What the kernel thread hears of it."""
        assert self._outcome is not None
        value, error = self._outcome
        if error is None:
            self.done.resolve(value)
        else:
            self.done.fail(error)

    def finish(self) -> None:
        self.execute()
        self.deliver()


class FakeIo:
    """Holds jobs until a test finishes them; an eager one does each at once."""

    def __init__(self, *, is_eager: bool = False) -> None:
        self.is_eager = is_eager
        self.jobs: list[Job] = []

    def run(self, work: Callable[..., T], *args: Any) -> Completion[T]:
        job = Job(work, args)
        if self.is_eager:
            job.finish()
        else:
            self.jobs.append(job)
        return job.done

    def names(self) -> list[str]:
        """What waits to be done, oldest first."""
        return [job.name for job in self.jobs]

    def find(self, name: str) -> Job:
        """The oldest job of a name; fails the test where there is none."""
        found = [job for job in self.jobs if job.name == name]
        assert found, f"no {name} among {self.names()}"
        return found[0]

    def finish(self, name: str) -> None:
        """Do and deliver the oldest job of a name."""
        job = self.find(name)
        self.jobs.remove(job)
        job.finish()

    def finish_at(self, place: int) -> None:
        """Do and deliver the job at a place in the queue."""
        self.jobs.pop(place).finish()


class FakeMachine:
    """A machine that a test makes short of memory."""

    def __init__(self, total_bytes: int, available_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.available_bytes = available_bytes
        self.groups: tuple[Bound, ...] = ()
        self.some_total_us = 0
        self.failure: MemError | None = None
        self.reads = 0
        self.is_triggered = False
        self.on_pressure: Callable[[], None] = lambda: None

    def read(self) -> MachineMemory:
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        machine = Bound("machine", self.total_bytes, self.available_bytes)
        return MachineMemory(self.total_bytes, (machine, *self.groups), self.some_total_us)


class FakeGate:
    """The fd road's far end: it keeps a duplicate of what is sent, as a client would."""

    def __init__(self) -> None:
        self.fds: dict[tuple[int, int], int] = {}
        """(session number, handle) -> descriptor"""
        self.bases: dict[tuple[int, int], list[int]] = {}
        """The descriptors of what that stands on."""
        self.failure: MemError | None = None
        self.is_stopped = False

    def send_fds(self, session: Session, handle: int, fds: Sequence[int]) -> None:
        if self.failure is not None:
            raise self.failure
        self.fds[session.number, handle] = os.dup(fds[0])
        self.bases[session.number, handle] = [os.dup(fd) for fd in fds[1:]]

    def stop(self) -> None:
        self.is_stopped = True

    def close(self, session: int, handle: int) -> None:
        """The client closes what it was sent."""
        for fd in (self.fds.pop((session, handle)), *self.bases.pop((session, handle))):
            os.close(fd)

    def close_all(self) -> None:
        for session, handle in tuple(self.fds):
            self.close(session, handle)


class FakePeer:
    """A connection of the control road; keeps its replies."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.frames: list[bytes] = []

    def reply(self, frame: bytes) -> None:
        self.frames.append(frame)


class FakeWorkers:
    """Processes that do nothing but exist, until a test lets them end."""

    def __init__(self, first: int = 5000) -> None:
        """`first`: of their process ids."""
        self.on_end: Callable[[int, str], None] = lambda _pid, _how: None
        self.pids: list[int] = []
        """Who runs, oldest first."""
        self.dead: set[int] = set()
        """Who has ended and is not reaped yet."""
        self.asked_to_end: list[int] = []
        self.killed: list[int] = []
        self.failure: MemError | None = None
        """Raised by `start` while it is set."""
        self._numbers = itertools.count(first)

    def start(self) -> int:
        if self.failure is not None:
            raise self.failure
        self.pids.append(next(self._numbers))
        return self.pids[-1]

    def is_alive(self, pid: int) -> bool:
        return pid in self.pids and pid not in self.dead

    def end(self, pid: int) -> None:
        self.asked_to_end.append(pid)

    def kill(self, pid: int) -> None:
        self.killed.append(pid)

    def finish(self, pid: int, how: str = "killed by signal 9") -> None:
        """It has ended, and is reaped."""
        self.pids.remove(pid)
        self.on_end(pid, how)


class FakeTraceFile:
    """A trace in memory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines = b""
        self.is_closed = False
        self.failure: MemError | None = None
        """Raised by `append` while it is set."""

    def append(self, lines: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.lines += lines

    def close(self) -> None:
        self.is_closed = True


class FakeTraces:
    """Where traces go, by name."""

    def __init__(self) -> None:
        self.files: dict[str, FakeTraceFile] = {}

    def create(self, name: str) -> FakeTraceFile:
        if name in self.files:
            raise MemError(Errno.EEXIST, "a trace of that name is there already")
        self.files[name] = FakeTraceFile(f"/fake/{name}")
        return self.files[name]


def count_ids() -> None:
    """The next 4,000 ids are the same each time: who yields among equals must not go by chance."""
    vars(new_id)["_tails"] = [tail.to_bytes(10, "big") for tail in range(4000, 0, -1)]
