"""What the kernel is made of: what boot hands in, and the parts that come from it.

Everything that most of the kernel works on is made here, once, before the subsystems that
`kernel.py` puts over it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from libmem.abi.structs import CubeType
from memosd.kernel.accounts import TierAccount
from memosd.kernel.costs import Costs
from memosd.kernel.cubes import Cubes
from memosd.kernel.device import HOST, Device
from memosd.kernel.fairqueue import FairQueue
from memosd.kernel.heat import Heat
from memosd.kernel.jobs import Jobs
from memosd.kernel.ledger import Ledger
from memosd.kernel.lineage import Lineage
from memosd.kernel.machine import Machine
from memosd.kernel.namespace import Namespaces
from memosd.kernel.pagefiles import PageFiles
from memosd.kernel.pager import Pager
from memosd.kernel.pagetable import PageTable
from memosd.kernel.param import Parameters
from memosd.kernel.parts import Parts
from memosd.kernel.policies.guarded import Guarded, make_guarded
from memosd.kernel.ports import (
    Clock,
    Driver,
    FrameTier,
    Index,
    Io,
    Store,
    Tier,
    Workers,
)
from memosd.kernel.prefixes import Prefixes
from memosd.kernel.pressure import Pressure
from memosd.kernel.residents import Residents
from memosd.kernel.session import Session
from memosd.kernel.tierhealth import TierHealth, WatchedTier
from memosd.kernel.timers import Timers
from memosd.kernel.trace import Traces
from memosd.kernel.transitions import Transitions

__all__ = ["Gate", "Outside", "make_device", "make_parts", "make_transitions"]

_LINGER_NS: Final = 1_000_000


class Gate(Protocol):
    """What the kernel asks of the server."""

    def send_fds(self, session: Session, handle: int, fds: Sequence[int]) -> None:
        """Errors: EAGAIN when the client does not read its fd socket, ECANCELED when it is gone."""
        ...

    def stop(self) -> None:
        """Begin an orderly end."""
        ...


class Outside(NamedTuple):
    """Everything that boot hands in."""

    clock: Clock
    io: Io
    store: Store
    ram: FrameTier
    disk: Tier
    drivers: dict[CubeType, Driver]
    recall_index: Index
    index_io: Io
    """One thread: an index has one."""
    commit_io: Io
    """One thread of its own, so that no commit waits behind a large page file."""
    memory_io: Io
    """Threads that touch memory only, so that nothing in RAM waits for a disk."""
    gate: Gate
    workers: Workers
    device_workers: Workers
    transition_workers: Workers
    traces: Traces
    machine: Machine | None = None
    """None: the RAM budget stays as it is configured."""


def make_device(parts: Parts, pager: Pager, outside: Outside) -> Device:
    """The tier, empty; without a device it refuses everything."""
    parameters = msgspec.structs.replace(
        parts.parameters,
        workers=1 if parts.parameters.device else 0,
        no_workers=parts.parameters.no_device,
    )
    jobs = Jobs(outside.device_workers, parts.clock, parts.timers, parameters)
    return Device(parts, pager, jobs)


def make_transitions(parts: Parts, cubes: Cubes, outside: Outside) -> Transitions:
    """None under way; without a model it refuses everything."""
    own = parts.parameters
    parameters = msgspec.structs.replace(
        own,
        workers=own.transition_workers,
        no_workers=own.no_transitions,
        job_timeout_ns=own.transition_timeout_ns,
    )
    jobs = Jobs(outside.transition_workers, parts.clock, parts.timers, parameters)
    return Transitions(parts, cubes, jobs)


def _accounts(parameters: Parameters) -> tuple[TierAccount, TierAccount]:
    """RAM's and the device's. A frame takes a descriptor in the host's memory only: there both
    tiers share those that there are, by their budgets."""
    ram_bytes, device_bytes = parameters.ram_budget_bytes, parameters.device_budget_bytes
    frames = device_frames = parameters.ram_frames
    if parameters.device == HOST:
        device_frames = max(1, frames * device_bytes // max(1, ram_bytes + device_bytes))
        frames = max(1, frames - device_frames)
    return (
        TierAccount("ram", ram_bytes, frames),
        TierAccount("device", device_bytes, device_frames),
    )


def make_parts(parameters: Parameters, outside: Outside) -> Parts:
    ledger = Ledger(outside.store, outside.commit_io)
    timers = Timers(outside.clock)
    ledger.linger = lambda call: timers.after(_LINGER_NS, call)
    table = PageTable(ledger, outside.store, outside.clock)
    account, on_device = _accounts(parameters)
    costs = Costs(ledger, outside.store, outside.clock, parameters.io_threads)
    health = TierHealth("disk", outside.clock)
    disk = WatchedTier(outside.disk, health)
    policy_faults: dict[str, str] = {}

    def clock() -> float:
        return outside.clock.monotonic_ns() / 1e9

    def policy(tier: str) -> Guarded:
        return make_guarded(parameters.policy, clock, policy_faults, tier)

    return Parts(
        parameters=parameters,
        clock=outside.clock,
        io=outside.io,
        ram=outside.ram,
        disk=disk,
        drivers=outside.drivers,
        timers=timers,
        table=table,
        pages=PageFiles(table, (outside.ram, disk), outside.io, outside.drivers, costs),
        prefixes=Prefixes(ledger, outside.store, table),
        lineage=Lineage(ledger, outside.store, table, outside.clock),
        namespaces=Namespaces(ledger, outside.store, parameters.disk_budget_bytes),
        residents=Residents(account, policy("ram")),
        on_device=Residents(on_device, policy("device")),
        heat=Heat(ledger, outside.clock),
        turns=FairQueue(parameters.io_threads),
        memory_io=outside.memory_io,
        disk_health=health,
        pressure=Pressure(outside.clock, timers),
        policy_faults=policy_faults,
        costs=costs,
    )
