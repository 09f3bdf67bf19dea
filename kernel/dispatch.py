"""Dispatch: one frame in, one reply out; the only way into the kernel.

    decode -> row -> epoch -> session -> arguments -> handler -> (wait for the disk) -> reply

A handler gets a `Context` and its row's request; it returns the row's result, or a coroutine
where it may have to wait. It checks everything and then commits; what it raises is the reply. An
answer that depends on changes not yet durable leaves only after them. Kernel thread only.
"""

import secrets
from collections.abc import Callable, Coroutine, Iterator
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import structlog

from libmem.abi import failpoints
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import ABI_VERSION
from libmem.abi.structs import Stat, Value
from libmem.abi.syscalls import BY_NUMBER, SYSCALLS, Access, Syscall
from libmem.abi.wire import args_decoder, decode_request, encode, encode_error, encode_reply
from memosd.kernel.access import Identity
from memosd.kernel.describe import describe
from memosd.kernel.pagetable import Cube
from memosd.kernel.session import Handle, Session
from memosd.kernel.wait import Completion, spawn

if TYPE_CHECKING:
    from memosd.kernel.kernel import Kernel

__all__ = ["Context", "Dispatch", "Handler", "Peer", "check_table"]

_log = structlog.get_logger("memosd.kernel")
_IN_FLIGHT_MAX = 256
"""Calls of one session that wait for something; each keeps its request, and what it read."""
_HISTORY_MAX_BYTES: Final = 1 << 20
"""Headers may be large: a history ends with the version that exceeds this."""


class Peer(Protocol):
    """One connection of the control road, as the server sees it."""

    session: Session | None

    def reply(self, frame: bytes) -> None:
        """Send, or drop when the peer is gone or does not read."""
        ...


class Context:
    """One call in progress."""

    __slots__ = ("granted", "kernel", "peer", "row", "session", "who")

    def __init__(self, kernel: "Kernel", peer: Peer, row: Syscall, session: Session | None) -> None:
        self.kernel = kernel
        self.peer = peer
        self.row = row
        self.session: Session = session  # type: ignore[assignment]
        """Always there, except for `hello`."""
        self.who: Identity = session.identity if session else None  # type: ignore[assignment]
        self.granted: tuple[int, ...] = ()
        """Handles the call gave to the session."""

    def grant(self, kind: str, subject: object, release: Callable[[], None]) -> int:
        """Errors: ECANCELED when the session ended during the call; then it was released."""
        number = self.kernel.sessions.grant(self.session, Handle(kind, subject, release))
        self.granted += (number,)
        return number

    def describe(self, cube: Cube) -> Stat:
        """The cube as this caller may see it."""
        cubes, who = self.kernel.cubes, self.who
        return describe(self.kernel.parts, cube, lambda row: cubes.may_read(who, row))

    def history(self, cube: Cube, limit: int) -> Iterator[Stat]:
        """Its versions, newest first."""
        size_bytes = 0
        for version in self.kernel.parts.table.latest_versions(cube.id, cube.row, limit):
            stat = self.describe(cube._replace(version=version))
            size_bytes += len(encode(stat)) if version.attributes else 0
            yield stat
            if size_bytes > _HISTORY_MAX_BYTES:
                return

    def take_back(self, handles: tuple[int, ...]) -> None:
        """Release handles of a caller that will not learn of them."""
        for number in handles:
            handle = self.session.handles.pop(number, None)
            if handle is not None:
                handle.release()


Handler = Callable[[Context, Any], Value | Coroutine[Completion[Any], None, Value]]


def check_table(handlers: dict[str, Handler]) -> dict[int, Handler]:
    """Handlers by number; refuses a row without a handler and a handler without a row."""
    rows = {row.name for row in SYSCALLS}
    if rows != handlers.keys():
        odd = sorted(rows ^ handlers.keys())
        raise RuntimeError(f"syscall table and handlers differ: {', '.join(odd)}")
    return {row.number: handlers[row.name] for row in SYSCALLS}


class Dispatch:
    """Turns frames into calls and results into replies."""

    def __init__(self, kernel: "Kernel", handlers: dict[str, Handler]) -> None:
        self._kernel = kernel
        self._handlers = check_table(handlers)
        self._ledger = kernel.parts.table.ledger
        self.calls = 0
        self._in_flight = 0
        self._idle: Completion[None] | None = None

    def serve(self, peer: Peer, identity: Identity, frame: bytes) -> None:
        """Run one request to its first wait. Never raises."""
        self.calls += 1
        epoch = self._kernel.epoch
        try:
            request = decode_request(frame)
        except MemError as error:
            peer.reply(encode_error(0, epoch, error))
            return
        self._in_flight += 1
        self._ledger.begin_answer()
        try:
            context, args = self._enter(peer, identity, request)
        except Exception as error:  # noqa: BLE001
            self._send(peer, request.seq, self._translated(error))
            return
        outcome: Any
        try:
            outcome = self._handlers[request.number](context, args)
        except Exception as error:  # noqa: BLE001
            outcome = self._translated(error)
        if isinstance(outcome, CoroutineType):
            self._follow(context, request.seq, outcome)
        else:
            self._answer(context, request.seq, outcome, self._ledger.barrier())

    def _enter(self, peer: Peer, identity: Identity, request: Any) -> tuple[Context, Any]:
        kernel = self._kernel
        if request.abi != ABI_VERSION:
            raise MemError(
                Errno.EPROTONOSUPPORT, f"the daemon speaks ABI {ABI_VERSION}, not {request.abi}"
            )
        row = BY_NUMBER.get(request.number)
        if row is None:
            raise MemError(Errno.ENOSYS, f"no syscall has number {request.number}")
        if kernel.is_stopping:
            raise MemError(Errno.ESHUTDOWN, "the daemon is shutting down")
        if row.access is Access.NONE:
            context = Context(kernel, peer, row, None)
            context.who = identity
        else:
            context = Context(kernel, peer, row, self._session(peer, identity, request.epoch))
            if row.blocks and context.session.in_flight >= _IN_FLIGHT_MAX:
                raise MemError(Errno.EAGAIN, f"{_IN_FLIGHT_MAX} calls of this session wait already")
        self.require(context, row)
        return context, self.decode(row, request.args)

    def _session(self, peer: Peer, identity: Identity, epoch: int) -> Session:
        session = peer.session
        if session is None or session.is_ended or epoch != self._kernel.epoch:
            raise MemError(Errno.ESTALE, "no such session with this daemon; say hello")
        known = session.process
        if (known.uid, known.gid, known.pid) != (identity.uid, identity.gid, identity.pid):
            raise MemError(Errno.EPROTO, "this session belongs to another process")
        if not session.is_bound:
            raise MemError(Errno.EPROTO, "the session's token has not arrived on the fd socket")
        return session

    def require(self, context: Context, row: Syscall) -> None:
        """What does not depend on the arguments. Errors: EPERM."""
        if row.access is Access.ADMIN and not context.who.is_admin:
            raise MemError(Errno.EPERM, f"only the administrator may call {row.name}")
        if row.access is Access.WORKER and self._kernel.jobs_of(context.who.pid) is None:
            raise MemError(Errno.EPERM, f"only workers of this daemon may call {row.name}")

    @staticmethod
    def decode(row: Syscall, args: msgspec.Raw) -> Any:
        """Errors: EBADMSG for wrong types, missing or unknown fields."""
        try:
            return args_decoder(row.request).decode(args)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise MemError(Errno.EBADMSG, f"{row.name}: {error}") from None

    def _follow(self, context: Context, seq: int, call: Coroutine[Any, None, Value]) -> None:
        context.session.in_flight += 1
        done = spawn(call)

        def finish() -> None:
            context.session.in_flight -= 1
            outcome: Value | MemError
            try:
                outcome = done.result()
            except Exception as error:  # noqa: BLE001
                outcome = self._translated(error)
            # Its reads were spread over several turns: wait for all that is pending.
            self._answer(context, seq, outcome, self._ledger.pending_barrier())

        done.on_done(finish)

    def _answer(self, context: Context, seq: int, outcome: Value | MemError, barrier: int) -> None:
        # A job shows nothing of the table that is not durable; a query waits for its vector.
        if not barrier or context.row.access is Access.WORKER:
            self._send(context.peer, seq, outcome)
            return

        def send(failure: MemError | None) -> None:
            if failure is not None:
                context.take_back(context.granted)
                failure = _as_promised(context.row, failure)
            self._send(context.peer, seq, failure or outcome)

        self._ledger.note_writer(context.session.number)
        self._ledger.when_durable(barrier, send)

    def _send(self, peer: Peer, seq: int, outcome: Value | MemError) -> None:
        self._in_flight -= 1
        if self._idle is not None and not self._in_flight and not self._idle.is_done:
            self._idle.resolve(None)
        failpoints.hit("dispatch.reply.before")
        epoch = self._kernel.epoch
        if isinstance(outcome, MemError):
            peer.reply(encode_error(seq, epoch, outcome))
        else:
            peer.reply(encode_reply(seq, epoch, outcome))

    def idle(self) -> Completion[None]:
        """Done when every reply has left; for the end, when no new calls are let in."""
        idle = self._idle = Completion()
        if not self._in_flight:
            idle.resolve(None)
        return idle

    def _translated(self, error: Exception) -> MemError:
        return error if isinstance(error, MemError) else self.surprise(error)

    @staticmethod
    def surprise(error: Exception) -> MemError:
        """An exception nobody expected: EIO with a log id; the traceback stays in the log."""
        log_id = secrets.token_hex(6)
        _log.error("unexpected error in a syscall", log_id=log_id, exc_info=error)
        return MemError(Errno.EIO, "internal error; see the daemon's log", log_id=log_id)

    def call(self, context: Context, number: int, args: msgspec.Raw) -> Any:
        """One call inside a batch: its result or coroutine. Errors: whatever it raises."""
        row = BY_NUMBER.get(number)
        if row is None:
            raise MemError(Errno.ENOSYS, f"no syscall has number {number}")
        if row.name in _NOT_IN_A_BATCH:
            raise MemError(Errno.EOPNOTSUPP, f"{row.name} cannot be part of a batch")
        self.require(context, row)
        return self._handlers[number](context, self.decode(row, args))


def _as_promised(row: Syscall, failure: MemError) -> MemError:
    """A failed commit as the row may report it: who only read knows no ENOSPC."""
    if failure.errno in row.errors:
        return failure
    return MemError(Errno.EIO, failure.message, **failure.detail)


_NOT_IN_A_BATCH = frozenset({"hello", "batch", "watch", "sync", "shutdown", "fsck", "take_job"})
