"""Handlers about how memory is shared out: the policy, pins, what is hot, recorded accesses."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from memosd.kernel.describe import places
from memosd.kernel.dispatch import Context
from memosd.kernel.holdings import Holding

__all__ = ["sys_hottest", "sys_list_pins", "sys_set_policy", "sys_set_trace"]

_HOT_MAX: Final = 100
_LOOKED_AT_MAX: Final = 300
"""Of the hottest cubes, how many are looked at for some that the caller may read."""


def sys_set_policy(context: Context, request: c.SetPolicy) -> c.PolicyStat:
    return context.kernel.incumbent.replace(request.name)


async def sys_set_trace(context: Context, request: c.SetTrace) -> c.TraceStat:
    trace = context.kernel.trace
    if request.action is c.TraceAction.START:
        return await trace.start(request.name, request.max_bytes)
    if request.action is c.TraceAction.STOP:
        return await trace.stop()
    return trace.stat()


def sys_hottest(context: Context, request: c.Hottest) -> c.HottestReply:
    if not 1 <= request.limit <= _HOT_MAX:
        raise MemError(Errno.EINVAL, f"limit is within 1..{_HOT_MAX}")
    return c.HottestReply(cubes=tuple(islice(_hot_cubes(context), request.limit)))


def _hot_cubes(context: Context) -> Iterator[c.HotCube]:
    kernel = context.kernel
    for cube_id, uses_per_s in kernel.parts.heat.hotness.hottest(_LOOKED_AT_MAX):
        row = kernel.cubes.readable_row(context.who, cube_id)
        if row is None:
            continue
        behaviour = kernel.parts.heat.behaviour(cube_id)
        yield c.HotCube(
            name=row.name,
            id=cube_id,
            uses_per_s=uses_per_s,
            size_bytes=row.current.size_bytes,
            tiers=places(kernel.parts, row.current.payload_id),
            reads=behaviour.reads,
            maps=behaviour.maps,
            faults=behaviour.faults,
        )


def sys_list_pins(context: Context, request: c.ListPins) -> c.ListPinsReply:
    if not 1 <= request.limit <= 1000:
        raise MemError(Errno.EINVAL, "limit is within 1..1000")
    who = context.who
    shown = (
        pin
        for pin in context.kernel.holdings.pins(request.after)
        if who.is_admin or pin.session.identity.uid == who.uid
    )
    page = list(islice(shown, request.limit + 1))
    rest = page[request.limit :]
    page = page[: request.limit]
    return c.ListPinsReply(
        pins=tuple(_pin_stat(context, pin) for pin in page),
        next_after=page[-1].handle if rest else 0,
    )


def _pin_stat(context: Context, pin: Holding) -> c.PinStat:
    row = context.kernel.cubes.readable_row(context.who, pin.cube_id)
    session = pin.session
    return c.PinStat(
        handle=pin.handle,
        session=session.number,
        uid=session.identity.uid,
        pid=session.identity.pid,
        client=session.program,
        name=row.name if row is not None else pin.cube_id.hex(),
        pinned_bytes=pin.held_bytes,
        since_ns=pin.since_ns,
    )
