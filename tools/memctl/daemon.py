"""The commands about the daemon itself: status, sessions, sync, fsck, shutdown."""

from collections.abc import Iterator
from typing import Annotated, Final

import typer

from libmem.abi.calls import Info, InfoReply, Sync
from libmem.abi.errors import Errno
from libmem.abi.state import MachineStat, RecallStat, SessionStat, StallStat, TierStat, WorkerStat
from libmem.abi.structs import Finding
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import owner
from memosd.tools.memctl.output import Column
from memosd.tools.memctl.progress import counter
from memosd.tools.memctl.units import counted, duration, human_bytes, local_time, printable

__all__ = ["Line", "app", "tier_lines"]

app: Final = typer.Typer(rich_help_panel="Daemon")

_BAR_CELLS: Final = 24
_STALLED_PERCENT: Final = 10.0
"""Of the last 10 s: above that somebody will have noticed."""

Line = list[tuple[str, str]]


@command(app, "status")
def status(session: Session) -> None:
    """Show the daemon's state: tiers, sessions, index, workers, notices."""
    info = session.call(Info())
    if session.out.is_json:
        session.out.record(info, "")
    elif session.out.is_tty:
        _panel(session, info)
    else:
        for line in _lines(info, ("#", ".")):
            session.out.styled(line)


def _panel(session: Session, info: InfoReply) -> None:
    from rich.panel import Panel
    from rich.text import Text

    body = Text("\n").join(Text.assemble(*line) for line in _lines(info, ("█", "░")))
    session.out.render(Panel(body, title=info.server, expand=False, padding=(1, 2)))


def _lines(info: InfoReply, glyphs: tuple[str, str]) -> list[Line]:
    lag = info.log_seq - info.indexed_seq
    work = ((info.calls, "call"), (info.faults, "fault"), (info.evictions, "eviction"))
    facts = [
        ("daemon", f"pid {info.pid}, up {duration(info.uptime_ns)}, epoch {info.epoch}"),
        ("data", f"{info.data_dir}, table {human_bytes(info.table_bytes)}"),
        ("holds", f"{counted(info.cubes, 'cube')} in {counted(info.namespaces, 'namespace')}"),
        ("sessions", str(info.sessions)),
        ("work", ", ".join(counted(number, noun) for number, noun in work)),
        ("memory", f"{_memory(info)}, reclaim by {info.policy}"),
        (
            "index",
            f"{info.indexer}, " + (f"{counted(lag, 'event')} behind" if lag else "up to date"),
        ),
    ]
    facts += [("machine", text) for text in _machine(info.machine)]
    facts += [("recall", text) for text in _recall(info.recall)]
    facts += [("worker", _worker(each)) for each in info.workers]
    lines: list[Line] = [[(f"{title:<9} ", "dim"), (printable(text), "")] for title, text in facts]
    lines.append([("", "")])
    for tier in info.tiers:
        lines += tier_lines(tier, glyphs)
    lines += [[("notice    ", "bold red"), (printable(text), "red")] for text in info.notices]
    return lines


def _memory(info: InfoReply) -> str:
    """What the processes take beside the tiers; the index lies within the daemon."""
    text = f"{human_bytes(info.rss_bytes)} resident"
    if info.workers:
        workers_bytes = sum(each.rss_bytes for each in info.workers)
        text += f" and {human_bytes(workers_bytes)} in {counted(len(info.workers), 'worker')}"
    return text


def _machine(stat: MachineStat) -> Iterator[str]:
    """What is left of the machine's memory; nothing where nobody watches it."""
    if stat.total_bytes:
        watch = "told of pressure" if stat.is_triggered else "looked at each second"
        yield (
            f"{human_bytes(stat.available_bytes)} available ({stat.bound}), "
            f"{human_bytes(stat.reserve_bytes)} in reserve, {watch}"
        )
    if stat.some_avg10 or stat.full_avg10:
        yield f"stalls: some avg10={stat.some_avg10:.2f} full avg10={stat.full_avg10:.2f}"


def _stalls(kind: str, stat: StallStat) -> Line:
    """As a line of /proc/pressure."""
    averages = f"avg10={stat.avg10:.2f} avg60={stat.avg60:.2f} avg300={stat.avg300:.2f}"
    style = "yellow" if stat.avg10 >= _STALLED_PERCENT else "dim"
    return [(f"{' ' * 10}{kind} {averages} total={stat.total_us}", style)]


def _recall(stat: RecallStat) -> Iterator[str]:
    """How far the vectors are behind the words, and whether there are to be any."""
    if stat.embedder:
        lag = f"{stat.waiting:,} without a vector yet" if stat.waiting else "all with vectors"
        yield f"{counted(stat.passages, 'passage')}, {lag}, by {stat.embedder[:12]}"
    if stat.problem:
        yield f"by words alone: {stat.problem}"


def _worker(stat: WorkerStat) -> str:
    who = f"pid {stat.pid}, " if stat.pid else ""
    text = f"{who}{stat.state}, {counted(stat.jobs, 'job')}, {human_bytes(stat.rss_bytes)}"
    if stat.restarts:
        text += f", restarted {counted(stat.restarts, 'time')}"
    return text + (f"; the last one: {stat.problem}" if stat.problem else "")


def tier_lines(tier: TierStat, glyphs: tuple[str, str]) -> list[Line]:
    """A tier's account, as `status` and `top` show it."""
    share = tier.used_bytes / tier.budget_bytes if tier.budget_bytes else 0.0
    # What is used at all shows at least one cell: empty must mean empty.
    full = min(_BAR_CELLS, max(round(share * _BAR_CELLS), 1 if tier.used_bytes else 0))
    style = "green" if share < 0.8 else "yellow" if share < 0.95 else "red"
    detail = [counted(tier.cubes, "cube")]
    if tier.pinned_bytes:
        detail.append(f"{human_bytes(tier.pinned_bytes)} pinned")
    if tier.dirty_bytes:
        detail.append(f"{human_bytes(tier.dirty_bytes)} not yet on disk")
    bar = [(glyphs[0] * full, style), (glyphs[1] * (_BAR_CELLS - full), "dim")]
    amounts = f"{human_bytes(tier.used_bytes)} of {human_bytes(tier.budget_bytes)}"
    if tier.budget_bytes < tier.configured_bytes:
        amounts += f", {human_bytes(tier.configured_bytes)} when the machine has room"
    return [
        [(f"{tier.name:<9} ", "bold"), *bar, (f" {share:4.0%}  {amounts}", "")],
        [(" " * 10 + ", ".join(detail), "dim")],
        _stalls("some", tier.some),
        _stalls("full", tier.full),
    ]


_SESSIONS: Final[tuple[Column[SessionStat], ...]] = (
    Column("SESSION", lambda each: str(each.number), is_right=True),
    Column("USER", lambda each: owner(each.uid)),
    Column("PID", lambda each: str(each.pid), is_right=True),
    Column("PINS", lambda each: str(each.pins), is_right=True),
    Column("PINNED", lambda each: human_bytes(each.pinned_bytes), is_right=True),
    Column("MAPS", lambda each: str(each.maps), is_right=True),
    Column("FILLS", lambda each: str(each.fills), is_right=True),
    Column("CALLS", lambda each: str(each.calls), is_right=True),
    Column("SINCE", lambda each: local_time(each.since_ns)),
    Column("CLIENT", lambda each: each.client if each.is_bound else f"{each.client} (not bound)"),
)


@command(app, "sessions")
def sessions(session: Session) -> None:
    """List the programs that are connected, and what each holds: your own, or all for root.

    PINNED is the memory that its pins keep in RAM, CALLS what it is waiting for just now.
    """
    session.out.table(_SESSIONS, session.client.sessions())


@command(app, "sync")
def sync(session: Session) -> None:
    """Return when everything committed so far is on disk, cache cubes included."""
    session.call(Sync(), is_slow=True)
    session.out.record({"is_synced": True}, "on disk")


@command(app, "fsck")
def fsck(
    session: Session,
    is_repair: Annotated[
        bool, typer.Option("--repair", help="Quarantine what is broken: it is never served.")
    ] = False,
) -> None:
    """Verify every row and payload against its digests.

    Exits with 202 (ECORRUPT) when something is broken, whether it could be quarantined or not.
    A cube whose own rows are damaged stays as it is; `rm` removes what is left of it.
    """
    checked = broken = 0
    total = session.call(Info()).cubes
    with counter("verifying", total, is_quiet=session.out.is_json) as advance:
        for reply in session.bulk_client.fsck(repair=is_repair):
            checked += reply.checked
            broken += len(reply.findings)
            advance(reply.checked)
            for finding in reply.findings:
                session.out.event(finding, _finding_line(finding))
    session.out.record(
        {"checked": checked, "broken": broken}, f"{checked:,} checked, {broken:,} broken"
    )
    if broken:
        raise typer.Exit(Errno.ECORRUPT)


def _finding_line(finding: Finding) -> str:
    done = f" ({finding.action})" if finding.action else ""
    # Of a cube whose own row is damaged there is no version to tell, and maybe no name.
    version = f"@v{finding.version}" if finding.version else ""
    name = finding.name or finding.id.hex()
    return printable(f"{name}{version}: {finding.problem}{done}")


@command(app, "shutdown")
def shutdown(session: Session) -> None:
    """Let the daemon finish what is in flight, write back and exit."""
    session.client.shutdown()
    session.out.record({"is_shutting_down": True}, "memosd is shutting down")
