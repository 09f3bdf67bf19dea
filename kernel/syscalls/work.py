"""Handlers for worker processes: take a job, return it. Dispatch let in nobody else."""

from collections.abc import Coroutine
from typing import Any

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import WATCH_MAX_MS
from memosd.kernel.dispatch import Context
from memosd.kernel.jobs import Jobs

__all__ = ["sys_finish_job", "sys_map_job", "sys_take_job"]


def sys_take_job(context: Context, request: c.TakeJob) -> Coroutine[Any, None, c.JobReply]:
    if not request.classes:
        raise MemError(Errno.EINVAL, "name at least one class of jobs")
    if not 0 <= request.timeout_ms <= WATCH_MAX_MS:
        raise MemError(Errno.EINVAL, f"timeout_ms is within 0..{WATCH_MAX_MS}")
    return _jobs(context).take(context.session, frozenset(request.classes), request.timeout_ms)


def sys_finish_job(context: Context, request: c.FinishJob) -> c.Done:
    _jobs(context).finish(context.who.pid, request)
    return c.Done()


def sys_map_job(context: Context, request: c.MapJob) -> c.MapJobReply:
    kernel = context.kernel
    fds = kernel.device.frames_for(context.who.pid, request.key)
    number = context.grant("map", None, _nothing)
    kernel.send_fds(context.session, number, fds)
    return c.MapJobReply(number, len(fds))


def _nothing() -> None:
    """What a copy is about is held for as long as it is under way."""


def _jobs(context: Context) -> Jobs:
    """Those of this worker. Errors: EPERM, it is none any more (as dispatch found a moment ago)."""
    jobs = context.kernel.jobs_of(context.who.pid)
    if jobs is None:
        raise MemError(Errno.EPERM, "no worker of this daemon")
    return jobs
