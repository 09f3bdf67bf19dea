"""The ledger: changes since the last durable commit, and the group commit that makes them so.

Every change to durable state is put here first. Reads see it at once; the outside sees nothing
of it before it is on disk: whoever answers a caller asks `barrier()` how far the answer depends
on changes that are not durable yet, and holds the answer back with `when_durable`.

Two generations exist: the one being filled and the one being committed. While an I/O thread
waits for the disk, the kernel thread fills the next one, so all requests of one disk wait share
one transaction (group commit). A commit that fails takes both generations with it: the second
was built on the first. Then everyone who waits gets the error and `on_rollback` puts in-memory
state derived from the table right again.

Where many write at once, a commit waits up to a millisecond for about half of them: each of the
few large groups costs hardly more than one of many small ones. A lone writer never waits.

Invariant: what a caller was told survives kill -9. Kernel thread only.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from libmem.abi import failpoints
from libmem.abi.errors import Errno, MemError
from memosd.kernel.ports import Io, Store
from memosd.kernel.wait import Completion

__all__ = ["Ledger"]

Waiter = Callable[[MemError | None], None]
_ABSENT: Final = object()
_NONE: Final[Mapping[bytes, bytes | None]] = {}
_Pending = dict[str, dict[bytes, bytes | None]]
"""Table -> key -> value, None to delete."""
_WRITERS_WINDOW: Final = 8
"""Commits after which a session that writes no more is forgotten; twice that at most."""


class Ledger:
    """Reads, changes and commits over one `Store`."""

    def __init__(self, store: Store, io: Io) -> None:
        self._store = store
        self._io = io
        self._filling: _Pending = {}
        self._flushing: _Pending = {}
        self._filling_waiters: list[Waiter] = []
        self._flushing_waiters: list[Waiter] = []
        self._filling_generation = 1
        self._durable_generation = 0
        self._touched = 0
        self.before_stage: list[Callable[[], None]] = []
        """Put derived rows (usage, ...) into the generation about to be staged."""
        self.on_commit: list[Callable[[], None]] = []
        self.on_rollback: list[Callable[[MemError], None]] = []
        self.linger: Callable[[Callable[[], None]], object] = _never
        """Set at assembly: call something a millisecond later."""
        self._is_lingering = False
        self._writers: set[int] = set()
        self._earlier_writers: set[int] = set()
        """Sessions that waited for the last few commits."""
        self.commits = 0
        self.rollbacks = 0

    # -- reads and changes ---------------------------------------------------------------

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value as of now, durable or not."""
        value = self._filling.get(table, _NONE).get(key, _ABSENT)
        if value is not _ABSENT:
            self._touched = self._filling_generation
            return value  # type: ignore[return-value]
        if self._flushing:
            value = self._flushing.get(table, _NONE).get(key, _ABSENT)
            if value is not _ABSENT:
                self._touched = max(self._touched, self._filling_generation - 1)
                return value  # type: ignore[return-value]
        return self._store.get(table, key)

    def is_pending(self, table: str, key: bytes) -> bool:
        """Has the row changes that are not durable yet?"""
        return key in self._filling.get(table, _NONE) or key in self._flushing.get(table, _NONE)

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        """Change a row; None deletes it."""
        self._touched = self._filling_generation
        try:
            self._filling[table][key] = value
        except KeyError:  # the first of its table
            self._filling[table] = {key: value}

    def delete(self, table: str, key: bytes) -> None:
        self.put(table, key, None)

    def touch(self) -> None:
        """What is being answered depends on the generation being filled."""
        self._touched = self._filling_generation

    def scan(self, table: str, start: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows with key >= start that begin with `prefix`, ascending, changes included.

        Not to be held over an await.
        """
        flushing = _within(self._flushing.get(table, _NONE), start, prefix)
        filling = _within(self._filling.get(table, _NONE), start, prefix)
        if filling:
            self._touched = self._filling_generation
        elif flushing:
            self._touched = max(self._touched, self._filling_generation - 1)
        pending = {**flushing, **filling}
        settled = self._settled(table, start, prefix)
        if not pending:
            yield from settled
            return
        changed = sorted((key, value) for key, value in pending.items() if value is not None)
        kept = ((key, value) for key, value in settled if key not in pending)
        yield from heapq.merge(changed, kept)

    def _settled(self, table: str, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._store.scan(table, start):
            if not key.startswith(prefix):
                return
            yield key, value

    # -- answers wait for the disk ---------------------------------------------------------

    def begin_answer(self) -> None:
        """Start watching what an answer depends on; `barrier` tells at its end."""
        self._touched = 0

    def barrier(self) -> int:
        """The generation that must be durable before the answer may leave; 0 is none."""
        return self._touched if self._touched > self._durable_generation else 0

    def pending_barrier(self) -> int:
        """As `barrier`, for an answer whose reads were not watched: all there is by now."""
        if self._filling:
            return self._filling_generation
        return self._filling_generation - 1 if self._flushing else 0

    def when_durable(self, generation: int, waiter: Waiter) -> None:
        """Call `waiter(None)` once the generation is on disk, or with what went wrong."""
        if generation <= self._durable_generation:
            waiter(None)
        elif generation == self._filling_generation:
            self._filling_waiters.append(waiter)
        else:
            self._flushing_waiters.append(waiter)

    def note_writer(self, session: int) -> None:
        """This session waits for a commit; how many do decides how long a group is awaited."""
        self._writers.add(session)

    def durable(self) -> Completion[None]:
        """Done when every change made so far is on disk."""
        done: Completion[None] = Completion()

        def settle(error: MemError | None) -> None:
            if error is None:
                done.resolve(None)
            else:
                done.fail(error)

        self.when_durable(self.pending_barrier(), settle)
        return done

    # -- the commit cycle ----------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Nothing to commit and nothing being committed."""
        return not (self._filling or self._flushing)

    def commit(self) -> None:
        """Commit what was filled, unless a commit is under way; to be called every turn."""
        if self._flushing or not self._filling:
            return
        company = len(self._writers | self._earlier_writers) // 2
        if 0 < len(self._filling_waiters) < company:
            if not self._is_lingering:
                self._is_lingering = True
                self.linger(self._stop_lingering)
            return
        self._commit()

    def _stop_lingering(self) -> None:
        self._is_lingering = False
        if self._filling and not self._flushing:
            self._commit()

    def _commit(self) -> None:
        for prepare in self.before_stage:
            prepare()
        self._flushing, self._filling = self._filling, {}
        self._flushing_waiters, self._filling_waiters = self._filling_waiters, []
        self._filling_generation += 1
        try:
            blocking_commit = self._store.stage(self._flushing)
        except MemError as error:
            self._roll_back(error)
            return
        done = self._io.run(blocking_commit)
        done.on_done(lambda: self._finish(done))

    def _finish(self, done: Completion[None]) -> None:
        try:
            done.result()
        except MemError as error:
            self._roll_back(error)
            return
        failpoints.hit("ledger.settle.before")
        self._store.settle()
        self._flushing = {}
        self._durable_generation = self._filling_generation - 1
        self.commits += 1
        if self.commits % _WRITERS_WINDOW == 0:
            self._earlier_writers, self._writers = self._writers, set()
        waiters, self._flushing_waiters = self._flushing_waiters, []
        for notice in self.on_commit:
            notice()
        for waiter in waiters:
            waiter(None)
        # What was filled during the disk wait is committed at the turn's end, together with what
        # arrived meanwhile: a larger group costs no more than a small one.

    def _roll_back(self, error: MemError) -> None:
        self.rollbacks += 1
        self._store.settle()
        waiters = self._flushing_waiters + self._filling_waiters
        self._flushing, self._filling = {}, {}
        self._flushing_waiters, self._filling_waiters = [], []
        self._durable_generation = self._filling_generation
        self._filling_generation += 1
        for restore in self.on_rollback:
            restore(error)
        reason = MemError(
            error.errno if error.errno is Errno.ENOSPC else Errno.EIO,
            f"not committed: {error.message}",
            **error.detail,
        )
        for waiter in waiters:
            waiter(reason)


def _within(
    changes: Mapping[bytes, bytes | None], start: bytes, prefix: bytes
) -> dict[bytes, bytes | None]:
    """The changes of a table that concern a scan."""
    return {key: value for key, value in changes.items() if key >= start and key.startswith(prefix)}


def _never(_call: Callable[[], None]) -> None:
    raise RuntimeError("assembly left linger unset")
