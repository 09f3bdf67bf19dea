"""The command about control groups: limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

import msgspec
import typer

from libmem.abi.calls import SetLimits, StatLimits
from libmem.abi.control import GroupStat, GroupTierStat, Limits, TierLimits
from libmem.abi.errors import Errno, MemError
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.completion import complete_cube
from memosd.tools.memctl.output import Column
from memosd.tools.memctl.units import human_bytes, parse_bytes

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Namespaces")

Path = Annotated[
    str,
    typer.Argument(
        metavar="[PATH]", autocompletion=complete_cube, help="/, a namespace or a folder below one."
    ),
]


@dataclass(frozen=True)
class Wanted:
    """What to change; nothing: show."""

    tier: Annotated[str, typer.Option(metavar="TIER", help="ram, device or disk.")] = "ram"
    min: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Never reclaimed for others.", show_default=False),
    ] = None
    low: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Reclaimed only as a last resort.", show_default=False),
    ] = None
    high: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Above: reclaimed first, slowed.", show_default=False),
    ] = None
    max: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What exceeds it is refused.", show_default=False),
    ] = None
    io_weight: Annotated[
        int | None,
        typer.Option(metavar="1..10000", help="Share of payload I/O.", show_default=False),
    ] = None
    none: Annotated[bool, typer.Option("--none", help="Take all limits away.")] = False

    def changes(self) -> dict[str, int]:
        """The limits of the tier that are given, in bytes; 0 takes one away."""
        given = {
            "min_bytes": self.min,
            "low_bytes": self.low,
            "high_bytes": self.high,
            "max_bytes": self.max,
        }
        return {key: parse_bytes(text) for key, text in given.items() if text is not None}


class Line(NamedTuple):
    """A group in one tier."""

    group: GroupStat
    tier: GroupTierStat
    limits: TierLimits
    is_first: bool


def _name(line: Line) -> str:
    """The last part of its path, further in the deeper it lies."""
    path = line.group.path
    if not line.is_first:
        return ""
    return "/" if path == "/" else "  " * path.count("/") + path.rsplit("/", 1)[1]


def _size(size_bytes: int) -> str:
    return human_bytes(size_bytes) if size_bytes else "-"


_COLUMNS: Final[tuple[Column[Line], ...]] = (
    Column("GROUP", _name, style="bold"),
    Column("TIER", lambda line: line.tier.tier),
    Column("USED", lambda line: human_bytes(line.tier.subtree_bytes), is_right=True),
    Column("MIN", lambda line: _size(line.limits.min_bytes), is_right=True),
    Column("LOW", lambda line: _size(line.limits.low_bytes), is_right=True),
    Column("HIGH", lambda line: _size(line.limits.high_bytes), is_right=True),
    Column("MAX", lambda line: _size(line.limits.max_bytes), is_right=True),
    Column("WEIGHT", lambda line: str(line.group.limits.io_weight), is_right=True),
    Column("RECLAIMS", lambda line: str(line.tier.reclaims), is_right=True),
    Column("THROTTLES", lambda line: str(line.tier.throttles), is_right=True),
    Column("REFUSALS", lambda line: str(line.tier.refusals), is_right=True),
)


@command(app, "limits")
def limits(session: Session, wanted: Wanted, path: Path = "/") -> None:
    """Show the limits and the use of control groups, or set those that are given."""
    if wanted.none:
        session.call(SetLimits(path, Limits()))
    elif wanted.changes() or wanted.io_weight is not None:
        session.call(SetLimits(path, _changed(_present(session, path), wanted)))
    groups = _groups(session, path)
    if session.out.is_json:
        for group in groups:
            session.out.record(group, "")
        return
    session.out.table(_COLUMNS, (line for group in groups for line in _lines(group)))


def _present(session: Session, path: str) -> Limits:
    try:
        return session.call(StatLimits(path)).groups[0].limits
    except MemError as error:
        if error.errno is not Errno.ENOENT:
            raise
        return Limits()  # a folder's first


def _changed(present: Limits, wanted: Wanted) -> Limits:
    """Errors: EINVAL (no such tier)."""
    replace = msgspec.structs.replace
    tiers = [field for field in Limits.__struct_fields__ if field != "io_weight"]
    if wanted.tier not in tiers:
        raise MemError(Errno.EINVAL, f"no tier {wanted.tier!r}; there are {', '.join(tiers)}")
    tier = replace(getattr(present, wanted.tier), **wanted.changes())
    weight = present.io_weight if wanted.io_weight is None else wanted.io_weight
    return replace(present, **{wanted.tier: tier}, io_weight=weight)


def _groups(session: Session, path: str) -> Iterator[GroupStat]:
    try:
        yield from session.client.limits(path)
    except MemError as error:
        # Below a namespace: the folder has none any more, or never had.
        if error.errno is not Errno.ENOENT or path.count("/") < 2:
            raise


def _lines(group: GroupStat) -> Iterator[Line]:
    """A line for each tier that it uses or is limited in; the first in any case."""
    is_first = True
    for tier in group.tiers:
        granted: TierLimits = getattr(group.limits, tier.tier)
        if is_first or tier.subtree_bytes or granted != TierLimits():
            yield Line(group, tier, granted, is_first)
            is_first = False
