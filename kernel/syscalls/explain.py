"""The handler of `explain`: all that is known of why a cube is where it is."""

from itertools import islice
from typing import Final

from libmem.abi import calls as c
from memosd.kernel.dispatch import Context
from memosd.kernel.holdings import Holding
from memosd.kernel.pagetable import Cube
from memosd.kernel.residents import Resident

__all__ = ["sys_explain"]

_PLACES_MAX: Final = 1000
"""How far the order of those that may go is followed: some hundred microseconds."""


def sys_explain(context: Context, request: c.Explain) -> c.ExplainReply:
    kernel = context.kernel
    cube, _ = kernel.cubes.open(context.who, request.name)
    residents = kernel.parts.residents
    resident = residents.find(cube.key)
    return c.ExplainReply(
        stat=context.describe(cube),
        residency=_residency(context, cube, resident),
        decisions=kernel.parts.heat.row(cube.id).decisions,
        holders=_holders(context, cube),
        policy=residents.policy.name,
        numbers=residents.policy.explain(cube.key),
        position=_position(context, resident) if resident is not None else 0,
        restore_s=resident.entry().restore_s if resident is not None else 0.0,
        since_ns=resident.since_ns if resident is not None else 0,
        is_waiting=kernel.prefetch.is_wanted(cube.key),
    )


def _residency(context: Context, cube: Cube, resident: Resident | None) -> str:
    """One line for people."""
    form = context.kernel.parts.table.stored_form(cube.key)
    shown = f" as {form.form}, error {form.error:.4f}" if form is not None else ""
    if resident is None:
        place = "in the table" if cube.version.is_inline else "in a page file"
        return f"on disk, {place}{shown}; the next map or pin reads and verifies it"
    state = "dirty, to be written back" if resident.is_dirty else f"clean, also on disk{shown}"
    if resident.pins or resident.maps:
        holders = f"{_counted(resident.pins, 'pin')} and {_counted(resident.maps, 'mapping')}"
        return f"in RAM ({state}); held by {holders}"
    return f"in RAM ({state}); evictable, priority {resident.weight.priority}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _holders(context: Context, cube: Cube) -> tuple[c.Holder, ...]:
    """As `list_sessions`: of one's own user, or all of them."""
    who = context.who
    return tuple(
        _holder(holding)
        for holding in context.kernel.holdings.of(cube.key)
        if who.is_admin or holding.session.identity.uid == who.uid
    )


def _holder(holding: Holding) -> c.Holder:
    session = holding.session
    return c.Holder(
        kind=holding.kind,
        session=session.number,
        uid=session.identity.uid,
        pid=session.identity.pid,
        client=session.program,
        since_ns=holding.since_ns,
    )


def _position(context: Context, resident: Resident) -> int:
    """Its place among the candidates of its group, as `ExplainReply.position`."""
    if resident.is_held or resident.is_orphan:
        return 0
    candidates = context.kernel.parts.residents.policy.candidates(resident.entry().group)
    for place, candidate in enumerate(islice(candidates, _PLACES_MAX), 1):
        if candidate.key == resident.key:
            return place
    return -1
