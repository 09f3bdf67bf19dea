"""What a client can do: one list for the synchronous and the asyncio client.

Each operation is written once, without I/O; on `Client` it returns its result, on `AsyncClient`
a coroutine of it (`methods`).

Every operation may fail with ECONNREFUSED, ECONNRESET, ETIMEDOUT, ESTALE, ESHUTDOWN and EIO, and
with what its syscall's row lists (`libmem.abi.syscalls`).
"""

import math
import time
from collections.abc import Sequence
from typing import Any, Final, Unpack, cast

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import WATCH_MAX_MS
from libmem.abi.structs import (
    Advice,
    CubeType,
    Event,
    Hit,
    Stat,
    TierName,
)
from libmem.abi.syscalls import BY_REQUEST, Syscall
from libmem.abi.wire import decode_result, encode_arguments
from libmem.administration import Administration
from libmem.connection import Connection
from libmem.fill import FillMemory
from libmem.lease import Grant, Pin
from libmem.mapping import Mapping
from libmem.methods import one_call, pages, steps
from libmem.options import CubeOptions, HeaderGroups, SearchOptions
from libmem.parts import Parts
from libmem.steps import Acquire, Items, Pages, Steps, paged
from libmem.transitions import Transitions

__all__ = ["Operations", "watch_pages"]

_PAGE_CUBES: Final = 500


class Operations(Administration, Transitions):
    """The operations. Names are absolute (`/namespace/path`, `@v3` for an old version)."""

    _connection: Connection

    @property
    def epoch(self) -> int:
        """The boot of the daemon that the client last spoke to; it changes with each restart."""
        return self._connection.epoch

    @property
    def session(self) -> c.HelloReply:
        """What the daemon said when the present session, or the last one, was opened."""
        hello = self._connection.hello
        if hello is None:
            raise MemError(Errno.ECONNREFUSED, "this client has not been connected yet")
        return hello

    # Contents

    @steps
    def write(
        self, name: str, payload: bytes | str, **options: Unpack[CubeOptions]
    ) -> Steps[c.WriteReply]:
        """Commit a payload as the next version of a cube; plaintext unless `type` says otherwise.

        Large payloads go through memory by themselves, and are written again when the daemon
        is restarted meanwhile.
        """
        body = payload.encode() if isinstance(payload, str) else payload
        if len(body) <= self.session.call_by_value_bytes:
            reply: c.WriteReply = yield c.WriteCube(name=name, payload=body, **options)
            return reply
        try:
            return (yield from _write_through_memory(name, body, options))
        except MemError as error:
            if error.errno is not Errno.ESTALE:
                raise
        return (yield from _write_through_memory(name, body, options))

    @steps
    def read(self, name: str, *, allow_outdated: bool = False) -> Steps[bytes]:
        """A copy of the whole payload: by value when small, else through a mapping.

        `allow_outdated`: of a derived cube as well of which a source is not so any more.
        """
        try:
            reply: c.ReadReply = yield c.ReadCube(name=name, allow_outdated=allow_outdated)
        except MemError as error:
            if error.errno is not Errno.EFBIG:
                raise
        else:
            return reply.payload
        grant: Grant = yield Acquire(c.MmapCube(name=name, allow_outdated=allow_outdated))
        with Mapping(name, grant) as mapping:
            return bytes(mapping)

    @steps
    def map(
        self,
        name: str,
        *,
        model: str = "",
        is_private: bool = False,
        allow_outdated: bool = False,
    ) -> Steps[Mapping]:
        """The payload in memory, without copying; `is_private`: writable, for this process alone.

        `model`: the fingerprint that the cube's model must have. `allow_outdated`: a derived cube
        as well of which a source is not so any more.
        Errors: EINVAL (an empty payload), EMODEL, EOPNOTSUPP (of no model), EOUTDATED, ENOMEM,
        EMFILE.
        """
        request = c.MmapCube(name=name, model=model, allow_outdated=allow_outdated)
        grant: Grant = yield Acquire(request)
        return Mapping(name, grant, is_private)

    @steps
    def map_parts(
        self, name: str, *, model: str = "", tier: TierName = TierName.RAM
    ) -> Steps[Parts]:
        """The memory of a cube and of all that it stands on, as descriptors.

        `model`: the fingerprint it must have. `tier`: RAM, or DEVICE, which `libmem.device` opens.
        Errors: EMODEL, ENOMEM, EMFILE; EOPNOTSUPP, EAGAIN (no device, or too much to do there).
        """
        request = c.MmapCube(name=name, model=model, is_whole=True, tier=tier)
        return Parts(name, (yield Acquire(request)))

    @steps
    def map_job(self, key: bytes) -> Steps[Grant]:
        """For worker processes: what a job to copy a payload is about. Close the descriptors."""
        grant: Grant = yield Acquire(c.MapJob(key=key))
        return grant

    # Names

    @one_call
    def stat(self, name: str) -> c.Call[Stat]:
        """Header, versions, size, place and behaviour."""
        return c.StatCube(name=name)

    @steps
    def history(self, name: str, *, limit: int = 100) -> Steps[tuple[Stat, ...]]:
        """The versions, newest first."""
        reply: c.HistoryReply = yield c.HistoryCube(name=name, limit=limit)
        return reply.versions

    @one_call
    def lineage(self, name: str) -> c.Call[c.LineageReply]:
        """What a cube was derived from, and what was derived from it, as a graph."""
        return c.Lineage(name=name)

    @pages
    def list(self, path: str, *, is_recursive: bool = False) -> Pages[Stat]:
        """The cubes in a folder, or in all folders under it, as far as the caller may read.

        Under `/` the cubes of all namespaces; one that may not be listed is passed over.
        Errors: EINVAL (`/` without `is_recursive`: it holds namespaces, and no cube).
        """
        if path != "/":
            yield from _cube_pages(path, is_recursive)
            return
        if not is_recursive:
            raise MemError(
                Errno.EINVAL,
                "'/' holds namespaces: see namespaces(), or list it with is_recursive=True",
            )
        root: c.ReaddirReply = yield c.Readdir(path)
        for space in root.namespaces:
            try:
                yield from _cube_pages(space.name, is_recursive)
            except MemError as error:
                if error.errno not in {Errno.EACCES, Errno.ENOENT}:  # closed, or gone by now
                    raise

    @one_call
    def readdir(
        self, path: str, *, cursor: str = "", limit: int = 100, is_recursive: bool = False
    ) -> c.Call[c.ReaddirReply]:
        """One page of a folder: its cubes and folders, or under `/` the namespaces."""
        return c.Readdir(path=path, cursor=cursor, limit=limit, is_recursive=is_recursive)

    @one_call
    def rename(
        self, name: str, new_name: str, *, expected_version: int | None = None
    ) -> c.Call[c.RenameReply]:
        """Give a cube another name; id and versions stay."""
        return c.RenameCube(name=name, new_name=new_name, expected_version=expected_version)

    @one_call
    def unlink(self, name: str, *, expected_version: int | None = None) -> c.Call[c.UnlinkReply]:
        """Remove a cube with all its versions, or with `@vN` one old version."""
        return c.UnlinkCube(name=name, expected_version=expected_version)

    @one_call
    def set_header(self, name: str, **groups: Unpack[HeaderGroups]) -> c.Call[c.WriteReply]:
        """Replace header groups whole; makes a new version that shares the payload."""
        return c.SetHeader(name=name, **groups)

    # Place

    @steps
    def pin(self, name: str) -> Steps[Pin]:
        """Bring a cube into RAM and keep it there until released."""
        grant: Grant = yield Acquire(c.PinCube(name=name))
        pin = Pin(name, grant.lease)
        self._connection.pins.add(pin)
        return pin

    @one_call
    def advise(
        self, name: str, advice: Advice | str, *, deadline_s: float = 0.0, wait: bool = False
    ) -> c.Call[c.AdviseReply]:
        """Tell how the cube will be used; a hint, and what became of it.

        `willneed` is carried out later, unless `deadline_s` from now pass first (0: none); with
        `wait` the reply comes when that is decided, which other threads of this client wait for.
        """
        deadline_ns = max(1, int(deadline_s * 1e9)) if deadline_s else 0
        return c.AdviseCube(name, cast("Advice", advice), deadline_ns, wait)

    @steps
    def evict(self, name: str) -> Steps[int]:
        """Drop the payload from RAM; how many bytes that freed."""
        reply: c.EvictReply = yield c.Evict(name=name)
        return reply.freed_bytes

    @one_call
    def migrate(self, name: str, tier: TierName | str) -> c.Call[c.MigrateReply]:
        """Move the payload to a tier; the tiers that hold it then."""
        return c.MigrateCube(name=name, tier=cast("TierName", tier))

    # Finding and explaining

    @steps
    def search(self, query: str, **options: Unpack[SearchOptions]) -> Steps[tuple[Hit, ...]]:
        """The `k` best cubes for a question, best first; the options are those of `Search`.

        What the query was understood to say, and what the ranking had to do without, is in the
        reply to the syscall: `call(Search(...))`.
        """
        reply: c.SearchReply = yield c.Search(query, **options)
        return reply.hits

    @one_call
    def find_prefix(self, model: str, tokens: bytes, *, under: str = "/") -> c.Call[c.PrefixReply]:
        """The cube that shares the longest prefix with a prompt.

        `model`: its fingerprint; `tokens`: the prompt's token ids, packed (`pack_tokens`).
        """
        return c.FindPrefix(model=model, tokens=tokens, under=under)

    @one_call
    def plan_prefix(
        self, model: str, tokens: bytes, *, under: str = "/", prompt_tokens: int = 0, rows: int = 1
    ) -> c.Call[c.PlanReply]:
        """As `find_prefix`, and how much of the prefix is quicker loaded than computed.

        Loading that begins at once. `prompt_tokens`: how long the prompt is, where `tokens` are
        only its beginning.
        """
        return c.PlanPrefix(
            model=model, tokens=tokens, under=under, prompt_tokens=prompt_tokens, rows=rows
        )

    @steps
    def batch(
        self, requests: Sequence[c.Call[Any]], *, stop_on_error: bool = False
    ) -> Steps[Sequence[Any]]:
        """Many calls in one message and one commit; results in order, errors as values.

        Errors: EMSGSIZE (more than one message holds), EINVAL (more than BATCH_MAX_CALLS, or a
                value that cannot be sent; then nothing was).
        """
        rows = [BY_REQUEST[type(request)] for request in requests]
        calls = tuple(
            (row.number, encode_arguments(request))
            for row, request in zip(rows, requests, strict=True)
        )
        reply: c.BatchReply = yield c.Batch(calls=calls, stop_on_error=stop_on_error)
        return [_outcome(row, item) for row, item in zip(rows, reply.results, strict=True)]


def _cube_pages(path: str, is_recursive: bool) -> Pages[Stat]:
    def ask(cursor: str) -> c.Call[c.ReaddirReply]:
        return c.Readdir(path, cursor, _PAGE_CUBES, is_recursive)

    return paged(ask, "", lambda page: (page.entries, page.next_cursor))


def watch_pages(under: str, since_seq: int | None, timeout_s: float | None) -> Pages[Event]:
    """Events of a subtree after `since_seq`, until none came for `timeout_s`; None: for ever."""
    heard = time.monotonic()
    while True:
        wait_ms = WATCH_MAX_MS
        if timeout_s is not None:
            quiet_ms = (heard + timeout_s - time.monotonic()) * 1000
            wait_ms = math.ceil(max(0, min(wait_ms, quiet_ms)))
        reply: c.WatchReply = yield c.Watch(under, since_seq, timeout_ms=wait_ms)
        since_seq = reply.next_seq
        if reply.events:
            yield Items(reply.events)
            heard = time.monotonic()
        elif timeout_s is not None and time.monotonic() >= heard + timeout_s:
            return


def _outcome(row: Syscall, item: c.BatchItem) -> Any:
    try:
        return decode_result(row, item.errno, item.body)
    except MemError as error:
        return error


def _write_through_memory(name: str, payload: bytes, options: CubeOptions) -> Steps[c.WriteReply]:
    fields: CubeOptions = {"type": CubeType.PLAINTEXT, **options}
    request = c.CreateCube(name=name, size_bytes=len(payload), **fields)
    fill = FillMemory(name, (yield Acquire(request)))
    try:
        fill.copy_in(payload)
        return (yield from fill.sealing())
    finally:
        fill.abort()  # does nothing to what is sealed
