"""`memctl help`: the syscall table as a manual.

Everything shown is derived from libmem.abi.syscalls, so it cannot differ from what the daemon
does. Needs no daemon.
"""

import difflib
from typing import Annotated, Any, Final

import msgspec
import typer

from libmem.abi.errors import Errno, MemError
from libmem.abi.syscalls import BY_NAME, COMMON_ERRORS, SYSCALLS, Syscall
from memosd.tools.fields import fields_of, named_types
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.output import Column

__all__ = ["app"]

Line = list[tuple[str, str]]
"""Parts of a line, each with its style."""

app: Final = typer.Typer(rich_help_panel="Daemon")

_TABLE: Final[tuple[Column[Syscall], ...]] = (
    Column("NR", lambda row: str(row.number), is_right=True, style="dim"),
    Column("SYSCALL", lambda row: row.name, style="bold"),
    Column("SUMMARY", lambda row: row.doc),
)


@command(app, "help")
def show_help(
    session: Session,
    syscall: Annotated[
        str,
        typer.Argument(
            metavar="[SYSCALL]", autocompletion=lambda: list(BY_NAME), show_default=False
        ),
    ] = "",
) -> None:
    """Explain a syscall: arguments, result, permission, errors. Without one: list them all."""
    out = session.out
    if not syscall and out.is_json:
        for row in SYSCALLS:
            out.record(_document(row), "")
    elif not syscall:
        out.table(_TABLE, SYSCALLS)
    elif out.is_json:
        out.record(_document(_find(syscall)), "")
    else:
        for line in _page(_find(syscall)):
            out.styled(line)


def _find(name: str) -> Syscall:
    """Errors: ENOSYS, with the nearest that exist."""
    if name in BY_NAME:
        return BY_NAME[name]
    # `stat` is nearer to `stat_cube` for people than for an edit distance.
    near = [known for known in BY_NAME if name in known] or difflib.get_close_matches(name, BY_NAME)
    text = f"no syscall {name!r}" + (f"; is it {' or '.join(near)}?" if near else "")
    raise MemError(Errno.ENOSYS, text)


def _page(row: Syscall) -> list[Line]:
    traits = [f"number {row.number}", f"since ABI {row.since}"]
    traits += ["may wait for I/O"] * row.blocks + ["changes state"] * row.is_mutation
    lines: list[Line] = [
        [(row.name, "bold"), (f"  ({', '.join(traits)})", "dim")],
        [(f"  {row.doc}", "")],
        [],
        [("Access  ", "bold"), (str(row.access), "")],
        *_section("Arguments", row.request),
        *_section(f"Result: {row.result.__name__}", row.result),
    ]
    for kind in named_types((row.request, row.result)):
        if issubclass(kind, msgspec.Struct):  # an enum is shown by its values
            lines += _section(kind.__name__, kind)
    lines += [[], [("Errors", "bold"), ("" if row.errors else "  only those of every call", "")]]
    lines += [
        [(f"  {error.name:<16}", "cyan"), (f"{error:>3}  {error.meaning}", "")]
        for error in row.errors
    ]
    common = ", ".join(error.name for error in COMMON_ERRORS)
    return [*lines, [(f"  of every call: {common}", "dim")]]


def _section(title: str, struct: type[msgspec.Struct]) -> list[Line]:
    fields = fields_of(struct, is_expanded=True)
    lines: list[Line] = [[], [(title, "bold"), ("" if fields else "  none", "")]]
    for field in fields:
        default = f" = {field.default}" if field.default else ""
        lines.append([(f"  {field.name}", "cyan"), (f": {field.type}{default}", "")])
        if field.doc:
            lines.append([(f"    {field.doc}", "dim")])
    return lines


def _document(row: Syscall) -> dict[str, Any]:
    return {
        "number": row.number,
        "name": row.name,
        "doc": row.doc,
        "access": row.access.name,
        "access_doc": row.access.value,
        "blocks": row.blocks,
        "is_mutation": row.is_mutation,
        "since": row.since,
        "arguments": _fields(row.request),
        "result": row.result.__name__,
        "result_fields": _fields(row.result),
        "errors": [
            {"name": error.name, "errno": int(error), "meaning": error.meaning}
            for error in (*row.errors, *COMMON_ERRORS)
        ],
    }


def _fields(struct: type[msgspec.Struct]) -> list[dict[str, str]]:
    return [field._asdict() for field in fields_of(struct, is_expanded=True)]
