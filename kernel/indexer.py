"""The indexer: keeps the index of texts in step with the table by following the durable log.

Live updates, catching up after a crash and rebuilding from nothing are one mechanism: read the
log after the index's stamp, look each touched cube up as it is now, apply, stamp. The write path
never waits for it; a search waits until the index has seen every event that was durable when it
arrived, so a written text is found by the next search and an unlinked one by none. Payloads are
read past the RAM tier, which a rebuild would otherwise turn over.

One cube never stops the index for all others: what is damaged, or what the index cannot make
sense of, is left out and says so in its decisions. What may pass, a disk error or a shortage, is
tried again instead, for the stamp would never come back to it. While the disk is full searches are
answered from what is indexed, and say that they are behind. Kernel thread only; the index
works on its own thread.
"""

from collections.abc import Callable, Collection
from itertools import islice
from typing import Any, Final, TypeVar

import structlog

from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexDocument, IndexFacets
from libmem.abi.structs import EventKind
from memosd.kernel.pager import Pager
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.ports import Driver, Index, Io
from memosd.kernel.rows import CubeRow
from memosd.kernel.wait import Completion, detach

__all__ = ["Indexer"]

T = TypeVar("T")

_CHUNK: Final = 1024
"""Events per index transaction."""
_TEXT_MAX: Final = 8 << 20
"""Characters per index transaction; a transaction ends with the text that exceeds it."""
_REST: Final = 9
"""While nobody searches, the indexer rests this many times as long as it worked: writers and it
share one interpreter. A search, or a long backlog, makes it work at full speed."""
_BACKLOG_MAX: Final = 65_536
_START_NS: Final = 20_000_000
"""A first event waits this long for company, unless somebody searches, and again while more comes:
each write in a burst is made to wait by every document that is indexed in it."""
_COMPANY_NS: Final = 1_000_000_000
"""The longest wait for company."""
_COMPANY_MAX: Final = 8_192
"""Events that wait; to index them takes a search some 0.3 s."""
_RETRY_NS: Final = 1_000_000_000
_LOST: Final = (Errno.ECORRUPT, Errno.ENOENT)
"""A text that cannot be read so is not there to be found, now or later."""
_REOPENED: Final = {
    Errno.ECORRUPT: "the index is damaged and will be rebuilt",
    Errno.ESTALE: "the index lost its place and will be opened again",
}
"""What an index cannot recover from by itself."""


class Indexer:
    """Feeds an `Index` and searches it."""

    def __init__(self, parts: Parts, pager: Pager, index: Index, index_io: Io) -> None:
        self.index = index
        self._io = index_io
        self._pager = pager
        self._ram = parts.ram
        self._disk = parts.disk
        self._disk_io = parts.io
        self._table = parts.table
        self._log = parts.table.log
        self._drivers = parts.drivers
        self._timers = parts.timers
        self._clock = parts.clock
        self._heat = parts.heat
        self.indexed_seq = 0
        self.problem = ""
        """Why the index is behind, for people; empty when all is well."""
        self.on_applied: list[Callable[[], None]] = []
        """Called when it knows more than before."""
        self._rebuild_from: bytes | None = None
        self._rebuilt_seq = 0
        self._waiting: list[tuple[int, Completion[None]]] = []
        self._is_running = False
        self._is_open = False
        self._is_full = False
        """The disk had no room for what was to be indexed last; what is indexed can be searched."""
        self.openings = 0
        """How often it was opened: with each the index may be another, or not complete yet."""
        self._is_closed = False
        self._resting: Completion[None] | None = None
        self._table.ledger.on_commit.append(self.kick)

    # -- following the log ---------------------------------------------------------------------

    def kick(self) -> None:
        """There may be something to do."""
        if not self._is_running and not self._is_closed:
            self._is_running = True
            detach(self._run()).on_done(self._stopped)

    def _stopped(self) -> None:
        self._is_running = False

    async def _run(self) -> None:
        try:
            await self._catch_up()
            while not self._is_open:  # a search found it damaged meanwhile
                await self._catch_up()
            self.problem, self._is_full = "", False
        except Exception as error:
            # Whoever waits for the index must hear of it, whatever it was.
            self.problem = f"the index cannot follow: {error}"
            self._is_full = self._is_open and _is_no_room(error)
            self._fail_waiting()
            self._timers.after(_RETRY_NS, self.kick)
            if not isinstance(error, MemError):
                raise

    async def _catch_up(self) -> None:
        if not self._is_open:
            await self._open()
        while self._rebuild_from is not None:
            await self._rebuild_step(self._rebuild_from)
        await self._wait_for_company()
        while self.indexed_seq < self._log.durable_seq:
            started_ns = self._clock.monotonic_ns()
            await self._step()
            await self._rest(_REST * (self._clock.monotonic_ns() - started_ns))

    async def _ask(self, work: Callable[..., T], *args: Any) -> T:
        """A call of the index; after one that failed it is opened again, to see what it did."""
        try:
            return await self._io.run(work, *args)
        except Exception as error:
            # What found no room is safe to repeat, and others may search meanwhile.
            self._is_open = self._is_open and _is_no_room(error)
            raise

    async def _wait_for_company(self) -> None:
        for _ in range(_COMPANY_NS // _START_NS):
            before = self._log.durable_seq
            await self._rest(_START_NS)
            newest = self._log.durable_seq
            if newest == before or newest - self.indexed_seq > _COMPANY_MAX:
                return

    async def _rest(self, pause_ns: int) -> None:
        backlog = self._log.durable_seq - self.indexed_seq
        if self._waiting or not 0 < backlog < _BACKLOG_MAX:
            return
        resting = self._resting = Completion[None]()
        timer = self._timers.after(pause_ns, self._wake)
        await resting
        timer.cancel()

    def _wake(self) -> None:
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.resolve(None)

    async def _open(self) -> None:
        stamp = await self._ask(self.index.open)
        self.openings += 1
        newest, oldest = self._log.durable_seq, self._log.oldest_seq
        if oldest - 1 <= stamp <= newest:
            self._is_open = True
            self._advance(stamp)  # it may be all that who searched meanwhile waits for
            return
        # It knows more than the table (a restored table), or less than the log can tell.
        await self._ask(self.index.clear)
        self._is_open = True
        self._rebuild_from = b"" if oldest > 1 else None
        self._advance(0)

    async def _step(self) -> None:
        events = list(islice(self._log.events_after(self.indexed_seq), _CHUNK))
        if not events:
            self._advance(self._log.durable_seq)  # damaged rows at the end of the log
            return
        touched = dict.fromkeys(row.id for _, row in events if row.id)
        last = events[-1][0]
        pruned = {row.id for _, row in events if row.kind is EventKind.PRUNE}
        await self._apply(self.indexed_seq, last, list(touched), pruned)
        self._advance(last)

    async def _rebuild_step(self, start: bytes) -> None:
        """Index a stretch of all cubes; the log is followed from where it stood before."""
        self.problem = "the index is being rebuilt"
        if start == b"":
            self._rebuilt_seq = self._log.durable_seq
        ids = [key for key, _ in islice(self._table.scan_cubes(start), _CHUNK)]
        if not ids:
            self._rebuild_from = None
            await self._ask(self.index.apply, self._rebuilt_seq, [], [])
            self._advance(self._rebuilt_seq)
            return
        await self._apply(0, 0, ids)
        self._rebuild_from = ids[-1] + b"\0"

    async def _apply(
        self, before: int, after: int, ids: list[bytes], pruned: Collection[bytes] = ()
    ) -> None:
        """Bring these cubes up to date; the stamp goes from `before` to `after` with the last.

        `pruned`: those that lost an older version, which leaves the index's files too.
        """
        documents: list[IndexDocument] = []
        removed: list[bytes] = []
        characters = 0
        for cube_id in ids:
            document = await self._document(cube_id)
            if document is None or cube_id in pruned:
                removed.append(cube_id)
            if document is None:
                continue
            documents.append(document)
            characters += len(document.text)
            if characters > _TEXT_MAX:
                await self._ask(self.index.apply, before, documents, removed)
                documents, removed, characters = [], [], 0
        await self._ask(self.index.apply, after, documents, removed)

    async def _document(self, cube_id: bytes) -> IndexDocument | None:
        """The cube as it is now, None where there is nothing to find.

        Errors: what may pass (EIO, EMFILE, ENOMEM).
        """
        try:
            return await self._read(cube_id)
        except MemError as error:
            if error.errno not in _LOST:
                raise
            reason = str(error)
        except Exception as error:  # noqa: BLE001
            # Whatever a text does to the code that reads it, others' searches go on.
            _log.exception("not indexed", cube=cube_id.hex())
            reason = f"{type(error).__name__}: {error}"
        self._heat.decide(cube_id, "not indexed", reason)
        return None

    async def _read(self, cube_id: bytes) -> IndexDocument | None:
        cube = self._table.durable_cube(cube_id)
        driver = self._drivers.get(cube.row.type) if cube else None
        if cube is None or driver is None or not driver.indexed_bytes:
            return None
        text = await self._text(cube, driver)
        if text is None:
            return None
        row = cube.row
        facets = _facets(row)
        return IndexDocument(row.namespace, cube_id, row.current.version, row.name, text, facets)

    async def _text(self, cube: Cube, driver: Driver) -> str | None:
        version = cube.version
        if version.is_inline or version.size_bytes == 0:
            payload = self._table.durable_payload(version) if version.size_bytes else b""
            return driver.index_text(payload, version.descriptive)
        self._pager.check_quarantine(cube)
        resident = self._pager.residents.find(cube.key)
        if resident is None or not resident.is_dirty:
            # Also what is resident: to hold it would pass for a use, and disturb the policy.
            start = await self._start_of(cube, driver.indexed_bytes)
            return await self._io.run(driver.index_text, start, version.descriptive)
        self._pager.residents.hold(resident, "busy")
        try:
            view = self._ram.view(resident.frame)
            return await self._io.run(driver.index_text, view, version.descriptive)
        finally:
            self._pager.reclaim.release(resident, "busy")

    async def _start_of(self, cube: Cube, limit_bytes: int) -> bytes:
        version = cube.version
        try:
            return await self._disk_io.run(
                self._disk.read, cube.key, version.size_bytes, version.digest, limit_bytes
            )
        except MemError as error:
            if error.errno in _LOST and self._table.has_payload(cube.key):
                raise self._pager.quarantine(cube, error) from None
            raise

    def _advance(self, seq: int) -> None:
        self.indexed_seq = seq
        ready = [done for wanted, done in self._waiting if wanted <= seq]
        self._waiting = [(wanted, done) for wanted, done in self._waiting if wanted > seq]
        for done in ready:
            done.resolve(None)
        for tell in self.on_applied:
            tell()

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            if self._is_full:
                done.resolve(None)
            else:
                done.fail(MemError(Errno.EAGAIN, self.problem))

    # -- for those who search and embed --------------------------------------------------------

    async def catch_up(self) -> str:
        """Return when the index has seen all that was durable when this was called.

        While the disk is full it returns at once, and says for people that the index is behind.
        Errors: EAGAIN while the index is being rebuilt or cannot follow.
        """
        wanted = self._log.durable_seq
        if behind := self._behind(wanted):
            return behind
        if self._rebuild_from is not None:
            raise MemError(Errno.EAGAIN, "the index is being rebuilt", indexed=self.indexed_seq)
        if self.indexed_seq < wanted or not self._is_open:
            # Not behind the opening in the index's queue: it may have been discarded by then.
            done = Completion[None]()
            self._waiting.append((wanted, done))
            self._wake()
            self.kick()
            await done
        return self._behind(wanted)

    def _behind(self, wanted: int) -> str:
        """What a search from the index as it is has to say; empty where it has seen `wanted`."""
        is_complete = self._rebuild_from is None and self.indexed_seq >= wanted
        if is_complete or not (self._is_full and self._is_open):
            return ""
        return f"behind: not all that was written is found: {self.problem}"

    async def ask(self, work: Callable[..., T], *args: Any) -> T:
        """A call of the index that changes nothing that its stamp stands for.

        Errors: EAGAIN when it turns out to be damaged (it will be rebuilt) or closed (it will be
        opened), and the call's own.
        """
        try:
            return await self._io.run(work, *args)
        except MemError as error:
            if error.errno not in _REOPENED:
                raise
            self._is_open = False  # opening a damaged one discards it, and all is indexed anew
            self.kick()
            raise MemError(Errno.EAGAIN, _REOPENED[error.errno]) from None

    async def close(self) -> None:
        """For good: nothing opens it again."""
        self._is_closed = True
        await self._io.run(self.index.close)


def _is_no_room(error: Exception) -> bool:
    return isinstance(error, MemError) and error.errno is Errno.ENOSPC


def _facets(row: CubeRow) -> IndexFacets:
    described = row.current.descriptive
    return IndexFacets(
        owner=(row.uid, row.gid),
        mode=row.mode,
        type=row.type,
        semantic_type=described.semantic_type,
        producer=described.producer,
        session=described.session,
        position=described.position,
        event_time_ns=described.event_time_ns,
        valid_from_ns=described.valid_from_ns,
        valid_to_ns=described.valid_to_ns,
        written_ns=row.current.created_ns,
        priority=row.priority,
    )


_log = structlog.get_logger("memosd.kernel")
