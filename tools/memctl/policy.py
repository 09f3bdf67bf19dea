"""The commands about the reclaim policy: policy, trace."""

from collections.abc import Callable
from typing import Annotated, Final

import typer

from libmem.abi.calls import Info, PolicyStat, SetPolicy, SetTrace, TraceAction, TraceStat
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.output import Column
from memosd.tools.memctl.units import counted, human_bytes, local_time, parse_bytes

__all__ = ["app", "hit_share"]

app: Final = typer.Typer(rich_help_panel="Tiers")


def hit_share(hits: int, faults: int) -> str:
    """`98.5 %`; `-` while nothing was used."""
    return f"{100 * hits / (hits + faults):.1f} %" if hits + faults else "-"


@command(app, "policy")
def policy(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="[POLICY]", help="Put this one in charge.", show_default=False)
    ] = "",
) -> None:
    """Show which policy chooses what leaves RAM, and how it does; with a name, put it in charge.

    A change needs the administrator and lasts until the daemon stops: at start the configuration
    decides (ram.policy). What is in RAM stays there, in the order it had.
    """
    stat = session.call(SetPolicy(name)) if name else session.call(Info()).reclaim
    if session.out.is_json:
        session.out.record(stat, "")
        return
    session.out.table(_policy_columns(stat), stat.known)


def _policy_columns(stat: PolicyStat) -> tuple[Column[str], ...]:
    def of_current(cell: Callable[[], str]) -> Callable[[str], str]:
        return lambda name: cell() if name == stat.name else ""

    return (
        Column("POLICY", lambda name: name, style="bold"),
        Column("STATE", lambda name: _state(stat, name)),
        Column("HITS", of_current(lambda: f"{stat.hits:,}"), is_right=True),
        Column("FAULTS", of_current(lambda: f"{stat.faults:,}"), is_right=True),
        Column("SHARE", of_current(lambda: hit_share(stat.hits, stat.faults)), is_right=True),
        Column("EVICTIONS", of_current(lambda: f"{stat.evictions:,}"), is_right=True),
        Column("SINCE", of_current(lambda: local_time(stat.since_ns))),
    )


def _state(stat: PolicyStat, name: str) -> str:
    states = ["in charge"] * (name == stat.name) + ["configured"] * (name == stat.configured)
    return ", ".join(states)


@command(app, "trace")
def trace(
    session: Session,
    action: Annotated[TraceAction, typer.Argument(help="What to do.")],
    name: Annotated[
        str, typer.Option("--name", help="Of the file; by default the time.", show_default=False)
    ] = "",
    size: Annotated[
        str, typer.Option("--max", metavar="SIZE", help="End when the file is so large.")
    ] = "1GiB",
) -> None:
    """Record every access of RAM to a file, for `memos-bench policy --trace FILE` to replay.

    For the administrator. The file lies in the folder `traces` of the daemon's data directory and
    holds ids of payloads, sizes and times, no names. It ends by itself when it is as large as it
    may be, when the disk is full and when the daemon stops.
    """
    stat = session.call(SetTrace(action, name, parse_bytes(size)))
    session.out.record(stat, _trace_line(stat))


def _trace_line(stat: TraceStat) -> str:
    if not stat.path:
        return "nothing was recorded yet"
    state = "recording" if stat.is_recording else "recorded"
    text = f"{state}: {counted(stat.accesses, 'line')}, {human_bytes(stat.size_bytes)}, {stat.path}"
    if stat.dropped:
        text += f"; {stat.dropped:,} more came too fast for the disk"
    return text + (f"; ended: {stat.problem}" if stat.problem else "")
