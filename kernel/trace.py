"""A recording of accesses: one JSON line for each, for policies to be replayed on.

    {"t": 12.3, "op": "use", "key": "0123...", "size": 65536, "parent": "", "group": 3,
     "priority": 50, "cost": 0.0}

`t` are seconds since the recording began. `use`: somebody read, mapped or pinned it, whether it
was in RAM or had to be brought in. `insert`: it was written. `remove`: it is gone for good. What
reclaim takes is no access: whoever replays decides that. `key` and `parent` are ids of payloads,
which tell no names. Lines wait in memory and are written on an I/O thread; those that the disk
does not take in time are counted and left out. Kernel thread only.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from libmem.abi.calls import TraceStat
from libmem.abi.errors import Errno, MemError
from memosd.kernel.parts import Parts
from memosd.kernel.policies.policy import Entry
from memosd.kernel.timers import Timer
from memosd.kernel.wait import Completion, detach

__all__ = ["Trace", "TraceFile", "Traces"]

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_MIN_BYTES: Final = 4096
_MAX_BYTES: Final = 1 << 40
_FLUSH_NS: Final = 1_000_000_000
_FLUSH_BYTES: Final = 256 << 10
"""Written at once when so much waits; else after a second."""
_WAITING_MAX_BYTES: Final = 8 << 20


class TraceFile(Protocol):
    """A file that lines are appended to. Any thread, one call at a time."""

    path: str

    def append(self, lines: bytes) -> None:
        """Errors: ENOSPC, EIO; then nothing of them is in it."""
        ...

    def close(self) -> None: ...


class Traces(Protocol):
    """Where recordings of accesses go. Any thread."""

    def create(self, name: str) -> TraceFile:
        """A new file that none but the daemon's user reads. Errors: EEXIST, ENOSPC, EIO."""
        ...


class _Access(msgspec.Struct):
    t: float
    op: str
    key: str
    size: int
    parent: str
    group: int
    priority: int
    cost: float


class Trace:
    """At most one recording at a time; `on_switch` is told what to call for each access."""

    def __init__(self, parts: Parts, traces: Traces) -> None:
        self._io = parts.io
        self._clock = parts.clock
        self._timers = parts.timers
        self._heat = parts.heat
        self._traces = traces
        self._encode = msgspec.json.Encoder().encode
        self.on_switch: Callable[[Callable[[str, Entry], None] | None], None] = _nobody_listens
        self._stat = TraceStat(is_recording=False)
        self._is_opening = False
        self._file: TraceFile | None = None
        self._start_ns = 0
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._file_lines = self._file_bytes = 0
        """What the disk has taken."""
        self._writing: Completion[None] | None = None
        self._timer: Timer | None = None

    @property
    def problem(self) -> str:
        """Why the last recording ended by itself, for people."""
        return self._stat.problem

    def stat(self) -> TraceStat:
        return self._stat

    async def start(self, name: str, max_bytes: int) -> TraceStat:
        """Errors: EBUSY (one is under way), EINVAL, EEXIST, ENOSPC, EIO."""
        if self._file is not None or self._is_opening:
            raise MemError(Errno.EBUSY, "a recording is under way", path=self._stat.path)
        now_ns = self._clock.wall_ns()
        name = name or f"trace-{now_ns // 1_000_000}.jsonl"
        if _NAME.fullmatch(name) is None:
            raise MemError(Errno.EINVAL, "a trace is named by letters, digits, '-', '_' and '.'")
        if not _MIN_BYTES <= max_bytes <= _MAX_BYTES:
            raise MemError(Errno.EINVAL, f"max_bytes is within {_MIN_BYTES}..{_MAX_BYTES}")
        self._is_opening = True
        try:
            self._file = await self._io.run(self._traces.create, name)
        finally:
            self._is_opening = False
        self._stat = TraceStat(True, self._file.path, now_ns, max_bytes=max_bytes)
        self._start_ns = self._clock.monotonic_ns()
        self._file_lines = self._file_bytes = 0
        self._heat.decide_for_all("trace", "accesses are recorded")
        self.on_switch(self.record)
        self._tick()
        return self._stat

    async def stop(self) -> TraceStat:
        """Write what waits, and close. When none is under way, the problem of the last one is
        taken as read."""
        if self._file is None:
            self._change(problem="")
        await self._end("")
        return self._stat

    def record(self, op: str, entry: Entry) -> None:
        """One access; called while a recording is under way."""
        stat = self._stat
        line = self._encode(
            _Access(
                t=(self._clock.monotonic_ns() - self._start_ns) / 1e9,
                op=op,
                key=entry.key.hex(),
                size=entry.size_bytes,
                parent=entry.parent.hex(),
                group=entry.group,
                priority=entry.priority,
                cost=entry.restore_s,
            )
        )
        size_bytes = stat.size_bytes + len(line) + 1
        if size_bytes > stat.max_bytes:
            detach(self._end(f"the trace has its largest size, {stat.max_bytes} bytes"))
        elif self._waiting_bytes > _WAITING_MAX_BYTES:
            self._change(dropped=stat.dropped + 1)
        else:
            self._lines.append(line)
            self._waiting_bytes += len(line) + 1
            self._change(accesses=stat.accesses + 1, size_bytes=size_bytes)
            if self._waiting_bytes > _FLUSH_BYTES:
                self._flush()

    def _change(self, **fields: int | str | bool) -> None:
        self._stat = msgspec.structs.replace(self._stat, **fields)

    def _tick(self) -> None:
        self._flush()
        self._timer = self._timers.after(_FLUSH_NS, self._tick)

    def _flush(self) -> None:
        """Begin to write what waits, unless that is under way; then it goes with the next."""
        if self._writing is not None or self._file is None or not self._lines:
            return
        block, lines = b"\n".join([*self._lines, b""]), len(self._lines)
        self._lines, self._waiting_bytes = [], 0
        writing = self._writing = self._io.run(self._file.append, block)
        writing.on_done(lambda: self._written(writing, lines, len(block)))

    def _written(self, writing: Completion[None], lines: int, size_bytes: int) -> None:
        self._writing = None
        try:
            writing.result()
        except MemError as error:
            self._lines, self._waiting_bytes = [], 0
            self._change(accesses=self._file_lines, size_bytes=self._file_bytes)
            detach(self._end(f"the trace could not be written: {error}"))
        else:
            self._file_lines += lines
            self._file_bytes += size_bytes
            if self._waiting_bytes > _FLUSH_BYTES:
                self._flush()

    async def _end(self, problem: str) -> None:
        file = self._file
        if file is None or not self._stat.is_recording:
            return
        self._change(is_recording=False, problem=problem)
        self.on_switch(None)
        if self._timer is not None:
            self._timer.cancel()
        while self._lines or self._writing is not None:
            self._flush()
            try:
                if self._writing is not None:
                    await self._writing
            except MemError as error:
                self._change(problem=f"the trace could not be written: {error}")
        self._file = None
        self._heat.decide_for_all("trace", problem or "the recording was stopped")
        await self._io.run(file.close)


def _nobody_listens(record: Callable[[str, Entry], None] | None) -> None:
    raise RuntimeError(f"assembly left on_switch unset: {record}")
