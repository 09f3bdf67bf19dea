"""The residence commands: where a cube is, and how to move it.

evict, migrate, advise, pin, pins. Moving is the kernel's doing; memctl asks and waits.
"""

import time
from typing import Annotated, Final

import typer

from libmem.abi.calls import AdviceOutcome, AdviseCube, Evict, MigrateCube, PinStat
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice, TierName
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import Name, owner
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


@command(app, "advise")
def advise(
    session: Session,
    name: Name,
    advice: Annotated[Advice, typer.Argument(help="How it will be used.")],
    seconds: Annotated[
        float,
        typer.Option(
            "--deadline",
            min=0.0,
            max=86_400.0,
            metavar="SECONDS",
            help="Of no use after so long; 0: whenever.",
        ),
    ] = 0.0,
    is_waiting: Annotated[
        bool, typer.Option("--wait", help="Say what became of it, rather than that it waits.")
    ] = False,
) -> None:
    """Tell how a cube will be used; for willneed it is loaded while nobody waits for the disk.

    What is not worth the room is refused, which is an answer and no failure. Exits with the errno
    when the cube could not be read.
    """
    deadline_ns = max(1, int(seconds * 1e9)) if seconds else 0
    request = AdviseCube(name, advice, deadline_ns, is_waiting)
    reply = session.call(request, is_slow=is_waiting)
    session.out.record({"name": name, **plain(reply)}, f"{name}: {reply.outcome}: {reply.reason}")
    if reply.outcome is AdviceOutcome.FAILED:
        raise typer.Exit(reply.errno)


_PINS: Final[tuple[Column[PinStat], ...]] = (
    Column("SESSION", lambda each: str(each.session), is_right=True),
    Column("USER", lambda each: owner(each.uid)),
    Column("PID", lambda each: str(each.pid), is_right=True),
    Column("PINNED", lambda each: human_bytes(each.pinned_bytes), is_right=True),
    Column("SINCE", lambda each: local_time(each.since_ns)),
    Column("CLIENT", lambda each: each.client),
    Column("CUBE", lambda each: each.name),
)


@command(app, "pins")
def pins(session: Session) -> None:
    """List what is pinned, by whom and since when: your own pins, or all for root.

    A cube that you may not read, or that was removed, is shown by its id.
    """
    if not session.out.table(_PINS, session.client.pins()) and not session.out.is_json:
        session.note("nothing is pinned")


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
