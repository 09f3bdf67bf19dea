"""A client's connection across restarts of the daemon: which link, and what to do without one.

Owns the link of now and the pins to renew after a reconnect. Decides what the loss of the
daemon means for a call; does no I/O itself (`steps`), so both clients share every decision:

- A request refused as stale was not executed: reconnect and send it once more.
- The daemon died in the middle of a call: repeat it if it changes nothing, to the deadline;
  otherwise its outcome is unknown and the caller must know (ECONNRESET).
- A call about a handle is never repeated: its session is over, and the same number may by now be
  another handle (ESTALE).

Called by the clients alone: by one thread at a time, or on one event loop.
"""

import sys
import time
import weakref
from pathlib import Path
from typing import Any, Final

from libmem.abi.calls import (
    AdviseCube,
    Batch,
    Call,
    Hello,
    HelloReply,
    MapJobReply,
    MapReply,
    PinCube,
    Shutdown,
    WaitTransition,
    Watch,
)
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import HINT_PATIENCE_NS
from libmem.abi.paths import find_runtime_dir
from libmem.abi.syscalls import BY_REQUEST, SYSCALLS, Access
from libmem.abi.wire import Reply, decode_result, fault_error
from libmem.lease import Grant, Keeper, Lease, Pin
from libmem.ledger import DESCRIPTOR_CALLS, close_all, undo_of
from libmem.link import Link
from libmem.steps import Acquire, Bind, Commit, Effects, Open, Pause, Send, Step

__all__ = ["TIMEOUT_MAX_S", "Connection", "checked_timeout", "deadline_of", "new_connection"]

TIMEOUT_MAX_S: Final = 2_000_000.0
"""Of one call, 23 days: poll(2) counts milliseconds, in 31 bits."""

_PAUSE_FIRST_S: Final = 0.005
_PAUSE_MAX_S: Final = 0.1
_MAY_PASS: Final = frozenset({Errno.ECONNREFUSED, Errno.ESHUTDOWN, Errno.EAGAIN})
"""What a daemon that is being restarted answers, for a while."""
_ABOUT_HANDLES: Final = {row.number for row in SYSCALLS if row.access is Access.HANDLE}


class Connection:
    """The client's end, whichever boot of the daemon is at the other."""

    def __init__(self, runtime_dir: Path, greeting: Hello) -> None:
        self.runtime_dir = runtime_dir
        self.greeting = greeting
        self.link: Link | None = None
        self.hello: HelloReply | None = None
        """The present session's terms, or the last one's; None before the first."""
        self.epoch = 0
        self.is_closed = False
        self.pins: weakref.WeakSet[Pin] = weakref.WeakSet()

    def usable(self) -> Link | None:
        """The link, unless there is none or the daemon has gone. Errors: EBADF once closed."""
        link = self.link
        if link is not None and not link.is_alive():
            self.drop(link)
            return None
        if self.is_closed:
            raise MemError(Errno.EBADF, "this client was closed")
        return link

    def drop(self, link: Link) -> None:
        """Give up a link, if that has not been done yet."""
        link.close()
        if link is self.link:
            self.link = None

    def close(self) -> None:
        """End the session; the daemon frees all that it held. Idempotent."""
        self.is_closed = True
        if self.link is not None:
            self.drop(self.link)

    def performing(self, keeper: Keeper, step: Step, deadline: float) -> Effects[Any]:
        """Carry out one step and return its result. Errors: the kernel's, and all below."""
        if isinstance(step, Acquire):
            return (yield from self._acquiring(keeper, step.request, deadline))
        if isinstance(step, Commit):
            request, owner = step.request, step.lease.link
        else:
            request, owner = step, None
        if type(request) in DESCRIPTOR_CALLS:
            # Called as it is, nobody can reach the descriptor; the handle is the caller's.
            grant = yield from self._acquiring(keeper, request, deadline)
            grant.lease.disown()
            close_all(grant.fds)
            return grant.reply
        _, reply = yield from self.calling(request, deadline, owner)
        return decode_result(BY_REQUEST[type(request)], reply.errno, reply.body)

    def calling(
        self,
        request: Call[Any],
        deadline: float,
        owner: Link | None = None,
        begun: tuple[Link, Reply | MemError] | None = None,
    ) -> Effects[tuple[Link, Reply]]:
        """Send a request and get its reply, over a restart of the daemon where that is right.

        `owner`: the only link that the request makes sense on; `begun`: what the first sending
        came to, when that was done already.
        Errors: ESTALE, ECONNRESET, ECONNREFUSED, ETIMEDOUT, and those of `open_link`. A refusal
        by the kernel is not raised here: it is the reply.
        """
        is_bound = owner is not None or _is_about_a_handle(request)
        was_refused = False
        while True:
            if begun is None:
                link = self.usable()
                if is_bound and (link is None or owner not in {None, link}):
                    raise MemError(Errno.ESTALE, "the session that held this handle is over")
                if link is None:
                    link = yield Bind(deadline)
                try:
                    outcome: Reply | MemError = yield Send(link, request, deadline)
                except MemError as error:
                    outcome = error
            else:
                (link, outcome), begun = begun, None
            if isinstance(outcome, Reply) and not _is_refused_as_stale(request, outcome, link):
                return link, outcome
            self._lose(link, request, outcome, is_bound or was_refused)
            was_refused = isinstance(outcome, Reply)

    def _lose(
        self, link: Link, request: Call[Any], outcome: Reply | MemError, is_final: bool
    ) -> None:
        """Give the link up for what came of a call. Errors: unless the call is to be repeated."""
        if isinstance(outcome, Reply):
            self.drop(link)
            if is_final:
                raise fault_error(outcome.errno, outcome.body)
            return
        if outcome.errno is Errno.ECONNRESET:
            self.drop(link)
            if _may_repeat(request):
                return
        raise outcome

    def _acquiring(self, keeper: Keeper, request: Call[Any], deadline: float) -> Effects[Grant]:
        """As `calling`, for a request that grants a handle. Errors also: the kernel's; EMFILE."""
        while True:
            link, reply = yield from self.calling(request, deadline)
            try:
                return _grant(keeper, link, request, reply)
            except MemError as error:
                if error.errno is not Errno.ECONNRESET:
                    raise
                self.drop(link)  # it died between the reply and the descriptor's reading

    def binding(self, keeper: Keeper, deadline: float) -> Effects[Link]:
        """Connect, and renew the pins. The first time once, later again and again to the deadline.

        Errors: those of `open_link`.
        """
        while True:
            link = yield from self._opening(deadline)
            try:
                for pin in tuple(self.pins):
                    yield from self._renewing(pin, keeper, link, deadline)
                self._adopt(link)
            except MemError as error:
                link.close()
                if error.errno is not Errno.ECONNRESET:
                    raise
            except BaseException:
                link.close()
                raise
            else:
                return link

    def _adopt(self, link: Link) -> None:
        if self.is_closed:  # while the link was being opened
            raise MemError(Errno.EBADF, "this client was closed")
        self.link, self.hello, self.epoch = link, link.hello, link.epoch

    def _opening(self, deadline: float) -> Effects[Link]:
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                link: Link = yield Open(deadline)
            except MemError as error:
                # A daemon that was there may be on its way back; one that never was is absent.
                is_passing = self.hello is not None and error.errno in _MAY_PASS
                if not is_passing or time.monotonic() + pause_s >= deadline:
                    raise
            else:
                return link
            yield Pause(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _renewing(self, pin: Pin, keeper: Keeper, link: Link, deadline: float) -> Effects[None]:
        if pin.is_released:
            return
        request = PinCube(name=pin.name)
        reply: Reply = yield Send(link, request, deadline)
        try:
            pin.renew(_grant(keeper, link, request, reply).lease)
        except MemError:
            self.pins.discard(pin)  # unlinked, or no room: the pin shows it by `is_held`


def new_connection(
    runtime_dir: str | Path | None, name: str | None, transition: int = 0
) -> Connection:
    """A connection that was not opened yet; the defaults are found, and kept over a chdir().

    `transition`: of a worker, see `Hello`.
    """
    directory = find_runtime_dir() if runtime_dir is None else Path(runtime_dir)
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable).name
    return Connection(directory.absolute(), Hello(name or program, transition))


def checked_timeout(timeout_s: float) -> float:
    """`timeout_s`, where it is a time that can be waited. Errors: EINVAL."""
    if not 0 <= timeout_s <= TIMEOUT_MAX_S:  # nan is not
        raise MemError(Errno.EINVAL, f"timeout_s is within 0..{TIMEOUT_MAX_S:.0f}, not {timeout_s}")
    return timeout_s


def deadline_of(step: Step, patience_s: float) -> float:
    """When to stop waiting, on time.monotonic(). A long poll's own wait comes on top."""
    wait_s = 0.0
    if isinstance(step, Watch | WaitTransition):
        wait_s = step.timeout_ms / 1000
    elif type(step) is AdviseCube and step.wait:
        wait_s = (step.deadline_ns or HINT_PATIENCE_NS) / 1e9
    return time.monotonic() + patience_s + wait_s


def _grant(keeper: Keeper, link: Link, request: Call[Any], reply: Reply) -> Grant:
    """Take what a reply grants. Errors: the kernel's; EMFILE, EBADMSG, ECONNRESET."""
    kind = type(request)
    row = BY_REQUEST[kind]
    result = decode_result(row, reply.errno, reply.body)
    fds: list[int] = []
    if kind in DESCRIPTOR_CALLS:
        count = _descriptors(result)
        try:
            fds = link.claim(result.handle, count)
        except MemError:
            link.ledger.give_back(row, result.handle)
            raise
    return Grant(Lease(keeper, link, result.handle, undo_of(kind, result.handle)), result, fds)


def _descriptors(result: Any) -> int:
    """How many come with a reply."""
    if isinstance(result, MapReply):
        return 0 if result.openings else 1 + len(result.bases)
    return result.descriptors if isinstance(result, MapJobReply) else 1


def _may_repeat(request: Call[Any]) -> bool:
    # A repeated shutdown would stop the daemon that was started in the first one's place.
    return not BY_REQUEST[type(request)].is_mutation and type(request) is not Shutdown


def _is_about_a_handle(request: Call[Any]) -> bool:
    if type(request) is Batch:
        return not _ABOUT_HANDLES.isdisjoint({number for number, _ in request.calls})
    return BY_REQUEST[type(request)].access is Access.HANDLE


def _is_refused_as_stale(request: Call[Any], reply: Reply, link: Link) -> bool:
    """True when the daemon did not know the session. A watch of a lost past is ESTALE too."""
    if reply.errno != Errno.ESTALE:
        return False
    return reply.epoch != link.epoch or type(request) is not Watch
