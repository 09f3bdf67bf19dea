"""A whole kernel without sockets or threads, and clients that talk to it in frames.

`call` runs a request to its reply; `start` only lets it reach its first wait, so that a test can
choose what happens next: which job finishes, when the turn ends, who dies, when time passes.
Every error that a client sees is checked against what its row in the syscall table promises.
"""

import itertools
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Durability, NamespaceStat, Quota, Stat, Value
from libmem.abi.syscalls import BY_REQUEST, COMMON_ERRORS, Syscall
from libmem.abi.wire import decode_reply, decode_result, encode, encode_request
from memosd.drivers.fake_store import FakeStore
from memosd.drivers.store import LmdbStore
from memosd.drivers.table import DRIVERS
from memosd.drivers.tiers.disk import DiskTier
from memosd.drivers.tiers.faulty import FaultPlan, FaultyTier
from memosd.drivers.tiers.ram import RamTier
from memosd.kernel.access import Identity
from memosd.kernel.dispatch import Context
from memosd.kernel.kernel import Kernel, Outside
from memosd.kernel.param import Parameters
from memosd.kernel.ports import Tier
from memosd.kernel.residents import Resident
from memosd.kernel.rows import TABLES
from memosd.kernel.session import Session
from memosd.kernel.wait import Completion, detach
from tests.kernel.fakeindex import FakeIndex
from tests.kernel.fakes import (
    FakeClock,
    FakeGate,
    FakeIo,
    FakeMachine,
    FakePeer,
    FakeTraces,
    FakeWorkers,
    count_ids,
)
from tests.kernel.invariants import ROW_BYTES, CountedRam, check_at_rest

__all__ = [
    "KIB",
    "ROOT",
    "USER",
    "Client",
    "Pending",
    "World",
    "batch_of",
    "parameters",
    "PAGED",
    "cache",
    "charge_of",
    "in_ram",
]

R = TypeVar("R", bound=Value)
KIB = 1024
PAGED = 8 * KIB
"""Beyond the inline limit of these tests."""
ROOT = 0
USER = 1000
MAP_BYTES = 64 << 20
LINGER_NS = 1_000_000


def parameters(**changes: Any) -> Parameters:
    """Small budgets, so that tests reach them with little memory."""
    small: dict[str, Any] = {
        "ram_budget_bytes": 256 * KIB,
        "disk_budget_bytes": 4096 * KIB,
        "inline_limit_bytes": 1 * KIB,
        "call_by_value_bytes": 256 * KIB,
        # Background reclaim would make every count depend on it; its own tests turn it on.
        "ram_high": 1.0,
        "disk_high": 1.0,
    }
    return Parameters(**{**small, **changes})


def batch_of(*requests: c.Call[Any], stop_on_error: bool = False) -> c.Batch:
    """Calls as one message."""
    items = [
        (BY_REQUEST[type(request)].number, msgspec.Raw(encode(request))) for request in requests
    ]
    return c.Batch(calls=tuple(items), stop_on_error=stop_on_error)


class Pending:
    """A request under way."""

    def __init__(self, client: "Client", row: Syscall, seq: int) -> None:
        self._client = client
        self._row = row
        self._seq = seq

    @property
    def is_answered(self) -> bool:
        return self._seq in self._client.replies()

    def result(self) -> Any:
        """The reply, or raise what it says. Fails the test where none has come."""
        replies = self._client.replies()
        assert self._seq in replies, f"{self._row.name} is not answered"
        reply = replies[self._seq]
        promised = (0, *self._row.errors, *COMMON_ERRORS)
        assert reply.errno in promised, f"{self._row.name} may not fail so: {reply}"
        return decode_result(self._row, reply.errno, reply.body)

    def errno(self) -> int:
        """0 or the error's number."""
        try:
            self.result()
        except MemError as error:
            return error.errno
        return 0

    def failure(self, errno: Errno) -> MemError:
        """The error that the reply must be."""
        with pytest.raises(MemError) as caught:
            self.result()
        assert caught.value.errno is errno, caught.value
        return caught.value


class Client:
    """A process with a bound session."""

    def __init__(self, world: "World", identity: Identity) -> None:
        self.world = world
        self.identity = identity
        self.peer = FakePeer()
        self._seqs = itertools.count(1)

    @property
    def session(self) -> Session:
        assert self.peer.session is not None
        return self.peer.session

    def hello(self, *, is_bound: bool = True) -> c.HelloReply:
        """Open a session and show its token on the fd road."""
        reply: c.HelloReply = self.start(c.Hello(client="test")).result()
        if is_bound:
            assert self.world.kernel.bind(reply.token, self.identity) is self.session
        return reply

    def start(self, request: c.Call[Any]) -> Pending:
        """Send a request; it runs to its first wait."""
        seq = next(self._seqs)
        self.send(encode_request(request, seq, self.world.kernel.epoch))
        return Pending(self, BY_REQUEST[type(request)], seq)

    def send(self, frame: bytes) -> None:
        """Send whatever it is."""
        self.world.kernel.serve(self.peer, self.identity, frame)

    def replies(self) -> dict[int, Any]:
        """All that came back, by sequence number."""
        return {reply.seq: reply for reply in map(decode_reply, self.peer.frames)}

    def call(self, request: c.Call[R]) -> R:
        """Send a request and let the world run until nothing is left to do."""
        pending = self.start(request)
        self.world.settle()
        result: R = pending.result()
        return result

    def fails(self, request: c.Call[Any], errno: Errno) -> MemError:
        """The request must fail in this way; returns the error."""
        pending = self.start(request)
        self.world.settle()
        return pending.failure(errno)

    def fd_of(self, handle: int) -> int:
        """The descriptor that came with a handle."""
        return self.world.gate.fds[self.session.number, handle]

    def fill(self, handle: int, payload: bytes) -> None:
        """Write into the memory of a `create_cube`, as through a mapping that is gone by now."""
        os.pwrite(self.fd_of(handle), payload, 0)

    def mapped(self, name: str) -> bytes:
        """The payload as a mapping shows it; nothing stays mapped."""
        reply = self.call(c.MmapCube(name=name))
        content = os.pread(self.fd_of(reply.handle), reply.size_bytes + 1, 0)
        self.world.gate.close(self.session.number, reply.handle)
        self.call(c.MunmapCube(handle=reply.handle))
        return content

    def die(self) -> None:
        """The process is gone: the fd road closes and with it all of its descriptors."""
        for number, handle in list(self.world.gate.fds):
            if number == self.session.number:
                self.world.gate.close(number, handle)
        self.world.kernel.gone(self.session)

    # -- shorthands ----------------------------------------------------------------------------

    def make(self, namespace: str, mode: int | None = None, **quota: int) -> NamespaceStat:
        """A namespace, with a quota where given."""
        made = self.call(c.MakeNamespace(name=namespace, mode=mode))
        if not quota:
            return made
        ceilings = c.SetQuota(namespace=namespace, quota=Quota(**quota))
        return self.world.root.call(ceilings)

    def write(self, name: str, payload: bytes, **fields: Any) -> c.WriteReply:
        return self.call(c.WriteCube(name=name, payload=payload, **fields))

    def blob(self, name: str, payload: bytes, **fields: Any) -> c.WriteReply:
        """As `write`, of a type that takes any bytes."""
        return self.write(name, payload, type=CubeType.BLOB, **fields)

    def read(self, name: str) -> bytes:
        return self.call(c.ReadCube(name=name)).payload

    def stat(self, name: str) -> Stat:
        return self.call(c.StatCube(name=name))

    def unlink(self, name: str) -> c.UnlinkReply:
        return self.call(c.UnlinkCube(name=name))

    def usage(self, namespace: str) -> NamespaceStat:
        return self.call(c.StatNamespace(name=namespace))


class World:
    """A kernel and its surroundings, which outlive it: `crash` makes the next one over them."""

    def __init__(
        self, directory: Path, *, is_real: bool = False, machine: FakeMachine | None = None,
        **changes: Any,
    ) -> None:  # fmt: skip
        self.directory = directory
        self.is_real = is_real
        """LMDB and page files rather than their fakes."""
        self.parameters = parameters(**changes)
        self.machine = machine
        self.clock = FakeClock()
        self.index = FakeIndex()
        self.plan = FaultPlan()
        pages: Tier = DiskTier(directory) if is_real else RamTier()
        self.disk = FaultyTier(pages, self.plan)
        self._store: FakeStore | LmdbStore = self._open_store()
        self._pids = itertools.count(100)
        count_ids()
        self._boot()

    def _open_store(self) -> FakeStore | LmdbStore:
        file = self.directory / "table.mdb"
        return LmdbStore(file, TABLES, MAP_BYTES) if self.is_real else FakeStore(TABLES)

    def _boot(self) -> None:
        self.gate, self.traces, self.workers = FakeGate(), FakeTraces(), FakeWorkers()
        self.device_workers, self.transition_workers = FakeWorkers(7000), FakeWorkers(8000)
        self.io, self.index_io, self.ram = FakeIo(), FakeIo(), CountedRam()
        outside = Outside(
            clock=self.clock,
            io=self.io,
            store=self._store,
            ram=self.ram,
            disk=self.disk,
            drivers={driver.type: driver for driver in DRIVERS},
            recall_index=self.index,
            index_io=self.index_io,
            commit_io=self.io,
            memory_io=self.io,
            gate=self.gate,
            workers=self.workers,
            device_workers=self.device_workers,
            transition_workers=self.transition_workers,
            traces=self.traces,
            machine=self.machine,
        )
        self.kernel = Kernel(self.parameters, outside, "memosd test")
        self.kernel.start()
        self.root = self.client(ROOT)  # the administrator

    @property
    def store(self) -> FakeStore:
        """The fake store, to plan its failures."""
        assert isinstance(self._store, FakeStore)
        return self._store

    def client(self, uid: int = USER, gid: int | None = None, *groups: int) -> Client:
        """A new process of a user, with a bound session."""
        identity = Identity(uid, uid if gid is None else gid, next(self._pids), frozenset(groups))
        client = Client(self, identity)
        client.hello()
        return client

    def settle(self, *, limit: int = 10_000) -> None:
        """End turns and do all work, oldest first, until there is none."""
        for _ in range(limit):
            self.kernel.turn()
            if self.io.jobs:
                self.io.finish_at(0)
            elif self.index_io.jobs:
                self.index_io.finish_at(0)
            elif self.kernel.parts.table.ledger.is_idle:
                return
            else:
                self.clock.advance(LINGER_NS)  # a group commit may wait for company
        raise AssertionError("the kernel does not come to rest")

    def pass_time(self, by_ns: int) -> None:
        """Let time pass, and what is due happen."""
        self.clock.advance(by_ns)
        self.settle()

    def fill_ram(self, client: Client, share_bytes: int, name: str = "/n/ballast") -> int:
        """Pin a new cube of a size, so that this much RAM cannot be reclaimed; its pin."""
        client.blob(name, bytes(share_bytes))
        return client.call(c.PinCube(name=name)).handle

    def resident(self, name: str) -> Resident | None:
        """The resident of a cube's current version."""
        table = self.kernel.parts.table
        cube_id = table.find_id(name)
        row = table.cube_row(cube_id) if cube_id else None
        return self.kernel.parts.residents.find(row.current.payload_id) if row else None

    def context(self, client: Client, row: Syscall) -> Context:
        """What dispatch hands to a handler."""
        self.kernel.parts.table.ledger.begin_answer()
        return Context(self.kernel, client.peer, row, client.session)

    def forget_failures(self) -> None:
        """Plan no failure any more."""
        self.plan.__dict__["_before"].clear()
        if isinstance(self._store, FakeStore):
            self._store.__dict__["_failures"].clear()

    @property
    def is_failing(self) -> bool:
        """Is a page file still to fail?"""
        return bool(self.plan.__dict__["_before"])

    def damage(self, table: str, key: bytes, at: int = -1) -> None:
        """Flip a bit of a stored value, as a bad disk would."""
        value = bytearray(self._store.get(table, key) or b"")
        value[at] ^= 1
        self._store.stage({table: {key: bytes(value)}})()
        self._store.settle()

    def stop(self) -> Completion[None]:
        """The orderly end, run as far as it comes."""
        done = detach(self.kernel.stop())
        self.settle()
        return done

    def crash(self) -> None:
        """kill -9, then the next boot over what is durable. Old clients are gone."""
        self._drop()
        if isinstance(self._store, FakeStore):
            self._store = self._store.reopen()
        else:
            self._store.close()
            self._store = self._open_store()
        self._boot()

    def _drop(self) -> None:
        """Close what the process's end would close: the frames and the clients' descriptors."""
        self.gate.close_all()
        self.ram.close()

    def close(self) -> None:
        """The end of a test: everybody leaves, all must be well, what is left is given back."""
        for session in self.kernel.sessions:
            self.kernel.gone(session)
        self.settle()
        check_at_rest(self.kernel, self.ram, self.disk)
        self._drop()
        for key in list(self.disk.keys()):
            self.disk.free(key)
        self._store.close()


def charge_of(world: World, size_bytes: int) -> int:
    """What a version with a payload of its own costs on disk, with a plain header."""
    if size_bytes > world.parameters.inline_limit_bytes:
        size_bytes = world.disk.charge_bytes(size_bytes)
    return ROW_BYTES + size_bytes


def cache(user: Client, name: str, payload: bytes = bytes(PAGED)) -> None:
    """A payload that is in RAM only, for now."""
    user.blob(name, payload, durability=Durability.CACHE)


def in_ram(user: Client, names: str) -> str:
    """Which of `/n/a`, `/n/b`, ... are in RAM."""
    return "".join(n for n in names if "ram" in user.stat(f"/n/{n}").tiers)
