"""The boot order: configuration -> lock -> store -> tiers -> drivers -> sockets -> kernel.

The only module that knows both the kernel and the drivers, and the place where a type checker
compares what one needs with what the other is.
"""

import fcntl
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvForm, KvStored
from libmem.abi.paths import FD_SOCKET
from memosd.config import Config
from memosd.descriptors import Descriptors, share_out
from memosd.drivers.activation.top import ActivationDriver
from memosd.drivers.recall.index import RecallIndex
from memosd.drivers.store import LmdbStore
from memosd.drivers.table import DRIVERS, TopHalf
from memosd.drivers.tiers.ram import RamTier
from memosd.drivers.tiers.throttled import disk_tier
from memosd.drivers.tracefile import TraceFolder
from memosd.fdroad import check_runtime_dir
from memosd.iopool import IoPool, Wakeup
from memosd.kernel.kernel import Kernel, Outside
from memosd.kernel.param import Parameters
from memosd.kernel.rows import TABLES
from memosd.machine import SystemMachine
from memosd.notify import Notifier
from memosd.server import Server
from memosd.supervisor import Supervisor

__all__ = ["Daemon", "boot"]

_NS: Final = 1_000_000_000
_MEMORY_THREADS: Final = 2
"""Copying, hashing and giving back memory, beside the threads that wait for the disk."""
_EXTEND_TIMEOUT: Final = "EXTEND_TIMEOUT_USEC=60000000"
"""Sent anew every few seconds, as long as something is under way."""


class SystemClock:
    """The machine's clocks."""

    wall_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)


class Daemon(NamedTuple):
    """A booted daemon, to be run and then closed."""

    server: Server
    pools: tuple[IoPool, ...]
    wakeup: Wakeup
    supervisors: tuple[Supervisor, ...]
    machine: SystemMachine
    store: LmdbStore
    lock_fds: tuple[int, ...]

    def run(self) -> None:
        """Serve until stopped, then close everything in order."""
        self.store.booted()
        self.server.run()
        self.machine.close()
        for supervisor in self.supervisors:
            supervisor.close()
        for pool in self.pools:
            pool.close()
        self.store.close()
        self.wakeup.close()
        for lock_fd in self.lock_fds:
            os.close(lock_fd)


def boot(config: Config) -> Daemon:
    """Everything up to the point where `run` announces READY.

    Errors: EBUSY (another daemon on the same data or sockets), EPROTONOSUPPORT (a store of
    another format), EMFILE (RLIMIT_NOFILE), ECORRUPT, EPERM, EACCES, ENOSPC, EIO.
    """
    share = share_out(config.limits.sessions)
    data_lock = _lock(config.store.data_dir, "lock", "data")
    runtime_dir = config.listen.runtime_dir
    check_runtime_dir(runtime_dir, config.listen.mode_bits)
    # Binding a socket takes it away from whoever listens there, without a word to anybody.
    locks = data_lock, _lock(runtime_dir, "memosd.lock", "runtime")
    table, map_bytes = config.store.data_dir / "table.mdb", config.store.table_map_bytes
    store = LmdbStore(table, TABLES, map_bytes, _tell_of_probe)
    wakeup = Wakeup()
    pools = io, index_io, commit_io, memory_io = _pools(config, wakeup)
    disk = disk_tier(config.store.data_dir)
    server = Server(runtime_dir, config.listen.mode_bits, wakeup, share)
    supervisors = _supervisors(config, server)
    machine = SystemMachine(server)
    outside = Outside(
        clock=SystemClock(),
        io=io,
        store=store,
        ram=RamTier(share.end_of_frames),
        disk=disk,
        drivers={driver.type: driver for driver in _drivers(config)},
        recall_index=RecallIndex(config.store.data_dir / "index.db"),
        index_io=index_io,
        commit_io=commit_io,
        memory_io=memory_io,
        gate=server,
        workers=supervisors[0],
        device_workers=supervisors[1],
        transition_workers=supervisors[2],
        traces=TraceFolder(config.store.data_dir / "traces"),
        machine=machine,
    )
    server.kernel = Kernel(_parameters(config, share), outside, f"memosd {version('memosd')}")
    io.run(disk.remove_leftovers)
    if config.ram.reserve_bytes:
        machine.arm()
    server.kernel.start()
    return Daemon(server, pools, wakeup, supervisors, machine, store, locks)


def _pools(config: Config, wakeup: Wakeup) -> tuple[IoPool, IoPool, IoPool, IoPool]:
    """Threads for page files, for the index, for commits, and for what touches memory only."""
    return (
        IoPool(wakeup, config.store.io_threads, "io"),
        IoPool(wakeup, 1, "index"),
        IoPool(wakeup, 1, "commit"),
        IoPool(wakeup, _MEMORY_THREADS, "memory"),
    )


def _drivers(config: Config) -> list[TopHalf]:
    """The list of drivers; those that have settings are made anew with them."""
    stored = KvStored(KvForm(config.kv.store_as), config.kv.error_max)
    activation = ActivationDriver(stored)
    return [activation if row.type is activation.type else row for row in DRIVERS]


def _supervisors(config: Config, server: Server) -> tuple[Supervisor, ...]:
    """One for each kind of worker: those that embed, the device's, that of transitions."""
    commands = (_worker_command, _device_command, _transition_command)
    return tuple(Supervisor(server, command(config)) for command in commands)


def _worker_command(config: Config) -> list[str]:
    """How a worker that embeds is started; the supervisor adds who starts it."""
    workers = config.workers
    return _command(
        "memosd.worker",
        {
            "runtime-dir": config.listen.runtime_dir,
            "embedder": config.models.find_embedder(),
            "threads": workers.threads_of_each,
            "nice": workers.nice,
            "memory-bytes": workers.memory_bytes,
        },
    )


def _device_command(config: Config) -> list[str]:
    """How the worker that owns the device's memory is started."""
    options = {"runtime-dir": config.listen.runtime_dir, "device": config.device.name}
    return _command("memosd.worker.device", options)


def _transition_command(config: Config) -> list[str]:
    """How the worker that makes memories of others is started."""
    settings = config.transitions
    return _command(
        "memosd.worker.transitions",
        {
            "runtime-dir": config.listen.runtime_dir,
            "scratch-dir": config.store.data_dir / "scratch",
            "model": settings.language_model,
            "dtype": settings.dtype,
            "threads": settings.thread_count,
            "nice": settings.nice,
            "memory-bytes": settings.memory_bytes,
        },
    )


def _command(module: str, options: dict[str, object]) -> list[str]:
    # -P: what lies in the working directory is none of its modules.
    start = [sys.executable, "-P", "-m", module]
    return [*start, *(f"--{name}={value}" for name, value in options.items())]


def _why_no_workers(config: Config) -> str:
    if config.models.embedder == "none":
        return "no embedder is configured"
    return "no embedder: `make models` fetches one, models.embedder names another"


def _tell_of_probe(reason: str) -> None:
    """Let the service manager wait: a large table takes longer than a start may."""
    Notifier().send(f"STATUS=reading the whole table: {reason}", _EXTEND_TIMEOUT)


def _lock(directory: Path, name: str, what: str) -> int:
    """Hold a directory for this process by a file in it. Errors: EBUSY, EACCES, EIO."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        errno = Errno.EACCES if isinstance(error, PermissionError) else Errno.EIO
        raise MemError(errno, f"cannot use the {what} directory: {error}") from None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock_fd, 32, 0).decode(errors="replace").strip()
        os.close(lock_fd)
        raise MemError(
            Errno.EBUSY, f"another memosd (pid {owner or 'unknown'}) serves {directory}"
        ) from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
    return lock_fd


def _parameters(config: Config, share: Descriptors) -> Parameters:
    limits, namespaces, behaviour = config.limits, config.namespaces, config.behaviour
    return msgspec.structs.replace(
        _tiers(config, share),
        admin_uids=frozenset({0, os.geteuid()}),
        data_dir=str(config.store.data_dir),
        fd_socket=str(config.listen.runtime_dir / FD_SOCKET),
        call_by_value_bytes=limits.call_by_value_bytes,
        sessions=share.sessions,
        sessions_per_uid=limits.sessions_per_uid,
        handles_per_session=limits.handles_per_session,
        pins_per_session=limits.pins_per_session,
        pins_per_session_bytes=limits.pins_per_session_bytes,
        pin_share_per_uid=limits.pin_share_per_uid,
        prefetches_per_session=limits.prefetches_per_session,
        watches_per_session=limits.watches_per_session,
        namespaces_per_uid=limits.namespaces_per_uid,
        anyone_makes_namespaces=namespaces.create == "anyone",
        namespace_mode=namespaces.default_mode_bits,
        quota_disk_bytes=namespaces.default_quota_disk_bytes,
        quota_ram_bytes=namespaces.default_quota_ram_bytes,
        quota_cubes=namespaces.default_quota_cubes,
        workers=config.workers.count if config.models.find_embedder() else 0,
        no_workers=_why_no_workers(config),
        is_words_only=config.models.embedder == "none",
        job_timeout_ns=int(config.workers.job_timeout_s * _NS),
        transition_workers=int(config.transitions.language_model != "none"),
        transition_timeout_ns=int(config.transitions.timeout_s * _NS),
        log_retain_events=config.store.log_retain_events,
        heat_flush_ns=int(behaviour.heat_flush_s * _NS),
        expiry_sweep_ns=int(behaviour.expiry_sweep_s * _NS),
        writeback_delay_ns=int(behaviour.writeback_delay_s * _NS),
    )


def _tiers(config: Config, share: Descriptors) -> Parameters:
    """What concerns where payloads lie."""
    return Parameters(
        ram_budget_bytes=config.ram.budget_bytes,
        ram_high=config.ram.high_watermark,
        ram_low=config.ram.low_watermark,
        ram_reserve_bytes=config.ram.reserve_bytes,
        ram_frames=share.frames,
        disk_budget_bytes=config.disk.budget_bytes,
        disk_high=config.disk.high_watermark,
        disk_low=config.disk.low_watermark,
        writeback_share=config.disk.writeback_share,
        io_threads=config.store.io_threads,
        policy=config.ram.policy,
        inline_limit_bytes=config.disk.inline_limit_bytes,
        device="" if config.device.name == "none" else config.device.name,
        device_budget_bytes=config.device.budget_bytes,
    )
