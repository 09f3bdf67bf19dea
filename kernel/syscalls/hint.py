"""Handlers of hints: what a caller means to do with a cube."""

from collections.abc import Coroutine
from typing import Any

from libmem.abi import calls as c
from libmem.abi.calls import AdviceOutcome, AdviseReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice
from memosd.kernel.access import WRITE, allows
from memosd.kernel.dispatch import Context
from memosd.kernel.pagetable import Cube
from memosd.kernel.prefetch import DEADLINE_MAX_NS
from memosd.kernel.residents import Resident
from memosd.kernel.wait import Completion

__all__ = ["sys_advise_cube"]


def sys_advise_cube(
    context: Context, request: c.AdviseCube
) -> AdviseReply | Coroutine[Any, None, AdviseReply]:
    if not 0 <= request.deadline_ns <= DEADLINE_MAX_NS:
        raise MemError(Errno.EINVAL, f"deadline_ns is within 0..{DEADLINE_MAX_NS}")
    kernel = context.kernel
    cube, _ = kernel.cubes.open(context.who, request.name)
    resident = kernel.parts.residents.find(cube.key)
    if request.advice is Advice.WILLNEED:
        if resident is not None:
            _warm(context, resident)
        done = kernel.prefetch.want(context.session, cube, request.deadline_ns)
        if done.is_done:
            return done.result()
        if request.wait:
            return _outcome(done)
        return AdviseReply(AdviceOutcome.QUEUED, "it is loaded while nobody waits for the disk")
    if resident is None:
        return AdviseReply(AdviceOutcome.DONE, "not in RAM")
    return _cool(context, cube, resident, request.advice)


async def _outcome(done: Completion[AdviseReply]) -> AdviseReply:
    return await done


def _warm(context: Context, resident: Resident) -> None:
    """Whatever was said of it before: it is needed."""
    resident.is_sequential = resident.is_cold = False
    context.kernel.parts.residents.policy.touch(resident.key)


def _cool(context: Context, cube: Cube, resident: Resident, advice: Advice) -> AdviseReply:
    kernel = context.kernel
    resident.is_sequential = advice is Advice.SEQUENTIAL
    if advice is Advice.SEQUENTIAL:
        return AdviseReply(AdviceOutcome.DONE, "among the first to go whenever it is let go")
    if advice is Advice.DONTNEED and _may_evict(context, cube, resident):
        freed_bytes = kernel.reclaim.evict(resident, "advised: dontneed")
        return AdviseReply(AdviceOutcome.DONE, "evicted", freed_bytes=freed_bytes)
    kernel.parts.residents.cool(resident)
    when = " once it is let go" if resident.is_held else ""
    return AdviseReply(AdviceOutcome.DONE, f"among the first to go{when}")


def _may_evict(context: Context, cube: Cube, resident: Resident) -> bool:
    """Now, by this caller: who may only read does not take it from the others' reach."""
    row = cube.row
    may_write = allows(context.who, (row.uid, row.gid), row.mode, WRITE)
    return may_write and not resident.is_held and not resident.is_dirty
