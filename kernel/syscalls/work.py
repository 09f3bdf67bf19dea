"""Handlers for worker processes: take a job, return it. Dispatch let in nobody else."""

from collections.abc import Coroutine
from typing import Any

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import WATCH_MAX_MS
from memosd.kernel.dispatch import Context

__all__ = ["sys_finish_job", "sys_take_job"]


def sys_take_job(context: Context, request: c.TakeJob) -> Coroutine[Any, None, c.JobReply]:
    if not request.classes:
        raise MemError(Errno.EINVAL, "name at least one class of jobs")
    if not 0 <= request.timeout_ms <= WATCH_MAX_MS:
        raise MemError(Errno.EINVAL, f"timeout_ms is within 0..{WATCH_MAX_MS}")
    jobs = context.kernel.jobs
    return jobs.take(context.session, frozenset(request.classes), request.timeout_ms)


def sys_finish_job(context: Context, request: c.FinishJob) -> c.Done:
    context.kernel.jobs.finish(context.who.pid, request)
    return c.Done()
