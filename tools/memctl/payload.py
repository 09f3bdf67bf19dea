"""The payload commands: put, cat.

Small payloads go by value, large ones through memory shared with the daemon: a file is read
straight into the cube's own frame, a cube is written straight from its mapping.
"""

import os
import shutil
import stat as modes
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import msgspec
import typer

from libmem.abi.calls import StatCube, WriteCube, WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import PRIORITY_MAX
from libmem.abi.structs import CubeType, Descriptive, Governance
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import ExpectVersion, Name
from memosd.tools.memctl.failure import translate
from memosd.tools.memctl.output import plain
from memosd.tools.memctl.progress import bytes_bar
from memosd.tools.memctl.units import human_bytes, parse_mode

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Cubes")

_CHUNK_BYTES: Final = 4 << 20
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
    mode: Annotated[
        str | None,
        typer.Option("--mode", metavar="OCTAL", help="Permissions (a new cube has 0600)."),
    ] = None


@command(app, "put")
def put(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")],
    name: Name,
    header: Header,
) -> None:
    """Store a file as a cube's next version."""
    with _opened(source) as (stream, size_bytes):
        options = _options(session, source, name, header)
        first = _read(stream, source, min(size_bytes, _SNIFF_BYTES))
        if header.cube_type is None:
            _check_text(first, source, is_whole=size_bytes <= _SNIFF_BYTES)
        if size_bytes <= session.client.session.call_by_value_bytes:
            payload = first + _read(stream, source, size_bytes - len(first))
            reply = session.call(WriteCube(name=name, payload=payload, **options), is_slow=True)
        else:
            reply = _fill(session, name, size_bytes, options, (source, stream, first))
    session.out.record(
        {"name": name, "size_bytes": size_bytes, **plain(reply)},
        f"{name}@v{reply.version}  {human_bytes(size_bytes)}",
    )


@contextmanager
def _opened(source: str) -> Iterator[tuple[BinaryIO, int]]:
    """The stream at its beginning and its size. Errors: those of opening the file."""
    if source != "-":
        try:
            stream = Path(source).open("rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise translate(error, source) from None
        with stream:
            yield stream, os.fstat(stream.fileno()).st_size
        return
    status = os.fstat(sys.stdin.fileno())
    if modes.S_ISREG(status.st_mode):  # memctl put - /a/b < file
        yield sys.stdin.buffer, status.st_size - sys.stdin.buffer.tell()
        return
    # A frame is asked for by its size, which a pipe does not tell before its end.
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool, _CHUNK_BYTES)
        size_bytes = spool.tell()
        spool.seek(0)
        yield spool, size_bytes


def _read(stream: BinaryIO, source: str, length_bytes: int) -> bytes:
    """Exactly so many bytes. Errors: EIO when the file became shorter, or cannot be read."""
    try:
        chunk = stream.read(length_bytes)
    except OSError as error:
        raise translate(error, source) from None
    if len(chunk) != length_bytes:
        raise MemError(Errno.EIO, f"{source}: became shorter while it was read")
    return chunk


def _check_text(first: bytes, source: str, *, is_whole: bool) -> None:
    """Errors: EILSEQ, before anything is sent, for what is clearly no text."""
    try:
        first.decode()
    except UnicodeDecodeError as error:
        if not is_whole and error.end == len(first) and error.reason == "unexpected end of data":
            return  # a character that goes on behind the part that was looked at
        raise MemError(Errno.EILSEQ, f"{source}: not UTF-8 text at byte {error.start}") from None


def _options(session: Session, source: str, name: str, header: Header) -> dict[str, Any]:
    """What WriteCube and CreateCube have in common."""
    is_json = header.cube_type in {None, CubeType.PLAINTEXT} and source.endswith(".json")
    return {
        "type": header.cube_type or CubeType.PLAINTEXT,
        "descriptive": Descriptive(
            title=header.title,
            origin="" if source == "-" else source,
            media_type=header.media_type or ("application/json" if is_json else ""),
            tags=tuple(header.tag or ()),
        ),
        "governance": _governance(session, name, header),
        "expected_version": header.expect_version,
    }


def _governance(session: Session, name: str, header: Header) -> Governance | None:
    """The rules with what was asked for changed; None leaves them as they are."""
    changes: dict[str, int] = {}
    if header.mode is not None:
        changes["mode"] = parse_mode(header.mode)
    if header.priority is not None:
        changes["priority"] = header.priority
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
    session: Session,
    name: str,
    size_bytes: int,
    options: dict[str, Any],
    stream: tuple[str, BinaryIO, bytes],
) -> WriteReply:
    """Read the rest of the stream into the new cube's memory and seal it."""
    source, rest, first = stream
    with (
        session.bulk_client.create(name, size_bytes, **options) as fill,
        bytes_bar(name, size_bytes, is_quiet=session.out.is_json) as advance,
    ):
        fill.buffer[: len(first)] = first
        at = len(first)
        advance(at)
        while at < size_bytes:
            done = _read_into(rest, source, fill.buffer[at : at + _CHUNK_BYTES])
            at += done
            advance(done)
    assert fill.result is not None
    return fill.result


def _read_into(stream: BinaryIO, source: str, room: memoryview) -> int:
    """At least one byte. Errors: EIO when the file became shorter, or cannot be read."""
    try:
        done = stream.readinto(room)  # type: ignore[attr-defined]
    except OSError as error:
        raise translate(error, source) from None
    if not done:
        raise MemError(Errno.EIO, f"{source}: became shorter while it was read")
    return int(done)


@command(app, "cat")
def cat(session: Session, name: Name) -> None:
    """Write a cube's payload to standard output, byte for byte."""
    stat = session.call(StatCube(name=name))
    if session.out.is_json:
        session.out.record(_document(name, session.bulk_client.read(name)), "")
    elif stat.size_bytes <= session.client.session.call_by_value_bytes:
        sys.stdout.buffer.write(session.client.read(name))
    else:
        with (
            session.bulk_client.map(name) as mapping,
            memoryview(mapping) as view,
            bytes_bar(name, len(view), is_quiet=sys.stdout.isatty()) as advance,
        ):
            for at in range(0, len(view), _CHUNK_BYTES):
                advance(sys.stdout.buffer.write(view[at : at + _CHUNK_BYTES]))
    sys.stdout.buffer.flush()


def _document(name: str, payload: bytes) -> dict[str, object]:
    """JSON holds no bytes: text as text, everything else as hex."""
    try:
        return {"name": name, "size_bytes": len(payload), "text": payload.decode()}
    except UnicodeDecodeError:
        return {"name": name, "size_bytes": len(payload), "hex": payload.hex()}
