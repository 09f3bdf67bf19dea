"""What the kernel asks of the machine that it runs on: how much memory is left.

A port as those in `ports.py`; `memosd/machine.py` fulfils it.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["Bound", "Machine", "MachineMemory"]


class Bound(NamedTuple):
    """Something that memory ends at."""

    name: str
    """For people: `machine`, or a limit of a cgroup."""
    limit_bytes: int
    available_bytes: int
    """What may still be taken before others have to give; below 0 where it is exceeded."""
    ours_bytes: int | None = None
    """Of a cgroup: shared memory charged to it, the most that giving back could bring. None: of the
    machine, where all of it comes back."""


class MachineMemory(NamedTuple):
    """The memory that this process lives in, as it was just now."""

    total_bytes: int
    bounds: tuple[Bound, ...]
    """At least one."""
    some_total_us: int = 0
    """Time that any process stalled for want of memory, since any point."""
    some_avg10: float = 0.0
    full_avg10: float = 0.0


class Machine(Protocol):
    """The machine's memory. Kernel thread only."""

    on_pressure: Callable[[], None]
    """Set by the kernel."""

    @property
    def is_triggered(self) -> bool:
        """Does `on_pressure` come as soon as there is pressure? Else whoever cares must look."""
        ...

    def read(self) -> MachineMemory:
        """Fast. Errors: EIO where nothing can be told."""
        ...
