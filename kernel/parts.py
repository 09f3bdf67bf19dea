"""What most of the kernel works on, made first and handed around whole."""

from typing import NamedTuple

from libmem.abi.structs import CubeType
from memosd.kernel.costs import Costs
from memosd.kernel.fairqueue import FairQueue
from memosd.kernel.heat import Heat
from memosd.kernel.lineage import Lineage
from memosd.kernel.namespace import Namespaces
from memosd.kernel.pagefiles import PageFiles
from memosd.kernel.pagetable import PageTable
from memosd.kernel.param import Parameters
from memosd.kernel.ports import Clock, Driver, FrameTier, Io, Tier
from memosd.kernel.prefixes import Prefixes
from memosd.kernel.pressure import Pressure
from memosd.kernel.residents import Residents
from memosd.kernel.tierhealth import TierHealth
from memosd.kernel.timers import Timers

__all__ = ["Parts"]


class Parts(NamedTuple):
    """One of each; `kernel.py` puts them together."""

    parameters: Parameters
    clock: Clock
    io: Io
    ram: FrameTier
    disk: Tier
    drivers: dict[CubeType, Driver]
    timers: Timers
    table: PageTable
    pages: PageFiles
    prefixes: Prefixes
    lineage: Lineage
    namespaces: Namespaces
    residents: Residents
    on_device: Residents
    heat: Heat
    turns: FairQueue
    """Whoever moves a payload takes one."""
    memory_io: Io
    disk_health: TierHealth
    pressure: Pressure
    policy_faults: dict[str, str]
    """Why reclaim policies were replaced, for people."""
    costs: Costs
