"""The fake daemon's kernel: cubes in a dict, memfds for memory, no permissions, no durability."""

import fcntl
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import READ_MAX_BYTES
from libmem.abi.names import namespace_of
from libmem.abi.structs import (
    Behaviour,
    CubeType,
    Descriptive,
    Durability,
    Event,
    EventKind,
    Governance,
    NamespaceStat,
    Quota,
    Stat,
    Usage,
    Value,
)
from libmem.abi.syscalls import BY_NUMBER
from libmem.abi.wire import Fault, args_decoder, encode

__all__ = ["FakeKernel", "FakeSession"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(eq=False)
class FakeSession:
    """What one client holds."""

    token: bytes
    road: socket.socket | None = None
    descriptors: dict[int, int] = field(default_factory=dict)
    """Of created and mapped handles."""
    creating: dict[int, c.CreateCube] = field(default_factory=dict)
    mapped: dict[int, str] = field(default_factory=dict)
    pinned: dict[int, str] = field(default_factory=dict)

    @property
    def handles(self) -> int:
        """How many handles the client holds."""
        return len(self.creating) + len(self.mapped) + len(self.pinned)

    def close(self) -> None:
        """Free all that it held."""
        for fd in self.descriptors.values():
            os.close(fd)
        for held in (self.descriptors, self.creating, self.mapped, self.pinned):
            held.clear()
        self.road = None


class FakeKernel:
    """Just enough behaviour for a client to show its own."""

    def __init__(self) -> None:
        self.cubes: dict[str, list[tuple[CubeType, bytes]]] = {}
        self.events: list[Event] = []
        self._handle = 0
        self._does: dict[type[Any], Callable[[FakeSession, Any], Value]] = {
            c.WriteCube: self._write, c.ReadCube: self._read, c.StatCube: self._stat,
            c.CreateCube: self._create, c.SealCube: self._seal, c.AbortCube: self._abort,
            c.MmapCube: self._mmap, c.MunmapCube: self._munmap,
            c.PinCube: self._pin, c.UnpinCube: self._unpin,
            c.UnlinkCube: self._unlink, c.Readdir: self._readdir, c.HistoryCube: self._history,
            c.Watch: self._watch, c.Batch: self._batch, c.Evict: self._evict,
            c.MakeNamespace: self._make_namespace, c.Info: self._info,
        }  # fmt: skip

    def perform(self, session: FakeSession, args: Any) -> Value:
        """The result of a request. Errors: as the kernel's."""
        does = self._does.get(type(args))
        return does(session, args) if does is not None else c.Done()

    def commit(self, name: str, kind: CubeType, payload: bytes) -> c.WriteReply:
        """A new version of a cube."""
        versions = self.cubes.setdefault(name, [])
        versions.append((kind, payload))
        self.events.append(Event(len(self.events) + 1, 0, EventKind.WRITE, name))
        return c.WriteReply(id=b"i" * 16, version=len(versions), digest=b"d" * 16)

    def _latest(self, name: str) -> tuple[CubeType, bytes]:
        if name not in self.cubes:
            raise MemError(Errno.ENOENT, f"no cube {name}", cube=name)
        return self.cubes[name][-1]

    def _next_handle(self) -> int:
        self._handle += 1
        return self._handle

    def _write(self, _: FakeSession, args: c.WriteCube) -> c.WriteReply:
        version = len(self.cubes.get(args.name, ()))
        if args.expected_version not in {None, version}:
            raise MemError(Errno.EVERSION, "another version", version=version)
        return self.commit(args.name, args.type, args.payload)

    def _read(self, _: FakeSession, args: c.ReadCube) -> c.ReadReply:
        payload = self._latest(args.name)[1]
        if args.length_bytes is None and len(payload) > READ_MAX_BYTES:
            raise MemError(Errno.EFBIG, "too large to read by value")
        return c.ReadReply(payload=payload, version=1, size_bytes=len(payload))

    def _stat(self, _: FakeSession, args: c.StatCube) -> Stat:
        kind, payload = self._latest(args.name)
        return self._stat_of(args.name, len(self.cubes[args.name]), kind, payload)

    def _stat_of(self, name: str, version: int, kind: CubeType, payload: bytes) -> Stat:
        return Stat(
            name=name, id=b"i" * 16, type=kind, version=version,
            latest_version=len(self.cubes[name]), size_bytes=len(payload), digest=b"d" * 16,
            created_ns=1, modified_ns=2, descriptive=Descriptive(), governance=Governance(),
            behaviour=Behaviour(), durability=Durability.DURABLE,
        )  # fmt: skip

    def _history(self, _: FakeSession, args: c.HistoryCube) -> c.HistoryReply:
        numbered = list(enumerate(self.cubes[args.name], 1))
        stats = [self._stat_of(args.name, version, *cube) for version, cube in numbered]
        return c.HistoryReply(tuple(stats[::-1]))

    def _create(self, session: FakeSession, args: c.CreateCube) -> c.CreateReply:
        handle = self._next_handle()
        fd = os.memfd_create(args.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, args.size_bytes)
        session.descriptors[handle] = fd
        session.creating[handle] = args
        return c.CreateReply(handle=handle, size_bytes=args.size_bytes)

    def _seal(self, session: FakeSession, args: c.SealCube) -> c.WriteReply:
        fd = self._held(session, args.handle)
        if args.size_bytes is not None:
            os.ftruncate(fd, args.size_bytes)
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            raise MemError(Errno.EBUSY, f"still mapped writable: {error.strerror}") from None
        payload = os.pread(fd, os.fstat(fd).st_size, 0)
        request = session.creating.pop(args.handle)
        os.close(session.descriptors.pop(args.handle))
        return self.commit(request.name, request.type, payload)

    def _abort(self, session: FakeSession, args: c.AbortCube) -> c.Done:
        self._held(session, args.handle)
        del session.creating[args.handle]
        os.close(session.descriptors.pop(args.handle))
        return c.Done()

    def _mmap(self, session: FakeSession, args: c.MmapCube) -> c.MapReply:
        kind, payload = self._latest(args.name)
        handle = self._next_handle()
        fd = os.memfd_create(args.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, payload)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        session.descriptors[handle] = fd
        session.mapped[handle] = args.name
        version = len(self.cubes[args.name])
        return c.MapReply(handle, b"i" * 16, version, len(payload), kind, {"layers": 2})

    def _munmap(self, session: FakeSession, args: c.MunmapCube) -> c.Done:
        self._held(session, args.handle)
        del session.mapped[args.handle]
        os.close(session.descriptors.pop(args.handle))
        return c.Done()

    def _pin(self, session: FakeSession, args: c.PinCube) -> c.PinReply:
        self._latest(args.name)
        handle = self._next_handle()
        session.pinned[handle] = args.name
        return c.PinReply(handle)

    def _unpin(self, session: FakeSession, args: c.UnpinCube) -> c.Done:
        if args.handle not in session.pinned:
            raise MemError(Errno.EBADF, "no such pin")
        del session.pinned[args.handle]
        return c.Done()

    def _unlink(self, _: FakeSession, args: c.UnlinkCube) -> c.UnlinkReply:
        self._latest(args.name)
        return c.UnlinkReply(freed_bytes=1, versions=len(self.cubes.pop(args.name)))

    def _evict(self, session: FakeSession, args: c.Evict) -> c.EvictReply:
        if args.name in session.mapped.values():
            raise MemError(Errno.EBUSY, "mapped")
        return c.EvictReply(freed_bytes=len(self._latest(args.name)[1]))

    def _readdir(self, _: FakeSession, args: c.Readdir) -> c.ReaddirReply:
        if args.path == "/":
            spaces = sorted({namespace_of(name) for name in self.cubes})
            return c.ReaddirReply((), (), tuple(self._space(space) for space in spaces))
        inside = [name for name in self.cubes if name.startswith(args.path + "/")]
        names = sorted(name for name in inside if name > args.cursor)
        page = names[:2]  # small, so that a listing turns pages
        entries = tuple(self._stat_of(name, 1, *self.cubes[name][-1]) for name in page)
        return c.ReaddirReply(entries, (), next_cursor=page[-1] if len(names) > 2 else "")

    def _watch(self, _: FakeSession, args: c.Watch) -> c.WatchReply:
        since = len(self.events) if args.since_seq is None else args.since_seq
        return c.WatchReply(events=tuple(self.events[since:]), next_seq=len(self.events))

    def _make_namespace(self, _: FakeSession, args: c.MakeNamespace) -> NamespaceStat:
        return self._space(args.name, args.mode or 0o700)

    def _space(self, name: str, mode: int = 0o700) -> NamespaceStat:
        return NamespaceStat(name, 0, 0, mode, 1, Quota(), Usage())

    def _info(self, _: FakeSession, args: c.Info) -> c.InfoReply:
        return c.InfoReply(
            server="fake", epoch=1, pid=os.getpid(), uptime_ns=0, sessions=0, namespaces=0,
            cubes=len(self.cubes), tiers=(), log_seq=len(self.events), indexed_seq=0, calls=0,
            faults=0, evictions=0, rss_bytes=0, table_bytes=0, data_dir="", policy="", indexer="",
        )  # fmt: skip

    def _batch(self, session: FakeSession, args: c.Batch) -> c.BatchReply:
        items = []
        for number, raw in args.calls:
            request = args_decoder(BY_NUMBER[number].request).decode(raw)
            try:
                errno, body = 0, encode(self.perform(session, request))
            except MemError as error:
                errno, body = int(error.errno), encode(Fault(error.message, error.detail))
            items.append(c.BatchItem(errno, msgspec.Raw(body)))
        return c.BatchReply(tuple(items))

    def _held(self, session: FakeSession, handle: int) -> int:
        if handle not in session.descriptors:
            raise MemError(Errno.EBADF, "no such handle")
        return session.descriptors[handle]
