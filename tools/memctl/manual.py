"""`memctl help`: the syscall table as a manual.

Everything shown is derived from libmem.abi.syscalls, so it cannot differ from what the daemon
does. Needs no daemon.
"""

import difflib
import types
from enum import StrEnum
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
import typer

from libmem.abi.errors import Errno, MemError
from libmem.abi.syscalls import BY_NAME, COMMON_ERRORS, SYSCALLS, Syscall
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.output import Column

__all__ = ["app"]

Line = list[tuple[str, str]]
"""Parts of a line, each with its style."""

app: Final = typer.Typer(rich_help_panel="Daemon")


class Argument(msgspec.Struct, frozen=True):
    """One field of a request or result, as people read it."""

    name: str
    type: str
    default: str


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
    for struct in _nested(row):
        lines += _section(struct.__name__, struct)
    lines += [[], [("Errors", "bold"), ("" if row.errors else "  only those of every call", "")]]
    lines += [
        [(f"  {error.name:<16}", "cyan"), (f"{error:>3}  {error.meaning}", "")]
        for error in row.errors
    ]
    common = ", ".join(error.name for error in COMMON_ERRORS)
    return [*lines, [(f"  of every call: {common}", "dim")]]


def _section(title: str, struct: type[msgspec.Struct]) -> list[Line]:
    arguments = _arguments(struct)
    lines: list[Line] = [[], [(title, "bold"), ("" if arguments else "  none", "")]]
    for item in arguments:
        default = f" = {item.default}" if item.default else ""
        lines.append([(f"  {item.name}", "cyan"), (f": {item.type}{default}", "")])
    return lines


def _nested(row: Syscall) -> list[type[msgspec.Struct]]:
    """The structs inside the request and the result, in the order they are met."""
    found: dict[type[msgspec.Struct], None] = {}

    def visit(annotation: Any) -> None:
        for inner in get_args(annotation):
            visit(inner)
        if not isinstance(annotation, type) or annotation in {row.request, row.result, *found}:
            return
        if issubclass(annotation, msgspec.Struct):
            found[annotation] = None
            for field in msgspec.structs.fields(annotation):
                visit(field.type)

    for struct in (row.request, row.result):
        for field in msgspec.structs.fields(struct):
            visit(field.type)
    return list(found)


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
        "arguments": _arguments(row.request),
        "result": row.result.__name__,
        "result_fields": _arguments(row.result),
        "errors": [
            {"name": error.name, "errno": int(error), "meaning": error.meaning}
            for error in (*row.errors, *COMMON_ERRORS)
        ],
    }


def _arguments(struct: type[msgspec.Struct]) -> list[Argument]:
    return [
        Argument(field.encode_name, _type_name(field.type), _default(field))
        for field in msgspec.structs.fields(struct)
    ]


def _default(field: msgspec.structs.FieldInfo) -> str:
    """Empty for a required field."""
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        return ""
    if isinstance(value, msgspec.Struct):
        return f"{type(value).__name__}()"
    if field.name == "mode" and isinstance(value, int):
        return f"{value:#o}"
    return str(value) if isinstance(value, StrEnum) else repr(value)


def _type_name(annotation: Any) -> str:
    """`int | None`, `tuple[str, ...]`, `Quota`, and an enum by its values."""
    if annotation is types.NoneType:
        return "None"
    if annotation is Ellipsis:
        return "..."
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in {types.UnionType, Union}:
        return " | ".join(map(_type_name, inner))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type_name, inner))}]"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return "|".join(annotation)
    return getattr(annotation, "__name__", str(annotation))
