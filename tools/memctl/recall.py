"""The commands that find memories and follow them: search, watch.

Owns how hits are shown; what they are is the daemon's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from libmem.abi.calls import Search
from libmem.abi.index import HIT_END, HIT_START
from libmem.abi.limits import HITS_MAX
from libmem.abi.structs import Beside, CubeType, Event, Hit, SearchMode, Understood
from libmem.options import SearchOptions
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.completion import complete_cube
from memosd.tools.memctl.cubes import owner
from memosd.tools.memctl.units import local_time, parse_time, printable

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Find and follow")

_BAR_CHARS: Final = 20

Under = Annotated[
    str,
    typer.Option("--under", metavar="PATH", help="Only below this.", autocompletion=complete_cube),
]


@dataclass(frozen=True)
class Wanted:
    """What `search` can say about the memories it looks for; one option per field."""

    types: Annotated[
        list[CubeType] | None, typer.Option("--type", help="Only such cubes; may be repeated.")
    ] = None
    mode: Annotated[SearchMode, typer.Option("--mode", help="What decides the order.")] = (
        SearchMode.HYBRID
    )
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only of such a semantic type: fact, ..."),
    ] = None
    producers: Annotated[
        list[str] | None,
        typer.Option("--producer", metavar="WHO", help="Only what they said; may be repeated."),
    ] = None
    sessions: Annotated[
        list[str] | None,
        typer.Option("--session", metavar="SESSION", help="Only of these; may be repeated."),
    ] = None
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only what happened from then on.")
    ] = None
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Only what happened until then.")
    ] = None
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="TIME", help="What held then; 'ever': what ever did."),
    ] = None


@dataclass(frozen=True)
class Shown:
    """How much of it is shown."""

    k: Annotated[int, typer.Option("-k", min=1, max=HITS_MAX, help="At most so many hits.")] = 10
    beside: Annotated[
        int, typer.Option("--beside", metavar="N", min=0, help="So many passages around each hit.")
    ] = 0
    budget: Annotated[
        int, typer.Option("--budget", metavar="TOKENS", min=0, help="As many as fit into so much.")
    ] = 0
    is_why: Annotated[
        bool, typer.Option("--why", help="How the query was read, and what each score is made of.")
    ] = False


@command(app, "search")
def search(
    session: Session,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", show_default=False)],
    wanted: Wanted,
    shown: Shown,
    under: Under = "/",
) -> None:
    """Find cubes for a question or some words, the best first.

    A TIME is a day (2024-05-07) or a day and a time, in the local zone unless it has one.
    """
    options: SearchOptions = {
        "under": under,
        "k": shown.k,
        "beside": shown.beside,
        "budget_tokens": shown.budget,
        **_options(wanted),
    }
    reply = session.call(Search(" ".join(words), **options))
    if shown.is_why:
        session.out.record(
            {"understood": reply.understood, "notice": reply.notice}, _understood(reply.understood)
        )
    tops = _tops(reply.hits)
    for hit in reply.hits:
        if session.out.is_json:
            session.out.record(hit, "")
        else:
            _show(session, hit, tops if shown.is_why else {})
    if reply.notice:
        session.note(printable(reply.notice))
    if not reply.hits:
        session.note("nothing found")


def _options(wanted: Wanted) -> SearchOptions:
    """Errors: EINVAL (no time)."""
    options: SearchOptions = {
        "types": tuple(wanted.types or ()),
        "mode": wanted.mode,
        "semantic_types": tuple(wanted.kinds or ()),
        "producers": tuple(wanted.producers or ()),
        "sessions": tuple(wanted.sessions or ()),
    }
    if wanted.since is not None:
        options["event_from_ns"] = parse_time(wanted.since)
    if wanted.until is not None:
        options["event_to_ns"] = parse_time(wanted.until, is_end=True)
    if wanted.as_of is not None:
        options["as_of_ns"] = -1 if wanted.as_of == "ever" else parse_time(wanted.as_of)
    return options


def _understood(understood: Understood | None) -> str:
    """One line for people."""
    if understood is None:
        return "understood: the words"
    parts = [f"understood: {understood.text!r}"]
    if understood.producers:
        parts.append("by " + " or ".join(understood.producers))
    for first_ns, last_ns in understood.days:
        first, last = local_time(first_ns)[:10], local_time(last_ns)[:10]
        parts.append(f"on {first}" if first == last else f"from {first} to {last}")
    return printable(", ".join(parts))


def _tops(hits: Sequence[Hit]) -> dict[str, float]:
    """The largest value of each signal: what a full bar stands for."""
    tops: dict[str, float] = {}
    for hit in hits:
        for name, value in hit.signals.items():
            tops[name] = max(tops.get(name, 0.0), value)
    return tops


def _show(session: Session, hit: Hit, tops: dict[str, float]) -> None:
    session.out.styled(
        [
            (f"{hit.rank:>3}. ", "dim"),
            (printable(hit.name), "bold"),
            (f"  v{hit.version}  {hit.score:.3g}", "dim"),
        ]
    )
    for name, top in tops.items():
        if value := hit.signals.get(name, 0.0):
            bar = "#" * round(_BAR_CHARS * max(0.0, value) / top) if top > 0 else ""
            session.out.styled([(f"     {printable(name):<12} {value:>8.3g}  {bar}", "dim")])
    for passage in hit.beside:
        if passage.distance < 0:
            _show_beside(session, passage)
    if hit.snippet:
        session.out.styled([("     ", ""), *_marked(hit.snippet)])
    for passage in hit.beside:
        if passage.distance > 0:
            _show_beside(session, passage)


def _show_beside(session: Session, passage: Beside) -> None:
    who = f"{passage.producer}: " if passage.producer else ""
    text = " ".join(passage.text.split())
    session.out.styled([(printable(f"  {passage.distance:+3d} {who}{text}"), "dim")])


def _marked(snippet: str) -> list[tuple[str, str]]:
    """The snippet on one line, its matched words with a style."""
    parts = []
    for piece in " ".join(snippet.split()).split(HIT_START):
        matched, mark, rest = piece.partition(HIT_END)
        if mark:
            parts.append((printable(matched), "bold yellow"))
        parts.append((printable(rest if mark else piece), ""))
    return parts


@command(app, "watch")
def watch(
    session: Session,
    under: Annotated[
        str,
        typer.Argument(metavar="[PATH]", autocompletion=complete_cube, help="Watch below this."),
    ] = "/",
    since: Annotated[
        int | None,
        typer.Option(
            "--since", metavar="SEQ", min=0, help="Begin after this event.", show_default=False
        ),
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(
            "--idle", metavar="SECONDS", min=0.0, help="End after so long without an event."
        ),
    ] = None,
) -> None:
    """Print what happens to cubes as it happens, until Ctrl-C."""
    for event in session.client.watch(under, since_seq=since, timeout_s=idle):
        session.out.event(event, _line(event))


def _line(event: Event) -> str:
    name = f"{event.old_name} -> {event.name}" if event.old_name else event.name
    version = f"@v{event.version}" if event.version else ""
    return printable(
        f"{event.seq:>8}  {local_time(event.time_ns, 'milliseconds')}  {event.kind:<10}  "
        f"{owner(event.uid):<8}  {name}{version}"
    )
