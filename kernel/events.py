"""Events: the durable log as callers see it, and waiting for what comes next.

A watcher pulls: it names the last sequence number it knows and gets what came after, waiting up
to a time-out for the first. Nothing is queued per watcher, so a slow reader costs nothing, a
vanished one is gone with its session, and a restart of either side loses no event that is still
retained. Only durable events are shown. Kernel thread only.
"""

from itertools import islice
from typing import Final

from libmem.abi.calls import Watch, WatchReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import EVENTS_MAX, WATCH_MAX_MS
from libmem.abi.names import namespace_of, parse_subtree
from libmem.abi.structs import Event
from memosd.kernel.access import EXECUTE, READ, Identity, allows
from memosd.kernel.log import event_of
from memosd.kernel.parts import Parts
from memosd.kernel.rows import EventRow
from memosd.kernel.session import Session
from memosd.kernel.wait import Completion

__all__ = ["Events", "is_under"]

_SCAN_MAX: Final = 4096
"""Rows looked at per call; a reader far behind comes back for more with `next_seq`."""


def is_under(name: str, subtree: str) -> bool:
    """Is a name the subtree's root or below it?"""
    return subtree in ("/", name) or name.startswith(subtree + "/")


class _Sleeper:
    """One watch that waits. Woken by a commit, by its time-out, by its session's end."""

    __slots__ = ("_woken", "is_over")

    def __init__(self) -> None:
        self._woken: Completion[None] | None = None
        self.is_over = False

    def wake(self) -> None:
        woken, self._woken = self._woken, None
        if woken is not None:
            woken.resolve(None)

    def end(self) -> None:
        self.is_over = True
        self.wake()

    def next(self) -> Completion[None]:
        """Done at the next wake, at once when it is over."""
        woken = self._woken = Completion()
        if self.is_over:
            self.wake()
        return woken


class Events:
    """`watch` and its waiters."""

    def __init__(self, parts: Parts) -> None:
        self._log = parts.table.log
        self._namespaces = parts.namespaces
        self._timers = parts.timers
        self._watches_per_session = parts.parameters.watches_per_session
        self._sleepers: set[_Sleeper] = set()
        self._is_closed = False
        parts.table.ledger.on_commit.append(self._wake)

    async def watch(self, session: Session, request: Watch) -> WatchReply:
        """Errors: as its row says."""
        under = parse_subtree(request.under)
        if under != "/":
            self._namespaces.find(namespace_of(under)).require(session.identity, EXECUTE)
        limit = _within(request.max_events, 1, EVENTS_MAX, "max_events")
        timeout_ms = _within(request.timeout_ms, 0, WATCH_MAX_MS, "timeout_ms")
        since = self._log.durable_seq if request.since_seq is None else request.since_seq
        events, since = self._collect(session.identity, under, since, limit)
        if events or since < self._log.durable_seq or timeout_ms == 0 or self._is_closed:
            return WatchReply(events=tuple(events), next_seq=since)
        sleeper = self._sleep(session, timeout_ms)
        timer = self._timers.after(timeout_ms * 1_000_000, sleeper.end)
        try:
            while True:
                await sleeper.next()
                events, since = self._collect(session.identity, under, since, limit)
                if events or since < self._log.durable_seq or sleeper.is_over:
                    return WatchReply(events=tuple(events), next_seq=since)
        finally:
            timer.cancel()
            self._sleepers.discard(sleeper)
            session.on_end.discard(sleeper.end)
            session.watches -= 1

    def _sleep(self, session: Session, timeout_ms: int) -> _Sleeper:
        if session.watches >= self._watches_per_session:
            raise MemError(Errno.EMFILE, f"the session waits in {session.watches} watches")
        session.watches += 1
        sleeper = _Sleeper()
        self._sleepers.add(sleeper)
        session.on_end.add(sleeper.end)
        return sleeper

    def _check_retained(self, since: int) -> None:
        oldest = self._log.oldest_seq
        if not oldest - 1 <= since <= self._log.durable_seq:
            raise MemError(
                Errno.ESTALE, "the log does not reach back to that event; list again",
                oldest_seq=oldest, newest_seq=self._log.durable_seq,
            )  # fmt: skip

    def _collect(
        self, who: Identity, under: str, since: int, limit: int
    ) -> tuple[list[Event], int]:
        self._check_retained(since)
        events: list[Event] = []
        looked_at = 0
        for seq, row in islice(self._log.events_after(since), _SCAN_MAX):
            looked_at += 1
            if self._shows(who, row, under):
                if len(events) == limit:
                    return events, since
                events.append(event_of(seq, row))
            since = seq
        # A damaged row at the end of the log is passed over, too, or it would be asked for again.
        return events, since if looked_at == _SCAN_MAX else self._log.durable_seq

    def _shows(self, who: Identity, row: EventRow, under: str) -> bool:
        if not is_under(row.name, under) and not (row.old_name and is_under(row.old_name, under)):
            return False
        return self.may_see(who, row)

    def may_see(self, who: Identity, row: EventRow) -> bool:
        """As the cube was when it happened, and the namespace is now."""
        if who.is_admin:
            return True
        space = self._namespaces.get(namespace_of(row.name))
        # Another namespace may have the name by now; its owner has no right to these.
        if space is None or space.id != row.namespace or not space.allows(who, EXECUTE):
            return False
        return allows(who, (row.owner_uid, row.owner_gid), row.mode, READ)

    def _wake(self) -> None:
        for sleeper in list(self._sleepers):
            sleeper.wake()

    def close(self) -> None:
        """At shutdown: let every watcher go with what it has."""
        self._is_closed = True
        for sleeper in list(self._sleepers):
            sleeper.end()


def _within(value: int, low: int, high: int, field: str) -> int:
    if not low <= value <= high:
        raise MemError(Errno.EINVAL, f"{field} is within {low}..{high}")
    return value
