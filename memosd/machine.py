"""The machine's memory: how much there is, how much is left, and when Linux stalls for want of it.

Reads /proc/meminfo, the limits of this process's cgroups (v2, or v1 where that has the memory
controller) and pressure-stall figures, never writing anything but a trigger for the latter. Files
may be absent, unreadable or odd: then what they would bound is not bounded. The kernel's `Machine`;
its thread only. Source: proc(5), cgroup-v2.rst and psi.rst of Linux.
"""

import os
import re
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import psutil
import structlog

from libmem.abi.errors import Errno, MemError
from memosd.kernel.machine import Bound, MachineMemory

__all__ = ["SystemMachine", "machine_memory_bytes"]

_log = structlog.get_logger("memosd.machine")
_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_FIELD: Final = re.compile(r"^(MemTotal|MemAvailable):\s+(\d{1,15}) kB$", re.MULTILINE | re.ASCII)
_STALLS: Final = re.compile(
    r"^(some|full) avg10=(\d{1,3}\.\d{1,9}) .*total=(\d{1,20})$", re.MULTILINE | re.ASCII
)
_NUMBER: Final = re.compile(r"\d{1,20}", re.ASCII)
_TRIGGERS: Final = (b"some 150000 1000000\0", b"some 150000 2000000\0")
"""150 ms of stalls within a second; without CAP_SYS_RESOURCE windows are multiples of 2 s. The NUL
is not for C: the last byte written is cut off, and would be a digit."""


class _Names(NamedTuple):
    """How a version of cgroups calls what we read."""

    limits: tuple[str, ...]
    current: str
    reclaimable: tuple[str, ...]
    """In memory.stat: what is counted as used, and given up at once when it is needed."""
    shared: str


_V2: Final = _Names(
    ("memory.high", "memory.max"),
    "memory.current",
    ("inactive_file", "active_file", "slab_reclaimable"),
    "shmem",
)
_V1: Final = _Names(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
    "total_shmem",
)


def machine_memory_bytes(cgroup_file: Path = _PROC / "self/cgroup", mount: Path = _CGROUPS) -> int:
    """The memory this process may use: the machine's, or less where a cgroup says so.

    Source: cgroups(7): every ancestor's limit binds, so the smallest one counts.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, names in _folders(cgroup_file, mount):
        limit = _number(folder / names.limits[-1])  # memory.high may be passed
        if limit is not None:
            limits.append(limit)
    return min(limits)


def _folders(cgroup_file: Path, mount: Path) -> Iterator[tuple[Path, _Names]]:
    """Of the cgroups of this process that have to do with memory, and of those they are in."""
    for line in (_text(cgroup_file) or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            root, names = mount, _V2
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", _V1
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield root / folder, names


class Loop(Protocol):
    """What this asks of the server."""

    def watch(self, fd: int, action: Callable[[], None], events: int) -> None:
        """Run `action` on the kernel thread whenever these events of epoll(7) are there."""
        ...

    def unwatch(self, fd: int) -> None: ...


class SystemMachine:
    """This machine, or whatever stands in the two folders."""

    def __init__(self, loop: Loop, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        self._loop = loop
        self._proc = proc
        self._cgroups = cgroups
        self._trigger_fd = -1
        self.on_pressure: Callable[[], None] = _nobody_listens

    @property
    def is_triggered(self) -> bool:
        return self._trigger_fd >= 0

    # -- looking -------------------------------------------------------------------------------

    def read(self) -> MachineMemory:
        """Some 0.3 ms. Errors: EIO where not even the machine's own memory can be told."""
        total_bytes, available_bytes = self._memory()
        machine = Bound("machine", total_bytes, available_bytes)
        groups = (
            self._bound(folder, names, total_bytes)
            for folder, names in _folders(self._proc / "self/cgroup", self._cgroups)
        )
        bounds = (machine, *(bound for bound in groups if bound is not None))
        stalls = self._stalls()
        some_avg10, some_total_us = stalls.get("some", (0.0, 0))
        full_avg10, _ = stalls.get("full", (0.0, 0))
        return MachineMemory(total_bytes, bounds, some_total_us, some_avg10, full_avg10)

    def _memory(self) -> tuple[int, int]:
        text = _text(self._proc / "meminfo") or ""
        fields = {key: int(value) << 10 for key, value in _FIELD.findall(text)}
        if len(fields) < 2:
            try:
                virtual = psutil.virtual_memory()
            except (OSError, ValueError, RuntimeError, psutil.Error) as error:
                raise MemError(Errno.EIO, f"free memory cannot be told: {error}") from None
            fields = {"MemTotal": virtual.total, "MemAvailable": virtual.available}
        total_bytes, available_bytes = fields["MemTotal"], fields["MemAvailable"]
        if not 0 <= available_bytes <= total_bytes or not total_bytes:
            what = f"{available_bytes} of {total_bytes} bytes"
            raise MemError(Errno.EIO, f"free memory cannot be told: {what} are available")
        return total_bytes, available_bytes

    def _bound(self, folder: Path, names: _Names, total_bytes: int) -> Bound | None:
        """Its tightest limit; None where it has none that binds, or does not tell what it uses."""
        limits = {name: _number(folder / name) for name in names.limits}
        known = [(limit, name) for name, limit in limits.items() if limit and limit < total_bytes]
        current_bytes = _number(folder / names.current) if known else None
        if current_bytes is None:
            return None
        limit_bytes, name = min(known)
        title = f"{name} of {folder.relative_to(self._cgroups)}"
        left_bytes = limit_bytes - current_bytes
        if left_bytes > limit_bytes // 2:
            return Bound(title, limit_bytes, left_bytes, 0)  # far off: reading more costs more
        stat = _numbers(folder / "memory.stat")
        reclaimable_bytes = sum(stat.get(key, 0) for key in names.reclaimable)
        left_bytes += min(reclaimable_bytes, current_bytes)
        return Bound(title, limit_bytes, left_bytes, stat.get(names.shared, 0))

    def _stalls(self) -> dict[str, tuple[float, int]]:
        """avg10 and total, of `some` and `full`: of our own cgroup, else of the machine."""
        text = _text(self._pressure_file()) or ""
        return {kind: (float(avg10), int(total)) for kind, avg10, total in _STALLS.findall(text)}

    def _pressure_file(self) -> Path:
        folders = _folders(self._proc / "self/cgroup", self._cgroups)
        own = next((folder for folder, names in folders if names is _V2), None)
        file = own / "memory.pressure" if own is not None else None
        return file if file is not None and file.exists() else self._proc / "pressure/memory"

    # -- being told ----------------------------------------------------------------------------

    def arm(self) -> None:
        """Have Linux tell of pressure, where it may; otherwise looking must do."""
        for path in (self._pressure_file(), self._proc / "pressure/memory"):
            for trigger in _TRIGGERS:
                fd = _armed(path, trigger)
                if fd is not None:
                    self._trigger_fd = fd
                    self._loop.watch(fd, self._fired, select.EPOLLPRI)
                    return
        _log.info("no trigger for memory pressure; it is looked at each second")

    def _fired(self) -> None:
        poll = select.poll()
        poll.register(self._trigger_fd, select.POLLPRI)
        # What was to be told, epoll has taken; an error stays, and would be told for ever.
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            _log.warning("the trigger for memory pressure failed; it is looked at each second")
            self._loop.unwatch(self._trigger_fd)
            self.close()
        self.on_pressure()

    def close(self) -> None:
        """Have Linux tell no more. Idempotent."""
        if self._trigger_fd >= 0:
            os.close(self._trigger_fd)
            self._trigger_fd = -1


def _armed(path: Path, trigger: bytes) -> int | None:
    """A descriptor that is readable out of band when the trigger goes off; None: not permitted."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.write(fd, trigger)
    except OSError:
        os.close(fd)
        return None
    return fd


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None  # a container may not see its ancestors, and old kernels lack much


def _number(path: Path) -> int | None:
    """The file's one number; None: there is none, or no limit (`max`)."""
    text = (_text(path) or "").strip()
    return int(text) if _NUMBER.fullmatch(text) else None


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in (_text(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and _NUMBER.fullmatch(row[1])}


def _nobody_listens() -> None:
    raise RuntimeError("assembly left on_pressure unset")
