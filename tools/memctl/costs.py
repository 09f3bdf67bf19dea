"""The command about the cost model: what moving and computing take here."""

from typing import Final

import typer

from libmem.abi.calls import Info
from libmem.abi.costs import CostStat
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import owner
from memosd.tools.memctl.output import Column
from memosd.tools.memctl.units import human_bytes, local_time

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Daemon")

_DIGEST_CHARS: Final = 12


def _rate(stat: CostStat) -> str:
    if stat.tokens_per_s:
        return f"{stat.tokens_per_s:,.0f} tokens/s"
    return f"{human_bytes(int(stat.bytes_per_s))}/s" if stat.bytes_per_s else "-"


_COSTS: Final[tuple[Column[CostStat], ...]] = (
    Column("COST", lambda each: each.name),
    Column("LATENCY", lambda each: f"{each.latency_s * 1e3:.3g} ms", is_right=True),
    Column("RATE", _rate, is_right=True),
    Column("SAMPLES", lambda each: str(each.samples), is_right=True),
    Column("IS", lambda each: "measured" if each.is_measured else "a guess"),
    Column("LATEST", lambda each: local_time(each.measured_ns)),
    Column("USER", lambda each: owner(each.uid) if each.uid >= 0 else "-"),
    Column("MODEL", lambda each: each.model[:_DIGEST_CHARS] or "-"),
)


@command(app, "costs")
def costs(session: Session) -> None:
    """Show what loading, storing and computing were measured to take.

    By these the daemon decides whether a stored prefix is loaded or computed again. Prefills are
    those that your own programs reported; root sees everybody's.
    """
    session.out.table(_COSTS, iter(session.call(Info()).costs))
