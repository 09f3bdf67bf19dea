"""The commands that find memories and follow them: search, watch."""

from typing import Annotated, Final

import typer

from libmem.abi.calls import Search
from libmem.abi.index import HIT_END, HIT_START
from libmem.abi.limits import HITS_MAX
from libmem.abi.structs import CubeType, Event, Hit
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.completion import complete_cube
from memosd.tools.memctl.cubes import owner
from memosd.tools.memctl.units import local_time, printable

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Find and follow")

Under = Annotated[
    str,
    typer.Option("--under", metavar="PATH", help="Only below this.", autocompletion=complete_cube),
]


@command(app, "search")
def search(
    session: Session,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", show_default=False)],
    under: Under = "/",
    k: Annotated[int, typer.Option("-k", min=1, max=HITS_MAX, help="At most so many hits.")] = 10,
    types: Annotated[
        list[CubeType] | None, typer.Option("--type", help="Only such cubes; may be repeated.")
    ] = None,
) -> None:
    """Find cubes by words, the best first."""
    query = " ".join(words)
    hits = session.call(Search(query=query, under=under, k=k, types=tuple(types or ()))).hits
    for hit in hits:
        if session.out.is_json:
            session.out.record(hit, "")
        else:
            _show(session, hit)
    if not hits:
        session.note("nothing found")


def _show(session: Session, hit: Hit) -> None:
    signals = " ".join(f"{name}={value:.3g}" for name, value in hit.signals.items())
    session.out.styled(
        [
            (f"{hit.rank:>3}. ", "dim"),
            (printable(hit.name), "bold"),
            (f"  v{hit.version}  {signals or f'{hit.score:.3g}'}", "dim"),
        ]
    )
    if hit.snippet:
        session.out.styled([("     ", ""), *_marked(hit.snippet)])


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
