"""`docs/syscalls.md`: the ABI as a reference, from the syscall table, its structs and its limits.

Pure; called by `__main__` alone. What it writes can be false only where the table is.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, Final

from libmem.abi import limits
from libmem.abi.errors import Errno, is_retryable
from libmem.abi.syscalls import COMMON_ERRORS, SYSCALLS, Access, Syscall
from libmem.abi.wire import Fault
from memosd.tools.fields import Field, constants_of, doc_of, fields_of, named_types

__all__ = ["render"]

_STRUCTS: Final = [struct for row in SYSCALLS for struct in (row.request, row.result)]
_SHARED: Final = {each for each in _STRUCTS if each.__module__ == "libmem.abi.structs"}
"""Results that other structs hold or several calls return: described once, under Values."""

_HEAD: Final = """\
# Syscalls

<!-- Written by `make docs` from libmem/abi: change that, not this. -->

ABI version {version}. `memctl help SYSCALL` shows the same in a terminal. How a call travels, byte
by byte, is in [format.md](format.md).

A request is a msgpack map of the arguments below; a field that is left out has its default, an
unknown one is refused (EBADMSG). Names are absolute, `/namespace/path`; where a cube is read,
`/namespace/path@v3` means its third version. Sizes are bytes, times are ns: since the epoch
where they are dates. Durable writes are answered when they are on disk.

Every call may fail with one of these, which the lists below leave out:
{common}.
"""


def render() -> str:
    """The whole page."""
    common = ", ".join(error.name for error in COMMON_ERRORS)
    parts = [
        _HEAD.format(version=limits.ABI_VERSION, common=common),
        *_overview(),
        *_access(),
        *_errors(),
        "\n## The calls\n",
        *(line for row in SYSCALLS for line in _call(row)),
        *_values(),
        *_limits(),
    ]
    return "\n".join(parts) + "\n"


def _overview() -> Iterator[str]:
    yield "## Overview\n"
    yield from _table(
        ("nr", "call", "what it does"),
        ((row.number, f"[`{row.name}`](#{row.name})", row.doc) for row in SYSCALLS),
    )


def _access() -> Iterator[str]:
    yield "\n## Who may call\n"
    yield "Checked on every call, against the identity that the operating system vouches for.\n"
    yield from _table(("access", "means"), ((f"`{each.name}`", each.value) for each in Access))


def _errors() -> Iterator[str]:
    yield "\n## Errors\n"
    yield "A failed call carries a number, a message and typed facts. The number is also the exit"
    yield "status of `memctl`. Retry: the same call may succeed later, with no change by the"
    yield "caller.\n"
    yield from _table(
        ("error", "number", "retry", "means"),
        (
            (f"`{each.name}`", int(each), "yes" if is_retryable(each) else "", each.meaning)
            for each in Errno
        ),
    )
    yield "\nThe body of a failed reply is a `Fault`:\n"
    yield from _fields(fields_of(Fault))


def _call(row: Syscall) -> Iterator[str]:
    traits = [f"number {row.number}", f"since ABI {row.since}", f"access `{row.access.name}`"]
    traits += ["may wait for I/O"] * row.blocks
    # A lost reply to these leaves the outcome unknown.
    traits += ["changes state: libmem never repeats it by itself"] * row.is_mutation
    yield f"### {row.name}\n"
    yield f"{row.doc}\n"
    yield f"{', '.join(traits)}.\n"
    prose = doc_of(row.request)
    if prose:
        yield f"{prose}\n"
    arguments, results = fields_of(row.request), fields_of(row.result)
    yield from ["Arguments:\n", *_fields(arguments), ""] if arguments else ["No arguments.\n"]
    prose = doc_of(row.result)
    yield f"Result `{row.result.__name__}`{f': {prose}' if prose else ''}\n"
    if row.result in _SHARED:
        yield f"Its fields: [{row.result.__name__}](#{row.result.__name__.lower()}).\n"
    elif results:
        yield from [*_fields(results), ""]
    errors = ", ".join(f"`{error.name}`" for error in row.errors)
    yield f"Errors: {errors or 'only those of every call'}.\n"


def _values() -> Iterator[str]:
    """Every struct and enum that is met inside requests and results, each once."""
    yield "## Values\n"
    outer = [struct for struct in _STRUCTS if struct not in _SHARED]
    kinds: list[Any] = sorted({*named_types(outer), *_SHARED}, key=lambda kind: kind.__name__)
    for kind in kinds:
        yield f"### {kind.__name__}\n"
        yield f"{doc_of(kind)}\n"
        if issubclass(kind, StrEnum):
            yield f"One of {', '.join(f'`{value}`' for value in kind)}.\n"
        else:
            yield from [*_fields(fields_of(kind)), ""]


def _limits() -> Iterator[str]:
    yield "## Limits\n"
    yield "Part of the ABI. What an administrator may change is in the configuration:"
    yield "[memosd.toml(5)](man/memosd.toml.5), [etc/memosd.toml](../etc/memosd.toml).\n"
    yield from _table(
        ("limit", "value", "why"),
        ((f"`{each.name}`", f"{each.value:,}", each.doc) for each in constants_of(limits)),
    )


def _fields(fields: list[Field]) -> Iterator[str]:
    return _table(
        ("field", "type", "default", "notes"),
        (
            (f"`{each.name}`", f"`{each.type}`", each.default and f"`{each.default}`", each.doc)
            for each in fields
        ),
    )


def _table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A Markdown table; a column that is empty in every row is left out."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    heads = list(titles)
    kept = [at for at in range(len(heads)) if any(row[at] for row in cells)]
    for row in (heads, ["---"] * len(heads), *cells):
        yield f"| {' | '.join(row[at] for at in kept)} |"
