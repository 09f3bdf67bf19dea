"""Handlers about the session and the daemon itself."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from types import CoroutineType

import msgspec

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import BATCH_MAX_CALLS, FRAME_MAX_BYTES, PAGE_BYTES
from libmem.abi.state import SessionStat
from libmem.abi.structs import Decision
from libmem.abi.wire import Fault, encode
from memosd.kernel.dispatch import Context
from memosd.kernel.session import Session

__all__ = [
    "sys_batch",
    "sys_hello",
    "sys_info",
    "sys_list_sessions",
    "sys_log",
    "sys_shutdown",
    "sys_sync",
]

_BATCH_SLICE_NS = 5_000_000
"""A batch lets others go first after this long."""
_PROGRAM_MAX = 64
_CANCELED = MemError(Errno.ECANCELED, "an earlier call of the batch failed")
# A thousand reads of a MiB each would otherwise be one message.
_REPLY_FULL = MemError(Errno.EMSGSIZE, "not done: the reply to the batch is full")


def sys_hello(context: Context, request: c.Hello) -> c.HelloReply:
    kernel, peer = context.kernel, context.peer
    if peer.session is not None:
        kernel.sessions.end(peer.session)  # the same connection starts over
    who = kernel.identify(context.who)
    session = kernel.open_session(who, request.client[:_PROGRAM_MAX], request.transition)
    who = session.identity
    peer.session = session
    parameters = kernel.parts.parameters
    return c.HelloReply(
        session=session.number,
        token=session.token,
        fd_socket=parameters.fd_socket,
        server=kernel.server,
        uid=who.uid,
        gid=who.gid,
        pid=who.pid,
        inline_limit_bytes=parameters.inline_limit_bytes,
        call_by_value_bytes=parameters.call_by_value_bytes,
        page_bytes=PAGE_BYTES,
    )


def sys_info(context: Context, _request: c.Info) -> c.InfoReply:
    who, kernel = context.who, context.kernel
    costs = tuple(kernel.parts.costs.stats(who.uid, is_admin=who.is_admin))
    return msgspec.structs.replace(kernel.info(), costs=costs)


def sys_list_sessions(context: Context, request: c.ListSessions) -> c.ListSessionsReply:
    if not 1 <= request.limit <= 1000:
        raise MemError(Errno.EINVAL, "limit is within 1..1000")
    who = context.who
    left = [
        session
        for session in context.kernel.sessions
        if session.number > request.after and (who.is_admin or session.identity.uid == who.uid)
    ]
    page = left[: request.limit]
    return c.ListSessionsReply(
        sessions=tuple(_session_stat(context, session) for session in page),
        next_after=page[-1].number if len(left) > len(page) else 0,
    )


def _session_stat(context: Context, session: Session) -> SessionStat:
    handles = Counter(handle.kind for handle in session.handles.values())
    return SessionStat(
        number=session.number,
        uid=session.identity.uid,
        gid=session.identity.gid,
        pid=session.identity.pid,
        client=session.program,
        since_ns=session.since_ns,
        is_bound=session.is_bound,
        pins=handles["pin"],
        maps=handles["map"],
        fills=handles["fill"],
        pinned_bytes=context.kernel.holdings.pinned_bytes(session),
        calls=session.in_flight,
    )


async def sys_sync(context: Context, _request: c.Sync) -> c.Done:
    kernel = context.kernel
    ledger = kernel.parts.table.ledger
    rollbacks = ledger.rollbacks
    await kernel.reclaim.writeback.store_all()
    while kernel.parts.heat.write_back():
        await kernel.next_turn()
    await ledger.durable()
    if ledger.rollbacks != rollbacks:
        # What the first write-backs of many recorded may have gone with it.
        raise MemError(Errno.EIO, "a commit failed meanwhile; not everything is on disk")
    return c.Done()


def sys_shutdown(context: Context, _request: c.Shutdown) -> c.Done:
    context.kernel.request_stop()
    return c.Done()


def sys_log(context: Context, request: c.Log) -> c.LogReply:
    if not 1 <= request.limit <= 1000:
        raise MemError(Errno.EINVAL, "limit is within 1..1000")
    return c.LogReply(decisions=tuple(islice(_decisions(context), request.limit)))


def _decisions(context: Context) -> Iterator[tuple[str, Decision]]:
    """Newest first, of the cubes the caller may read; the administrator sees gone ones too.

    Those about the daemon as a whole have no name, and are for everybody.
    """
    kernel = context.kernel
    for cube_id, decision in reversed(kernel.parts.heat.recent):
        if not cube_id:
            yield "/", decision
            continue
        try:
            row = kernel.parts.table.cube_row(cube_id)
        except MemError:
            row = None
        if row is not None and kernel.cubes.may_read(context.who, row):
            yield row.name, decision
        elif row is None and context.who.is_admin:
            yield cube_id.hex(), decision


async def sys_batch(context: Context, request: c.Batch) -> c.BatchReply:
    if len(request.calls) > BATCH_MAX_CALLS:
        raise MemError(Errno.EINVAL, f"a batch has at most {BATCH_MAX_CALLS} calls")
    results: list[c.BatchItem] = []
    clock = context.kernel.parts.clock
    until_ns = clock.monotonic_ns() + _BATCH_SLICE_NS
    told = 0, 0
    is_stopped = False
    reply_bytes = 0
    for number, args in request.calls:
        if clock.monotonic_ns() > until_ns:
            told = _fail_with_commit(context, results, told)
            await context.kernel.next_turn()
            until_ns = clock.monotonic_ns() + _BATCH_SLICE_NS
        reply_bytes += len(results[-1].body) if results else 0
        if is_stopped or reply_bytes > FRAME_MAX_BYTES:
            results.append(_failed(_CANCELED if is_stopped else _REPLY_FULL))
            continue
        try:
            outcome = context.kernel.dispatch.call(context, number, args)
            if type(outcome) is CoroutineType:
                told = _fail_with_commit(context, results, told)
                outcome = await outcome
            results.append(c.BatchItem(0, msgspec.Raw(encode(outcome))))
        except MemError as error:
            results.append(_failed(error))
            is_stopped = request.stop_on_error
        except Exception as error:  # noqa: BLE001
            results.append(_failed(context.kernel.dispatch.surprise(error)))
            is_stopped = request.stop_on_error
    return c.BatchReply(results=tuple(results))


def _fail_with_commit(
    context: Context, results: list[c.BatchItem], told: tuple[int, int]
) -> tuple[int, int]:
    """Before a batch waits: what it did since it last waited fails should its commit fail.

    `told` is how many results and handles were looked after before; returns how many are now.
    """
    ledger = context.kernel.parts.table.ledger
    places, handles = range(told[0], len(results)), context.granted[told[1] :]

    def settle(failure: MemError | None) -> None:
        if failure is None:
            return
        context.take_back(handles)
        for place in places:
            if results[place].errno == 0:
                results[place] = _failed(failure)

    ledger.when_durable(ledger.pending_barrier(), settle)
    return len(results), len(context.granted)


def _failed(error: MemError) -> c.BatchItem:
    return c.BatchItem(int(error.errno), msgspec.Raw(encode(Fault(error.message, error.detail))))
