"""Documents: cut into pieces, each named by its text, so that what a change left alone stays.

A piece is `under/<document>/<digest of its text>`; its place in the document is in its header. Of
a changed document new pieces are written first, then those that are gone are removed: where others
say the same (`provenance`), the cube is handed on to the next of them.
"""

from collections.abc import Iterable, Iterator, Set
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, TypedDict, Unpack

import msgspec

from libmem.abi.calls import UnlinkCube
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.names import namespace_of
from libmem.abi.structs import Descriptive, Governance, Stat
from libmem.client import Client
from libmem.ingest import markdown
from libmem.ingest.duplicates import Duplicates, fold, met, normal
from libmem.ingest.names import folder_of, session_of, telling
from libmem.ingest.pieces import (
    PROVENANCE,
    Ingested,
    Piece,
    Place,
    bounded,
    clean,
    existing,
    guests,
    put,
    send,
)
from libmem.ingest.prose import fitted, packed, paragraphs
from libmem.ingest.records import parsed, records
from libmem.ingest.sources import Source, read

__all__ = ["JSON_SUFFIXES", "DocumentOptions", "Format", "document", "keep"]

_PIECE_TYPE: Final = "document"
_NO_HEIR: Final = frozenset({Errno.EEXIST, Errno.EACCES, Errno.EINVAL, Errno.ENAMETOOLONG})
"""That one has a cube of its own, or cannot have one."""
_TRIES_MAX: Final = 5
"""To say of a cube whose it is now, while others change its header."""
_MARKDOWN: Final = frozenset({".md", ".markdown", ".mdown", ".mkd"})
JSON_SUFFIXES: Final = frozenset({".json", ".jsonl", ".ndjson"})


class Format(StrEnum):
    """What a source is; by its name, where that is not said."""

    AUTO = "auto"
    MARKDOWN = "markdown"
    TEXT = "text"
    JSON = "json"
    """One memory for each record of a list, or for each line."""
    MESSAGES = "messages"
    """A conversation, see `messages`; of files alone."""


class DocumentOptions(TypedDict, total=False):
    """`name`: by which the document is known; needed where only its text is given."""

    name: str
    format: Format
    duplicates: Duplicates
    governance: Governance | None
    tags: tuple[str, ...]


class _Chunk(NamedTuple):
    title: str
    text: str
    media_type: str = ""


def document(
    client: Client, under: str, source: Path | str, **options: Unpack[DocumentOptions]
) -> Ingested:
    """Keep a document, given as a file or as its text, in pieces under `under/<name>`.

    Errors: EINVAL (a text without a name), EILSEQ (no text; not JSON), EFBIG, those of the file,
            and those of `write`; what was written until then stays.
    """
    if isinstance(source, Path):
        return keep(client, under, read(source, options.get("name")), options)
    if not options.get("name"):
        raise MemError(Errno.EINVAL, "a text needs a name to be known by")
    return keep(client, under, Source(options["name"], source), options)


def keep(client: Client, under: str, source: Source, options: DocumentOptions) -> Ingested:
    """As `document`, of what was read."""
    mode = options.get("duplicates", Duplicates.FOLD)
    folder = folder_of(under, source.name)
    chunks = list(_chunks(source, options.get("format", Format.AUTO)))
    known = existing(client, folder)
    pieces = _pieces(folder, source, chunks, known)
    pieces, done = _distinct(pieces, mode)
    if options.get("tags"):
        pieces = [_tagged(piece, options["tags"]) for piece in pieces]
    new, folded = fold(client, [piece for piece in pieces if piece.name not in known], mode)
    old = [piece for piece in pieces if piece.name in known]
    done += folded + put(client, [*new, *old], known, options.get("governance"))
    gone = known.keys() - {piece.name for piece in pieces}
    return done + _remove(client, [known[name] for name in sorted(gone)])


def _chunks(source: Source, wanted: Format) -> Iterator[_Chunk]:
    if wanted is Format.MESSAGES:
        raise MemError(Errno.EINVAL, "messages are a conversation, not a document")
    suffix = Path(source.name).suffix.lower()
    title = Path(source.name).name
    if wanted is Format.MARKDOWN or (wanted is Format.AUTO and suffix in _MARKDOWN):
        for section in markdown.sections(source.text):
            yield _Chunk(section.title or title, section.text, "text/markdown")
    elif wanted is Format.JSON or (wanted is Format.AUTO and suffix in JSON_SUFFIXES):
        for media_type, text in records(parsed(source.text, source.name)):
            yield _Chunk(title, text, media_type)
    else:
        blocks = (part for block in paragraphs(source.text) for part in fitted(block))
        yield from (_Chunk(title, text) for text in packed(blocks))


def _pieces(
    folder: str, source: Source, chunks: Iterable[_Chunk], known: dict[str, Stat]
) -> list[Piece]:
    """Pieces in order; of one that was there the time at which it was first met stays."""
    pieces: list[Piece] = []
    counts: dict[str, int] = {}
    for position, chunk in enumerate(chunk for chunk in chunks if clean(chunk.text)):
        text = clean(chunk.text)
        digest = digest_of(text.encode())
        nth = counts[text] = counts.get(text, 0) + 1
        name = telling(folder, digest, nth)
        stat = known.get(name)
        is_known = stat is not None and stat.digest == digest
        about = Descriptive(
            title=clean(chunk.title),
            semantic_type=_PIECE_TYPE,
            origin=source.origin,
            media_type=chunk.media_type,
            event_time_ns=stat.descriptive.event_time_ns if is_known and stat else source.time_ns,
            session=session_of(folder),
            position=position,
        )
        pieces.append(Piece(name, text, about, {}))
    return pieces


def _distinct(pieces: list[Piece], mode: Duplicates) -> tuple[list[Piece], Ingested]:
    """Of what the document says several times the first; with `fold` it knows of the others."""
    if mode is Duplicates.KEEP:
        return pieces, Ingested()
    firsts: dict[str, Piece] = {}
    again: dict[str, list[Place]] = {}
    for piece in pieces:
        text = normal(piece.text)
        first = firsts.setdefault(text, piece)
        if first is not piece:
            entry = met(piece)
            entry["event_time_ns"] = first.descriptive.event_time_ns
            again.setdefault(text, []).append(entry)
    count = len(pieces) - len(firsts)
    if mode is Duplicates.SKIP:
        return list(firsts.values()), Ingested(skipped=count)
    distinct = [
        piece._replace(attributes={PROVENANCE: bounded(again[text])}) if text in again else piece
        for text, piece in firsts.items()
    ]
    return distinct, Ingested(folded=count)


def _tagged(piece: Piece, tags: tuple[str, ...]) -> Piece:
    return piece._replace(descriptive=msgspec.structs.replace(piece.descriptive, tags=tags))


def _remove(client: Client, gone: list[Stat]) -> Ingested:
    """Unlink what the document no longer says, unless another one still does."""
    lonely = [stat for stat in gone if not _hand_on(client, stat)]
    requests = [UnlinkCube(name=stat.name, expected_version=stat.version) for stat in lonely]
    for result in send(client, requests):
        if isinstance(result, MemError):
            raise result
    return Ingested(removed=len(gone))


def _hand_on(client: Client, stat: Stat) -> bool:
    """Make the cube the piece of the first that met its text elsewhere; False: nobody takes it."""
    passed: set[str] = set()
    for heir in _heirs(stat, stat.descriptive.session):
        passed.add(heir["name"])
        try:
            client.rename(stat.name, heir["name"], expected_version=stat.version)
        except MemError as error:
            if error.errno not in _NO_HEIR:
                raise
            continue
        _take_over(client, stat, heir, passed)
        return True
    return False


def _heirs(stat: Stat, session: str) -> list[Place]:
    """Who else said it than `session`, in order."""
    # Whoever may write the cube may have written these: it leaves the namespace for nobody.
    own = namespace_of(stat.name)
    return [entry for entry in guests(stat, session) if namespace_of(entry["name"]) == own]


def _take_over(client: Client, stat: Stat, heir: Place, passed: Set[str]) -> None:
    """Make the header say that the cube is the heir's, whatever else is said of it meanwhile.

    `passed`: names that are in the provenance no more. Errors: EVERSION, it changes all the time.
    """
    session, digest, name = stat.descriptive.session, stat.digest, heir["name"]
    news = {key: value for key, value in heir.items() if key != "name"}
    tries = 0
    while stat.digest == digest:  # else it was written anew, and its writer said what it is
        rest = [entry for entry in _heirs(stat, session) if entry["name"] not in passed]
        attributes = {key: value for key, value in stat.attributes.items() if key != PROVENANCE}
        if rest:
            attributes[PROVENANCE] = rest
        about = msgspec.structs.replace(stat.descriptive, **news)
        try:
            client.set_header(
                name, descriptive=about, attributes=attributes, expected_version=stat.version
            )
            return
        except MemError as error:
            tries += 1
            if error.errno is not Errno.EVERSION or tries >= _TRIES_MAX:
                raise
        stat = client.stat(name)
