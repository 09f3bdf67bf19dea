"""The log: what happened, event by event, in the commits that made it happen.

Events of one commit lie together in a row: to seal and put each by itself would cost a write as
much as its own rows do. An event never comes alone; the rows that it tells of are put into the
ledger in the same turn. Only durable events are read. Kernel thread only.
"""

from collections.abc import Callable, Iterator
from typing import Final

from libmem.abi.errors import MemError
from libmem.abi.structs import Event, EventKind
from memosd.kernel.ledger import Ledger
from memosd.kernel.ports import Clock, Store
from memosd.kernel.rows import CubeRow, EventRow, LogRow, decode_row, encode_row

__all__ = ["Log", "event_of"]

_ROW_MAX_EVENTS: Final = 16
"""Some 1,500 bytes: LMDB wants whole pages of their own, side by side, for rows beyond 2 KiB."""


class Log:
    """Appends events, reads them, and forgets the oldest."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._appended: list[EventRow] = []
        """Events of the generation being filled."""
        self.durable_seq = self._staged_seq = _last_seq(store)
        """The last event that is on disk."""
        self.oldest_seq = _first_seq(store)
        """The first event still retained."""
        self.retain_events = 1_000_000
        self.floor: Callable[[], int] = lambda: self.durable_seq
        """Nothing from here on is forgotten: the indexer has yet to see it."""
        ledger.before_stage.append(self._on_stage)
        ledger.on_commit.append(self._on_commit)
        ledger.on_rollback.append(self._on_rollback)

    def note(
        self, kind: EventKind, cube_id: bytes, row: CubeRow, actor_uid: int = 0, old_name: str = ""
    ) -> None:
        """Append an event of a cube; `old_name` is for renames."""
        # Positional: one for every write.
        self._appended.append(
            EventRow(
                self._clock.wall_ns(), kind, row.name, cube_id, row.current.version, actor_uid,
                old_name, row.uid, row.gid, row.mode, row.namespace,
            )
        )  # fmt: skip

    def append(self, event: EventRow) -> None:
        """Append an event; it is durable with this commit."""
        self._appended.append(event)

    def events_after(self, seq: int) -> Iterator[tuple[int, EventRow]]:
        """Durable events after `seq`, in order. A damaged row is passed over."""
        for key, value in self._store.scan("log", (seq + 1).to_bytes(8, "big")):
            try:
                events = decode_row(LogRow, "log", key, value).events
            except MemError:
                continue
            first = _first_of(key)
            known = max(0, seq + 1 - first)
            yield from enumerate(events[known:], first + known)

    def _on_stage(self) -> None:
        events, self._appended = self._appended, []
        for start in range(0, len(events), _ROW_MAX_EVENTS):
            part = tuple(events[start : start + _ROW_MAX_EVENTS])
            key = _key(self._staged_seq + 1, self._staged_seq + len(part))
            self._ledger.put("log", key, encode_row(key, LogRow(part)))
            self._staged_seq += len(part)
        self._trim(len(events))

    def _trim(self, new_events: int) -> None:
        """Forget what is older than what is retained, a little faster than events come."""
        end = min(self._staged_seq - self.retain_events, self.floor())
        enough = min(end, self.oldest_seq + 2 * new_events)
        if self.oldest_seq >= enough:
            return
        # Settled rows are all there are: nothing is being committed while this commit is prepared.
        for key, _ in self._store.scan("log", b""):
            if _last_of(key) >= end or self.oldest_seq >= enough:
                return
            self._ledger.delete("log", key)
            self.oldest_seq = _last_of(key) + 1

    def _on_commit(self) -> None:
        self.durable_seq = self._staged_seq

    def _on_rollback(self, _error: MemError) -> None:
        self._appended.clear()
        self._staged_seq = self.durable_seq
        self.oldest_seq = _first_seq(self._store)


def _key(first_seq: int, last_seq: int) -> bytes:
    """The last number first: a search for an event ends at the row that holds it."""
    return last_seq.to_bytes(8, "big") + first_seq.to_bytes(8, "big")


def _last_of(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _first_of(key: bytes) -> int:
    return int.from_bytes(key[8:], "big")


def _first_seq(store: Store) -> int:
    for key, _ in store.scan("log", b""):
        return _first_of(key)
    return 1


def _last_seq(store: Store) -> int:
    key = store.last_key("log")
    return _last_of(key) if key else 0


def event_of(seq: int, row: EventRow) -> Event:
    """The event as callers see it."""
    return Event(
        seq=seq,
        time_ns=row.time_ns,
        kind=row.kind,
        name=row.name,
        id=row.id,
        version=row.version,
        uid=row.actor_uid,
        old_name=row.old_name,
    )
