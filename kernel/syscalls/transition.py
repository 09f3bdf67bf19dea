"""Handlers about transitions: ask for one, follow it, cancel it; and a worker's report."""

from collections.abc import Coroutine
from itertools import islice
from typing import Any, Final

import msgspec

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import WATCH_MAX_MS
from libmem.abi.transitions import TransitionStat
from memosd.kernel.dispatch import Context

__all__ = [
    "sys_cancel_transition",
    "sys_list_transitions",
    "sys_report_job",
    "sys_transmute",
    "sys_wait_transition",
]

_LISTED_SOURCES: Final = 8
"""In a listing; `wait_transition` tells all."""


def sys_transmute(context: Context, request: c.Transmute) -> TransitionStat:
    return context.kernel.transitions.submit(context.who, request)


def sys_wait_transition(
    context: Context, request: c.WaitTransition
) -> Coroutine[Any, None, TransitionStat]:
    if not 0 <= request.timeout_ms <= WATCH_MAX_MS:
        raise MemError(Errno.EINVAL, f"timeout_ms is within 0..{WATCH_MAX_MS}")
    transitions = context.kernel.transitions
    return transitions.wait(context.session, request.number, request.seen, request.timeout_ms)


def sys_list_transitions(context: Context, request: c.ListTransitions) -> c.ListTransitionsReply:
    if not 1 <= request.limit <= 1000:
        raise MemError(Errno.EINVAL, "limit is within 1..1000")
    found = context.kernel.transitions.seen_by(context.who, request.after)
    page = tuple(
        msgspec.structs.replace(stat, sources=stat.sources[:_LISTED_SOURCES])
        for stat in islice(found, request.limit)
    )
    return c.ListTransitionsReply(page, page[-1].number if next(found, None) else 0)


def sys_cancel_transition(context: Context, request: c.CancelTransition) -> c.Done:
    context.kernel.transitions.cancel(context.who, request.number)
    return c.Done()


def sys_report_job(context: Context, request: c.ReportJob) -> c.ReportJobReply:
    pid = context.session.process.pid
    return c.ReportJobReply(context.kernel.transitions.report(pid, request))
