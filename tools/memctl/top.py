"""`memctl top`: the tiers, the rates, the hottest cubes and the latest decisions, live.

One frame is three calls. What a frame shows is made of two samples by pure functions; where it goes
(a terminal's screen, a pipe, JSON) is decided once, in `top`. The daemon may go and come back
meanwhile.
"""

import os
import time
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

import typer

from libmem.abi.calls import HotCube, Hottest, Info, InfoReply, Log
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Decision
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.daemon import Line, tier_lines
from memosd.tools.memctl.explain import why
from memosd.tools.memctl.output import plain
from memosd.tools.memctl.policy import hit_share
from memosd.tools.memctl.screen import open_screen
from memosd.tools.memctl.units import counted, duration, human_bytes, printable

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Daemon")

_AWAY: Final = frozenset(
    {Errno.ECONNREFUSED, Errno.ECONNRESET, Errno.ETIMEDOUT, Errno.ESTALE, Errno.ESHUTDOWN}
)
_PATIENCE_S: Final = 3.0
"""A screen that stands still for longer has to say why."""
_CUBES: Final = 10
_DECISIONS: Final = 50
_SHOWN_DECISIONS: Final = 10
"""Where there is no screen whose height says how many."""


class Sample(NamedTuple):
    """What the daemon said at one time."""

    at_s: float
    time_ns: int
    info: InfoReply
    hottest: tuple[HotCube, ...]
    decisions: tuple[tuple[str, Decision], ...]


class Rates(NamedTuple):
    """What happened in a second, on the average of the time between two samples."""

    calls_per_s: float
    faults_per_s: float
    evictions_per_s: float
    hits: int
    faults: int
    is_since_start: bool


@command(app, "top")
def top(
    session: Session,
    delay_s: Annotated[
        float,
        typer.Option("--delay", "-d", min=0.1, max=3600.0, metavar="SECONDS", help="Between two."),
    ] = 1.0,
    count: Annotated[
        int, typer.Option("--number", "-n", min=0, metavar="N", help="End after so many; 0: never.")
    ] = 0,
    is_once: Annotated[bool, typer.Option("--once", help="One, as plain lines.")] = False,
) -> None:
    """Show live how memory is used: tiers, rates, hottest cubes, latest decisions.

    Ends with q or Ctrl-C. Without a terminal, and with --once, one look is printed as plain lines;
    with --json one object for each look. The first look's rates are averages since the start of the
    daemon. Cubes and decisions are those that you may read.
    """
    is_live = session.out.is_tty and not is_once and os.environ.get("TERM", "dumb") != "dumb"
    if is_live:
        _run_screen(session, delay_s, count)
        return
    looks = 1 if is_once else count or (0 if session.out.is_json else 1)
    try:
        _print_looks(session, delay_s, looks)
    except KeyboardInterrupt:
        return


def _sample(session: Session) -> Sample:
    return Sample(
        time.monotonic(),
        time.time_ns(),
        session.client.call(Info(), timeout_s=_PATIENCE_S),
        session.client.call(Hottest(_CUBES), timeout_s=_PATIENCE_S).cubes,
        session.client.call(Log(_DECISIONS), timeout_s=_PATIENCE_S).decisions,
    )


def _print_looks(session: Session, delay_s: float, looks: int) -> None:
    """`looks`: 0 for ever."""
    before: Sample | None = None
    done = 0
    while True:
        try:
            now = _sample(session)
        except MemError as error:
            if before is None or error.errno not in _AWAY:
                raise
            session.note(f"memctl: {error}")
        else:
            session.out.event(_document(now, before), _text(now, before))
            before = now
        done += 1
        if done == looks:
            return
        time.sleep(delay_s)


def _run_screen(session: Session, delay_s: float, count: int) -> None:
    before, now = None, _sample(session)  # without a daemon it fails here, as any command does
    problem = ""
    shown = 0
    try:
        with open_screen() as screen:
            while True:
                lines = _head(now, before, problem) + _body(now, screen.size[1])
                screen.show(lines)
                shown += 1
                if shown == count or not screen.wait(delay_s):
                    return
                try:
                    before, now, problem = now, _sample(session), ""
                except MemError as error:
                    if error.errno not in _AWAY:
                        raise
                    problem = f"the daemon does not answer: {error}"
    except KeyboardInterrupt:
        return


# -- what is shown -------------------------------------------------------------------------------


def _rates(now: Sample, before: Sample | None) -> Rates:
    info, policy = now.info, now.info.reclaim
    if before is None or before.info.epoch != info.epoch or now.at_s <= before.at_s:
        seconds = max(info.uptime_ns / 1e9, 1e-9)
        return Rates(
            info.calls / seconds,
            info.faults / seconds,
            info.evictions / seconds,
            policy.hits,
            policy.faults,
            is_since_start=True,
        )
    seconds = now.at_s - before.at_s
    old, old_policy = before.info, before.info.reclaim
    if old_policy.since_ns != policy.since_ns:
        old_policy = type(policy)()  # another is in charge, counted from nothing
    return Rates(
        (info.calls - old.calls) / seconds,
        (info.faults - old.faults) / seconds,
        (info.evictions - old.evictions) / seconds,
        policy.hits - old_policy.hits,
        policy.faults - old_policy.faults,
        is_since_start=False,
    )


def _head(now: Sample, before: Sample | None, problem: str = "") -> list[Line]:
    info, rates = now.info, _rates(now, before)
    clock = datetime.fromtimestamp(now.time_ns // 10**9).astimezone().strftime("%H:%M:%S")
    facts = [
        f"pid {info.pid}",
        f"up {duration(info.uptime_ns)}",
        counted(info.sessions, "session"),
        counted(info.cubes, "cube"),
        f"{human_bytes(info.rss_bytes)} resident",
    ]
    speeds = [
        f"{rates.calls_per_s:,.1f} calls/s",
        f"{rates.faults_per_s:,.1f} faults/s",
        f"{rates.evictions_per_s:,.1f} evictions/s",
        f"hits {hit_share(rates.hits, rates.faults)} by {info.policy}",
    ]
    since = "  (since the start)" if rates.is_since_start else ""
    lines: list[Line] = [
        [(info.server, "bold"), (f"  {clock}  {', '.join(facts)}", "")],
        [(", ".join(speeds), ""), (since, "dim")],
    ]
    if problem:
        lines.append([(problem, "bold red")])
    lines += [[(f"notice: {text}", "red")] for text in info.notices]
    lines.append([])
    for tier in info.tiers:
        lines += tier_lines(tier, ("#", "."))
    return lines


def _body(now: Sample, height: int | None = None) -> list[Line]:
    """The hottest cubes and, below, as many decisions as are left room for."""
    lines: list[Line] = [[], [(f"{'USES/S':>8}  {'SIZE':>9}  {'TIERS':<8}  HOTTEST", "bold")]]
    lines += [[(_hot_line(cube), "")] for cube in now.hottest]
    if not now.hottest:
        lines.append([("nothing was used yet", "dim")])
    lines += [[], [(f"{'TIME':<12}  {'ACTION':<16}  LATEST DECISIONS", "bold")]]
    shown = now.decisions if height is not None else now.decisions[:_SHOWN_DECISIONS]
    lines += [[(_decision_line(name, decision), "")] for name, decision in shown]
    if not shown:
        lines.append([("none yet", "dim")])
    return lines


def _hot_line(cube: HotCube) -> str:
    size, tiers = human_bytes(cube.size_bytes), ",".join(cube.tiers)
    return f"{cube.uses_per_s:>8.2f}  {size:>9}  {tiers:<8}  {cube.name}"


def _decision_line(name: str, decision: Decision) -> str:
    moment = datetime.fromtimestamp(decision.time_ns / 1e9).astimezone()
    clock = moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
    return f"{clock:<12}  {decision.action:<16}  {name or '-'}  {why(decision)}"


def _text(now: Sample, before: Sample | None) -> str:
    lines = [*_head(now, before), *_body(now)]
    return "\n".join(printable("".join(part for part, _ in line)).rstrip() for line in lines)


def _document(now: Sample, before: Sample | None) -> dict[str, Any]:
    return {
        "time_ns": now.time_ns,
        "rates": _rates(now, before)._asdict(),
        "info": plain(now.info),
        "hottest": plain(now.hottest),
        "decisions": [{"name": name, **plain(each)} for name, each in now.decisions],
    }
