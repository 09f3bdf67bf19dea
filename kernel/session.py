"""Sessions: a client process, and everything the kernel holds on its behalf.

Opened by `hello` on the control road, bound when the same process shows the token on the fd
road, ended when that socket closes; ended otherwise, it closes that socket. All that a session
holds is reachable from here, so ending it frees everything. Kernel thread only.
"""

import itertools
import secrets
from collections.abc import Callable, Iterator

from libmem.abi.errors import Errno, MemError
from memosd.kernel.access import Identity
from memosd.kernel.param import Parameters

__all__ = ["Handle", "Session", "Sessions"]


class Handle:
    """Something a session holds by number. `release` is called exactly once."""

    __slots__ = ("kind", "release", "subject")

    def __init__(self, kind: str, subject: object, release: Callable[[], None]) -> None:
        self.kind = kind
        """map, pin or fill."""
        self.subject = subject
        self.release = release


class Session:
    """One client.

    `identity`: who it acts for, `process`: which process it is; the same, but for a worker that
    does what a user asked for. Both are the operating system's word.
    """

    __slots__ = (
        "handles",
        "hang_up",
        "identity",
        "in_flight",
        "is_bound",
        "is_ended",
        "number",
        "on_end",
        "process",
        "program",
        "since_ns",
        "token",
        "watches",
    )

    def __init__(
        self,
        number: int,
        process: Identity,
        program: str,
        since_ns: int,
        acts_for: Identity | None = None,
    ) -> None:
        self.number = number
        self.process = process
        self.identity = acts_for or process
        self.program = program
        self.since_ns = since_ns
        self.token = secrets.token_bytes(16)
        self.is_bound = False
        self.is_ended = False
        self.handles: dict[int, Handle] = {}
        self.on_end: set[Callable[[], None]] = set()
        """Waits to give up when the session ends."""
        self.hang_up: Callable[[], None] = _nothing
        """Close its connection on the fd road, if that is still there."""
        self.in_flight = 0
        """Calls of its that wait for something."""
        self.watches = 0
        """Those of them that wait for events."""

    def take(self, number: int, kind: str) -> Handle:
        """Remove and return a handle; the caller releases it. Errors: EBADF."""
        self.peek(number, kind)
        return self.handles.pop(number)

    def peek(self, number: int, kind: str) -> Handle:
        """Errors: EBADF."""
        handle = self.handles.get(number)
        if handle is None or handle.kind != kind:
            raise MemError(Errno.EBADF, f"this session holds no {kind} with that handle")
        return handle


class Sessions:
    """All live sessions."""

    def __init__(self, limits: Parameters) -> None:
        self._limits = limits
        self._by_number: dict[int, Session] = {}
        self._numbers = itertools.count(1)
        self._handles = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Session]:
        """By number."""
        return iter(list(self._by_number.values()))

    def open(
        self, process: Identity, program: str, now_ns: int, acts_for: Identity | None = None
    ) -> Session:
        """Errors: EMFILE when the daemon, or this process's user, has too many."""
        limits = self._limits
        if len(self._by_number) >= limits.sessions:
            raise MemError(Errno.EMFILE, f"the daemon serves {limits.sessions} sessions already")
        same = sum(s.process.uid == process.uid for s in self._by_number.values())
        if same >= limits.sessions_per_uid:
            raise MemError(Errno.EMFILE, f"uid {process.uid} has {same} sessions already")
        session = Session(next(self._numbers), process, program, now_ns, acts_for)
        self._by_number[session.number] = session
        return session

    def find_unbound(self, token: bytes, identity: Identity) -> Session | None:
        """The session waiting for this token from this very process, or None."""
        for session in self._by_number.values():
            if session.is_bound or not secrets.compare_digest(session.token, token):
                continue
            shown = (session.process.uid, session.process.pid)
            return session if shown == (identity.uid, identity.pid) else None
        return None

    def check_room(self, session: Session, kind: str) -> None:
        """May the session hold one more of a kind? Errors: EMFILE."""
        if len(session.handles) >= self._limits.handles_per_session:
            raise MemError(
                Errno.EMFILE, f"the session holds {len(session.handles)} handles already"
            )
        if kind == "pin":
            pins = sum(handle.kind == "pin" for handle in session.handles.values())
            if pins >= self._limits.pins_per_session:
                raise MemError(Errno.EMFILE, f"the session holds {pins} pins already")

    def grant(self, session: Session, handle: Handle) -> int:
        """Let a session hold something; its number.

        Errors, after which it was released: ECANCELED when the session ended meanwhile, EMFILE
        when other calls of its took the room meanwhile.
        """
        try:
            if session.is_ended:
                raise MemError(Errno.ECANCELED, "the session ended")
            self.check_room(session, handle.kind)
        except MemError:
            handle.release()
            raise
        number = next(self._handles)
        session.handles[number] = handle
        return number

    def end(self, session: Session) -> None:
        """Free all that the session holds. Idempotent."""
        if session.is_ended:
            return
        session.is_ended = True
        self._by_number.pop(session.number, None)
        for give_up in list(session.on_end):
            give_up()
        session.on_end.clear()
        while session.handles:
            session.handles.popitem()[1].release()
        session.hang_up()


def _nothing() -> None:
    """A session that is not bound has no connection."""
