"""The command that makes memories of files: ingest.

What files are and how they are cut is `libmem.ingest`'s; this says what came of it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from libmem import ingest as ingesting
from libmem.abi.errors import MemError
from libmem.ingest.files import FileOptions, Outcome, listed
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.completion import complete_cube
from memosd.tools.memctl.progress import counter
from memosd.tools.memctl.units import counted, human_bytes, printable

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Cubes")


@dataclass(frozen=True)
class Reading:
    """How the files are read; one option per field."""

    session_name: Annotated[
        str,
        typer.Option("--session", metavar="NAME", help="Of a conversation; else its file's name."),
    ] = ""
    file_format: Annotated[
        ingesting.Format, typer.Option("--format", help="What they are; else by their names.")
    ] = ingesting.Format.AUTO
    duplicates: Annotated[
        ingesting.Duplicates,
        typer.Option(
            "--duplicates", help="Of what the namespace has already: one cube, both, the first."
        ),
    ] = ingesting.Duplicates.FOLD
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Of documents; may be repeated.")
    ] = None


@command(app, "ingest")
def ingest(
    session: Session,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files and folders.", show_default=False)
    ],
    under: Annotated[
        str,
        typer.Option(
            "--under",
            metavar="PATH",
            help="The namespace, or a folder in one, to keep them in.",
            autocompletion=complete_cube,
        ),
    ],
    reading: Reading,
) -> None:
    """Make memories of files: Markdown, text, JSON and conversations.

    Doing it again writes what changed and removes what a document no longer says. Of a folder,
    hidden and binary files are passed over. Stops at the first path that cannot be read; what was
    written until then stays.
    """
    options: FileOptions = {
        "session": reading.session_name,
        "format": reading.file_format,
        "duplicates": reading.duplicates,
        "tags": tuple(reading.tag or ()),
    }
    total = sum(len(listed(path)[0]) if path.is_dir() else 1 for path in paths)
    done = ingesting.Ingested()
    with counter("files", total, is_quiet=session.out.is_json) as advance:
        for path in paths:
            if path.is_dir():
                tell = _teller(session, advance)
                done += ingesting.folder(session.bulk_client, under, path, progress=tell, **options)
            else:
                done += ingesting.file(session.bulk_client, under, path, **options)
                advance(1)
    session.out.record(asdict(done), _summary(done))


def _teller(session: Session, advance: Callable[[int], None]) -> Callable[[Path, Outcome], None]:
    def tell(path: Path, outcome: Outcome) -> None:
        if isinstance(outcome, MemError):
            about = (
                outcome.message if str(path) in outcome.message else f"{path}: {outcome.message}"
            )
            session.note(printable(f"memctl: {about}"))
        advance(1)

    return tell


def _summary(done: ingesting.Ingested) -> str:
    parts = [f"{counted(done.written, 'piece')} written"]
    if done.bytes:
        parts[0] += f" ({human_bytes(done.bytes)})"
    counts = asdict(done)
    rest = ("folded", "unchanged", "removed", "skipped")
    parts += [f"{counts[field]:,} {field}" for field in rest if counts[field]]
    return ", ".join(parts)
