"""The payload commands: put, cat.

Small payloads go by value, large ones through memory shared with the daemon: a file is read
straight into the cube's own frame, a cube is written straight from its mapping.
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import typer

from libmem.abi.calls import StatCube, WriteCube, WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import PRIORITY_MAX
from libmem.abi.structs import CubeType, Descriptive, Governance
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import ExpectVersion, Name, fallen_text
from memosd.tools.memctl.files import Source, opened, write_out
from memosd.tools.memctl.output import plain
from memosd.tools.memctl.progress import bytes_bar
from memosd.tools.memctl.units import human_bytes, parse_mode

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Cubes")

_SNIFF_BYTES: Final = 64 << 10


@dataclass(frozen=True)
class Header:
    """What `put` can say about a cube besides its bytes; one option per field."""

    cube_type: Annotated[
        CubeType | None,
        typer.Option("--type", help="Default: plaintext, for UTF-8 text and JSON."),
    ] = None
    media_type: Annotated[
        str,
        typer.Option("--media-type", help="Default: application/json for *.json."),
    ] = ""
    title: Annotated[str, typer.Option("--title", help="What it is about.")] = ""
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A keyword; may be repeated.")] = (
        None
    )
    expect_version: ExpectVersion = None
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority", min=0, max=PRIORITY_MAX, help="Who leaves RAM last (a new cube has 50)."
        ),
    ] = None
    half_life_s: Annotated[
        float | None,
        typer.Option(
            "--half-life",
            metavar="SECONDS",
            help="Unused for so long it is worth half to who makes room; 0: as most cubes.",
        ),
    ] = None
    mode: Annotated[
        str | None,
        typer.Option("--mode", metavar="OCTAL", help="Permissions (a new cube has 0600)."),
    ] = None


@command(app, "put")
def put(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")],
    name: Name,
    header: Header,
) -> None:
    """Store a file as a cube's next version."""
    with opened(file) as source:
        options = _options(session, file, name, header)
        first = source.read(min(source.size_bytes, _SNIFF_BYTES))
        if header.cube_type is None:
            _check_text(first, source)
        if source.size_bytes <= session.client.session.call_by_value_bytes:
            payload = first + source.read(source.size_bytes - len(first))
            reply = session.call(WriteCube(name=name, payload=payload, **options), is_slow=True)
        else:
            reply = _fill(session, name, options, (first, source))
    session.out.record(
        {"name": name, "size_bytes": source.size_bytes, **plain(reply)},
        f"{name}@v{reply.version}  {human_bytes(source.size_bytes)}{fallen_text(reply.receipt)}",
    )


def _check_text(first: bytes, source: Source) -> None:
    """Errors: EILSEQ, before anything is sent, for what is clearly no text."""
    try:
        first.decode()
    except UnicodeDecodeError as error:
        goes_on = error.end == len(first) < source.size_bytes
        if goes_on and error.reason == "unexpected end of data":
            return  # a character across the border of what was looked at
        text = f"{source.name}: not UTF-8 text at byte {error.start}"
        raise MemError(Errno.EILSEQ, text) from None


def _options(session: Session, file: str, name: str, header: Header) -> dict[str, Any]:
    """What WriteCube and CreateCube have in common."""
    is_json = header.cube_type in {None, CubeType.PLAINTEXT} and file.endswith(".json")
    return {
        "type": header.cube_type or CubeType.PLAINTEXT,
        "descriptive": Descriptive(
            title=header.title,
            origin="" if file == "-" else file,
            media_type=header.media_type or ("application/json" if is_json else ""),
            tags=tuple(header.tag or ()),
        ),
        "governance": _governance(session, name, header),
        "expected_version": header.expect_version,
    }


def _governance(session: Session, name: str, header: Header) -> Governance | None:
    """The rules with what was asked for changed; None leaves them as they are."""
    changes: dict[str, float] = {}
    if header.mode is not None:
        changes["mode"] = parse_mode(header.mode)
    if header.priority is not None:
        changes["priority"] = header.priority
    if header.half_life_s is not None:
        changes["half_life_s"] = header.half_life_s
    if not changes:
        return None
    try:
        present = session.call(StatCube(name=name)).governance
    except MemError as error:
        if error.errno is not Errno.ENOENT:
            raise
        present = Governance()
    return msgspec.structs.replace(present, **changes)


def _fill(
    session: Session, name: str, options: dict[str, Any], content: tuple[bytes, Source]
) -> WriteReply:
    """Read the source into the new cube's own memory and seal it; `first` was read before."""
    first, source = content
    with (
        session.bulk_client.create(name, source.size_bytes, **options) as fill,
        bytes_bar(name, source.size_bytes, is_quiet=session.out.is_json) as advance,
    ):
        fill.buffer[: len(first)] = first
        advance(len(first))
        with fill.buffer[len(first) :] as room:
            source.read_into(room, advance)
    if fill.result is None:
        raise MemError(Errno.EIO, f"{name}: was not sealed")
    return fill.result


@command(app, "cat")
def cat(session: Session, name: Name) -> None:
    """Write a cube's payload to standard output, byte for byte."""
    size_bytes = session.call(StatCube(name=name)).size_bytes
    if session.out.is_json:
        session.out.record(_document(name, session.bulk_client.read(name)), "")
    elif size_bytes <= session.client.session.call_by_value_bytes:
        write_out(memoryview(session.client.read(name)), lambda _done: None)
    else:
        with (
            session.bulk_client.map(name) as mapping,
            memoryview(mapping) as view,
            bytes_bar(name, len(view), is_quiet=sys.stdout.isatty()) as advance,
        ):
            write_out(view, advance)


def _document(name: str, payload: bytes) -> dict[str, object]:
    """JSON holds no bytes: text as text, everything else as hex."""
    try:
        return {"name": name, "size_bytes": len(payload), "text": payload.decode()}
    except UnicodeDecodeError:
        return {"name": name, "size_bytes": len(payload), "hex": payload.hex()}
