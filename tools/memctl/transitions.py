"""The commands about memories that change type: transmute, transitions, cancel."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import typer

from libmem.abi.calls import CancelTransition, Transmute, WaitTransition
from libmem.abi.errors import MemError, known_errno
from libmem.abi.limits import WATCH_MAX_MS
from libmem.abi.transitions import Recipe, TransitionStat, TransitionState
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import Name
from memosd.tools.memctl.output import Column
from memosd.tools.memctl.progress import counter
from memosd.tools.memctl.units import duration, local_time, printable

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Cubes")


@dataclass
class How:
    """The options of `transmute`."""

    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe, in JSON."),
    ] = None
    is_detached: Annotated[
        bool, typer.Option("--detach", help="Do not wait; `memctl transitions` tells the end.")
    ] = False


@command(app, "transmute")
def transmute(
    session: Session,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="prefill, recite, train, distil.", show_default=False
        ),
    ],
    name: Name,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="What it is made of.", show_default=False),
    ],
    how: How,
) -> None:
    """Have the daemon's model make a cube of others.

    prefill: a KV cache of texts. recite: the text of a KV cache. train: a LoRA adapter that knows
    texts; distil: one that predicts what the model does with a KV cache. Adapters are refused where
    they do not pass their gate.
    """
    stat = session.call(Transmute(name, tuple(sources), _recipe(recipe, how.settings or [])))
    if not how.is_detached:
        stat = _followed(session, stat)
    if stat.state in (TransitionState.FAILED, TransitionState.CANCELED):
        if session.out.is_json:
            session.out.record(stat, "")
        raise MemError(known_errno(stat.errno), stat.message)
    session.out.record(stat, _told(stat))


def _recipe(name: str, settings: list[str]) -> Recipe:
    fields: dict[str, Any] = {"recipe": name}
    for each in settings:
        key, sign, value = each.partition("=")
        if not sign:
            raise typer.BadParameter(f"not KEY=VALUE: {each}")
        try:
            fields[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            fields[key] = value  # a word needs no quotes
    try:
        found: Recipe = msgspec.convert(fields, Recipe)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error)) from None
    return found


def _followed(session: Session, stat: TransitionStat) -> TransitionStat:
    """Wait until it is over."""
    while not stat.is_over and not stat.total:
        stat = _next(session, stat)
    with counter(stat.note or stat.recipe, stat.total, is_quiet=session.out.is_json) as advance:
        done = 0
        while not stat.is_over:
            advance(max(0, stat.done - done))
            done = max(done, stat.done)
            stat = _next(session, stat)
    return stat


def _next(session: Session, stat: TransitionStat) -> TransitionStat:
    return session.call(WaitTransition(stat.number, stat.changes, WATCH_MAX_MS))


def _told(stat: TransitionStat) -> str:
    if not stat.is_over:
        return f"transition {stat.number} of {stat.name}"
    measured = ", ".join(f"{name} {value:.4g}" for name, value in stat.quality.items())
    return f"{stat.name}@v{stat.version}" + (f": {printable(measured)}" if measured else "")


@command(app, "transitions")
def transitions(session: Session) -> None:
    """List what is being made, and what became of the latest."""
    session.out.table(_COLUMNS, session.client.transitions())


def _progress(stat: TransitionStat) -> str:
    if stat.is_over or not stat.total:
        return ""
    return f"{stat.done}/{stat.total} {printable(stat.note)}"


def _took(stat: TransitionStat) -> str:
    return duration(stat.ended_ns - stat.began_ns) if stat.ended_ns and stat.began_ns else ""


_COLUMNS: Final[tuple[Column[TransitionStat], ...]] = (
    Column("NUMBER", lambda stat: str(stat.number), is_right=True),
    Column("RECIPE", lambda stat: printable(stat.recipe)),
    Column("NAME", lambda stat: printable(stat.name), style="bold"),
    Column("STATE", lambda stat: stat.state.value),
    Column("PROGRESS", _progress),
    Column("SUBMITTED", lambda stat: local_time(stat.submitted_ns)),
    Column("TOOK", _took, is_right=True),
    Column("MESSAGE", lambda stat: printable(stat.message)),
)


@command(app, "cancel")
def cancel(
    session: Session,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="As `transitions` lists it.")],
) -> None:
    """Have a transition come to nothing. One that is over stays as it is."""
    session.call(CancelTransition(number))
