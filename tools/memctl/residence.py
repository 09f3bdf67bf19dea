"""The residence commands: where a cube is, why, and how to move it.

evict, migrate, pin, explain, log. Moving is the kernel's doing; memctl asks and waits.
"""

import time
from typing import Annotated, Final

import typer

from libmem.abi.calls import Evict, Explain, Log, MigrateCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Decision, TierName, Value
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import Name
from memosd.tools.memctl.output import Column, plain
from memosd.tools.memctl.units import human_bytes, local_time

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Tiers")

_HEARTBEAT_S: Final = 1.0
"""How long a pin may be gone with its daemon before the command that holds it says so."""


@command(app, "evict")
def evict(session: Session, name: Name) -> None:
    """Drop a cube's payload from RAM, after writing it back where needed."""
    freed_bytes = session.call(Evict(name=name), is_slow=True).freed_bytes
    session.out.record(
        {"name": name, "freed_bytes": freed_bytes}, f"{name}: {human_bytes(freed_bytes)} freed"
    )


@command(app, "migrate")
def migrate(
    session: Session,
    name: Name,
    tier: Annotated[TierName, typer.Argument(help="Where the payload shall be.")],
) -> None:
    """Move a cube's payload to a tier."""
    tiers = session.call(MigrateCube(name=name, tier=tier), is_slow=True).tiers
    session.out.record({"name": name, "tiers": tiers}, f"{name}: now in {', '.join(tiers)}")


@command(app, "pin")
def pin(
    session: Session,
    name: Name,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=0.0, help="Let go after so long.", show_default=False),
    ] = None,
) -> None:
    """Bring a cube into RAM and keep it there until Ctrl-C, or for --seconds.

    A pin belongs to its session: it goes with this command, however it ends.
    """
    end = None if seconds is None else time.monotonic() + seconds
    with session.bulk_client.pin(name) as held:
        session.out.event({"name": name, "is_pinned": True}, f"{name}: pinned")
        while (left := _left(end)) > 0:
            time.sleep(left)
            session.bulk_client.info()  # libmem notices a restart at a call, and pins again
            if not held.is_held:
                raise MemError(Errno.ESTALE, "the daemon was restarted: the pin is gone", cube=name)
    session.out.record({"name": name, "is_pinned": False}, f"{name}: let go")


def _left(end: float | None) -> float:
    """Seconds until the next look at the daemon; 0 or less at the end."""
    return _HEARTBEAT_S if end is None else min(_HEARTBEAT_S, end - time.monotonic())


class Explained(Value, frozen=True):
    """A decision and the cube it was about."""

    name: str
    decision: Decision


def _numbers(item: Explained) -> str:
    return " ".join(f"{key}={value}" for key, value in item.decision.numbers.items())


_DECISIONS: Final[tuple[Column[Explained], ...]] = (
    Column("TIME", lambda item: local_time(item.decision.time_ns, "milliseconds"), style="dim"),
    Column("ACTION", lambda item: item.decision.action, style="bold"),
    Column("REASON", lambda item: item.decision.reason),
    Column("NUMBERS", _numbers),
)
_LOG: Final[tuple[Column[Explained], ...]] = (
    *_DECISIONS[:2],
    Column("CUBE", lambda item: item.name),
    Column("WHY", lambda item: f"{item.decision.reason} {_numbers(item)}".rstrip()),
)


@command(app, "explain")
def explain(session: Session, name: Name) -> None:
    """Tell why a cube is where it is: the kernel's latest decisions with their numbers."""
    reply = session.call(Explain(name=name))
    if session.out.is_json:
        session.out.record(reply, "")
        return
    stat = reply.stat
    session.out.styled([(f"{stat.name}@v{stat.version}", "bold"), (f"  {reply.residency}", "")])
    items = (Explained(name=stat.name, decision=decision) for decision in reply.decisions)
    if not session.out.table(_DECISIONS, items):
        session.note("no decision about it is remembered")


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
