"""Files and folders: each file as what it is, a document or a conversation.

A folder's files are known by their paths below it. What cannot be read as text is passed over and
told; what the daemon refuses for want of room or rights ends the run.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypedDict, Unpack

from libmem.abi.errors import Errno, MemError
from libmem.abi.names import namespace_of
from libmem.abi.structs import Governance
from libmem.client import Client
from libmem.ingest.conversations import conversation
from libmem.ingest.documents import JSON_SUFFIXES, DocumentOptions, Format, keep
from libmem.ingest.duplicates import Duplicates
from libmem.ingest.messages import Turn, is_conversation, read_turns
from libmem.ingest.names import folder_of
from libmem.ingest.pieces import Ingested
from libmem.ingest.records import parsed
from libmem.ingest.sources import Source, read, translated

__all__ = ["FileOptions", "Format", "Outcome", "file", "folder", "listed"]

Outcome = Ingested | MemError

_PASSED_OVER: Final = frozenset({Errno.EILSEQ, Errno.EFBIG, Errno.EINVAL, Errno.ENAMETOOLONG})
"""What is a file's own fault, whoever finds it."""


class FileOptions(TypedDict, total=False):
    """`session`: of conversations, whose name is else their file's. The others: `document`."""

    session: str
    format: Format
    duplicates: Duplicates
    governance: Governance | None
    tags: tuple[str, ...]


def file(
    client: Client, under: str, path: Path, *, name: str = "", **options: Unpack[FileOptions]
) -> Ingested:
    """Keep a file under `under/<name>`; JSON that is a conversation as one. Errors: `document`."""
    return _kept(client, under, read(path, name or None), options)


def folder(
    client: Client,
    under: str,
    path: Path,
    *,
    progress: Callable[[Path, Outcome], object] = lambda _path, _outcome: None,
    **options: Unpack[FileOptions],
) -> Ingested:
    """Keep all files below a folder, in the order of their names.

    `progress` is called after each, with what came of it or why it was passed over. Hidden files
    and folders, links to folders, and what is no file at all count as skipped.
    Errors: EINVAL (`under`), ENOENT (its namespace), and those of `write`.
    """
    client.stat_namespace(namespace_of(folder_of(under, "")))
    files, skipped = listed(path)
    done = Ingested(skipped=skipped)
    for found in files:
        name = os.fsencode(found.relative_to(path)).decode("utf-8", "replace")
        try:
            source = read(found, name)
        except MemError as error:
            outcome: Outcome = error
        else:
            outcome = _outcome(client, under, source, options)
        done += Ingested(skipped=1) if isinstance(outcome, MemError) else outcome
        progress(found, outcome)
    return done


def listed(path: Path) -> tuple[list[Path], int]:
    """The files below a folder in order, and how many entries were passed over.

    Errors: ENOTDIR, ENOENT, EACCES of the folder itself.
    """
    files: list[Path] = []
    waiting = _entries(path)
    skipped = 0
    while waiting:
        entry = waiting.pop()
        if entry.name.startswith("."):
            skipped += 1
        elif entry.is_dir(follow_symlinks=False):
            try:
                waiting += _entries(Path(entry.path))
            except MemError:
                skipped += 1
        elif _is_file(entry):
            files.append(Path(entry.path))
        else:  # a link to a folder may lead back here, a pipe would be waited for
            skipped += 1
    return files, skipped


def _entries(path: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, the first one last. Errors: those of the file system."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise translated(error, path) from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, above all
        return False


def _outcome(client: Client, under: str, source: Source, options: FileOptions) -> Outcome:
    try:
        return _kept(client, under, source, options)
    except MemError as error:
        if error.errno not in _PASSED_OVER:
            raise
        return error


def _kept(client: Client, under: str, source: Source, options: FileOptions) -> Ingested:
    rules = options.get("governance")
    turns = _turns(source, options.get("format", Format.AUTO))
    if turns is None:
        about: DocumentOptions = {
            "format": options.get("format", Format.AUTO),
            "duplicates": options.get("duplicates", Duplicates.FOLD),
            "governance": rules,
            "tags": options.get("tags", ()),
        }
        return keep(client, under, source, about)
    session = options.get("session", "")
    if not session:  # two files may call their sessions alike
        turns = [_of_file(turn, source.name) for turn in turns]
    return conversation(client, under, turns, session=session, governance=rules)


def _turns(source: Source, wanted: Format) -> list[Turn] | None:
    """The turns of a conversation; None where the file is none. Errors: EILSEQ, EINVAL."""
    is_json = Path(source.name).suffix.lower() in JSON_SUFFIXES
    if wanted is not Format.MESSAGES and not (wanted is Format.AUTO and is_json):
        return None
    value = parsed(source.text, source.name)
    if wanted is Format.AUTO and not is_conversation(value):
        return None
    return list(read_turns(value))


def _of_file(turn: Turn, name: str) -> Turn:
    return turn._replace(session=f"{name}/{turn.session}" if turn.session else name)
