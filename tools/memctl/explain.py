"""The commands that tell why: explain, log."""

import time
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from libmem.abi.calls import Explain, ExplainReply, Holder, Log
from libmem.abi.structs import Decision, Value
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import Name, owner
from memosd.tools.memctl.output import Column, plain
from memosd.tools.memctl.units import (
    counted,
    duration,
    local_time,
    measured,
    printable,
    seconds_text,
)

__all__ = ["app", "why"]

app: Final = typer.Typer(rich_help_panel="Tiers")


class Explained(Value, frozen=True):
    """A decision and the cube it was about."""

    name: str
    decision: Decision


def _numbers(decision: Decision) -> str:
    return " ".join(measured(name, value) for name, value in decision.numbers.items())


def why(decision: Decision) -> str:
    """Its reason and its numbers, for people."""
    return f"{decision.reason} {_numbers(decision)}".rstrip()


_DECISIONS: Final[tuple[Column[Explained], ...]] = (
    Column("TIME", lambda item: local_time(item.decision.time_ns, "milliseconds"), style="dim"),
    Column("ACTION", lambda item: item.decision.action, style="bold"),
    Column("REASON", lambda item: item.decision.reason),
    Column("NUMBERS", lambda item: _numbers(item.decision)),
)
_LOG: Final[tuple[Column[Explained], ...]] = (
    *_DECISIONS[:2],
    Column("CUBE", lambda item: item.name or "-"),
    Column("WHY", lambda item: why(item.decision)),
)


@command(app, "explain")
def explain(session: Session, name: Name) -> None:
    """Tell why a cube is where it is: who holds it, what the policy makes of it, its history.

    Decisions stand in the order they were made in, with the numbers they were made on.
    """
    reply = session.call(Explain(name=name))
    if session.out.is_json:
        session.out.record(reply, "")
        return
    stat = reply.stat
    session.out.styled([(f"{stat.name}@v{stat.version}", "bold"), (f"  {reply.residency}", "")])
    for title, text in _facts(reply, time.time_ns()):
        session.out.styled([(f"  {title:<13} ", "dim"), (printable(text), "")])
    items = (Explained(name=stat.name, decision=decision) for decision in reply.decisions)
    if not session.out.table(_DECISIONS, items):
        session.note("no decision about it is remembered")


def _facts(reply: ExplainReply, now_ns: int) -> Iterator[tuple[str, str]]:
    """What there is to say of it now, as (what, how it is)."""
    yield from (("held by", _holder(each, now_ns)) for each in reply.holders)
    if reply.is_waiting:
        yield "wanted", "a hint asked for it; it is loaded while nobody waits for the disk"
    if reply.since_ns:
        yield "in RAM", f"for {duration(now_ns - reply.since_ns)}"
    if place := _place(reply):
        yield "to go", place
    yield "to bring back", _cost(reply)
    behaviour = reply.stat.behaviour
    if behaviour.last_access_ns:
        counts = ((behaviour.reads, "read"), (behaviour.maps, "mapping"))
        uses = ", ".join(counted(number, noun) for number, noun in counts if number)
        yield "used", f"{uses}; last {duration(now_ns - behaviour.last_access_ns)} ago"
    last = next((each for each in reversed(reply.decisions) if each.action == "evict"), None)
    if last is not None:
        yield "evicted", f"{duration(now_ns - last.time_ns)} ago: {why(last)}"


def _holder(holder: Holder, now_ns: int) -> str:
    who = f"{owner(holder.uid)}, pid {holder.pid} ({holder.client})"
    return f"{holder.kind} of {who}, for {duration(now_ns - holder.since_ns)}"


def _place(reply: ExplainReply) -> str:
    """Where in the order of those that may be reclaimed it is, and on which numbers."""
    if not reply.position:
        return ""
    where = f"number {reply.position:,}" if reply.position > 0 else "far behind the first ones"
    numbers = " ".join(measured(name, value) for name, value in reply.numbers.items())
    return f"{where} of its group, by {reply.policy}: {numbers}".rstrip(": ")


def _cost(reply: ExplainReply) -> str:
    """By the cost model; else what it took the last time."""
    if reply.restore_s:
        return f"about {seconds_text(reply.restore_s)}"
    for decision in reversed(reply.decisions):
        took_ms = decision.numbers.get("load_ms")
        if decision.action == "fill" and isinstance(took_ms, int | float):
            return f"it took {seconds_text(took_ms / 1000)} the last time"
    return "not measured yet"


@command(app, "log")
def log(
    session: Session,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")
    ] = 100,
) -> None:
    """Show the kernel's latest decisions over all cubes, newest first."""
    decisions = session.call(Log(limit=limit)).decisions
    items = (Explained(name=name, decision=decision) for name, decision in decisions)
    if session.out.is_json:
        for item in items:
            session.out.record({"name": item.name, **plain(item.decision)}, "")
    elif not session.out.table(_LOG, items):
        session.note("no decisions yet")
