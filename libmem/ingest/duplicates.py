"""Duplicates: texts that a namespace has already, under another name.

Candidates come from a search by words for each new piece; `keep` saves its cost. Two texts are
the same when they are equal but for case and white space, or when nine tenths of their runs of
three words are, and no number and no "not" is in one of them alone: a price that changed is news.
Who said it must be the same, too.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import chain
from typing import Any, Final

from libmem.abi.calls import ReadCube, Search, SearchReply, SetHeader, StatCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.names import namespace_of
from libmem.abi.structs import CubeType, SearchMode, Stat
from libmem.client import Client
from libmem.ingest.pieces import PROVENANCE, Ingested, Piece, Place, bounded, places, send

__all__ = ["Duplicates", "fold", "is_same", "met", "normal"]

_CANDIDATES: Final = 5
_QUERY_WORDS: Final = 12
"""Of a text, looked for: its longest, which are rare. All of a piece's words would score most of
the namespace; what shares nine tenths of its runs shares nearly all of these."""
_SEARCHES: Final = 32
"""In one message: in a large namespace each takes some hundredths of a second."""
_ALIKE: Final = 0.9
_RUN_WORDS: Final = 3
_READ_BYTES: Final = 64 << 10
"""What is longer than that is no duplicate of a piece."""

_WORD: Final = re.compile(r"\w+")
_TELLING: Final = re.compile(r"\w*\d\w*|\bno\b|\bnot\b|\bnever\b|\bnone\b|\bwithout\b|n['’]t\b")  # noqa: RUF001


class Duplicates(StrEnum):
    """What is done with a text that is there already."""

    FOLD = "fold"
    """One cube, whose `provenance` tells where else it was met."""
    KEEP = "keep"
    """A cube each."""
    SKIP = "skip"
    """The first one stays as it is."""


def normal(text: str) -> str:
    """The text as duplicates are compared by it."""
    return " ".join(text.casefold().split())


def is_same(one: str, other: str) -> bool:
    """Are two normal texts duplicates?"""
    if one == other:
        return True
    words, others = _WORD.findall(one), _WORD.findall(other)
    if not _ALIKE <= len(words) / max(1, len(others)) <= 1 / _ALIKE:
        return False
    runs, other_runs = _runs(words), _runs(others)
    if len(runs & other_runs) < _ALIKE * len(runs | other_runs):
        return False
    return sorted(_TELLING.findall(one)) == sorted(_TELLING.findall(other))


def met(piece: Piece) -> Place:
    """Where the piece comes from."""
    about = piece.descriptive
    return Place(
        name=piece.name,
        title=about.title,
        origin=about.origin,
        session=about.session,
        position=about.position,
        event_time_ns=about.event_time_ns,
    )


def fold(client: Client, pieces: Sequence[Piece], mode: Duplicates) -> tuple[list[Piece], Ingested]:
    """The pieces that are new to their namespace; and what became of the others.

    A cube that the caller may not change, or that changes meanwhile, is nobody's provenance.
    """
    if mode is Duplicates.KEEP or not pieces:
        return list(pieces), Ingested()
    twins = _twins(client, pieces)
    new = [piece for piece in pieces if piece.name not in twins]
    if mode is Duplicates.SKIP:
        return new, Ingested(skipped=len(twins))
    changes: dict[str, tuple[Stat, list[Piece]]] = {}
    for piece in pieces:
        if piece.name in twins:
            stat = twins[piece.name]
            changes.setdefault(stat.name, (stat, []))[1].append(piece)
    done = Ingested()
    requests, folded = [], []
    for stat, guests in changes.values():
        entries, is_news = _entries(stat, guests)
        if is_news:
            requests.append(_noted(stat, entries))
            folded.append(guests)
        else:
            done += Ingested(unchanged=len(guests))
    for guests, result in zip(folded, send(client, requests), strict=True):
        if not isinstance(result, MemError):
            done += Ingested(folded=len(guests))
        elif result.errno in {Errno.EPERM, Errno.EACCES, Errno.ENOENT, Errno.EVERSION}:
            new += guests
        else:
            raise result
    return new, done


def _entries(stat: Stat, guests: list[Piece]) -> tuple[list[Place], bool]:
    """The provenance with the guests in it, and whether it says anything new."""
    entries = {entry["name"]: entry for entry in places(stat) or ()}
    before = list(entries.values())
    for guest in guests:
        entry, known = met(guest), entries.get(guest.name)
        if known is not None:  # a file that was merely touched is no news
            entry["event_time_ns"] = known["event_time_ns"]
        entries[guest.name] = entry
    kept = bounded(entries.values())
    return kept, kept != before


def _noted(stat: Stat, entries: list[Place]) -> SetHeader:
    attributes = {**stat.attributes, PROVENANCE: entries}
    return SetHeader(name=stat.name, attributes=attributes, expected_version=stat.version)


def _twins(client: Client, pieces: Sequence[Piece]) -> dict[str, Stat]:
    """Piece -> the cube that says the same. Errors: EAGAIN while the index is built again."""
    texts = {piece.name: normal(piece.text) for piece in pieces}
    candidates = _candidates(client, pieces)
    found = _texts(client, dict.fromkeys(chain.from_iterable(candidates)))
    likes: dict[str, list[str]] = {}
    for piece, names in zip(pieces, candidates, strict=True):
        text = texts[piece.name]
        same = [name for name in names if name in found and is_same(text, found[name])]
        likes[piece.name] = sorted(same, key=lambda name: found[name] != text)
    names = list(dict.fromkeys(chain.from_iterable(likes.values())))
    stats = dict(zip(names, send(client, [StatCube(name=name) for name in names]), strict=True))
    twins: dict[str, Stat] = {}
    for piece in pieces:
        fitting = [stats[name] for name in likes[piece.name] if _may_stand_for(stats[name], piece)]
        if fitting:
            twins[piece.name] = fitting[0]
    return twins


def _texts(client: Client, names: Iterable[str]) -> dict[str, str]:
    """The normal texts of cubes, as far as they can be read and are no longer than pieces are."""
    names = list(names)
    read = send(client, [ReadCube(name=name, length_bytes=_READ_BYTES) for name in names])
    return {
        name: normal(reply.payload.decode("utf-8", "replace"))
        for name, reply in zip(names, read, strict=True)
        if not isinstance(reply, MemError) and len(reply.payload) == reply.size_bytes
    }


def _candidates(client: Client, pieces: Sequence[Piece]) -> list[list[str]]:
    """For each piece the cubes that share its words, but for its own folder's."""
    searches = [
        Search(
            query=_query(piece.text),
            under=namespace_of(piece.name),
            k=_CANDIDATES,
            types=(CubeType.PLAINTEXT,),
            mode=SearchMode.WORDS,
        )
        for piece in pieces
    ]
    names: list[list[str]] = []
    for piece, reply in zip(pieces, send(client, searches, _SEARCHES), strict=True):
        if isinstance(reply, MemError):
            raise reply
        assert isinstance(reply, SearchReply)
        # What the same document said before is about to be replaced, not to be added to.
        own = piece.name.rpartition("/")[0] + "/"
        names.append([hit.name for hit in reply.hits if not hit.name.startswith(own)])
    return names


def _query(text: str) -> str:
    words = dict.fromkeys(_WORD.findall(text.casefold()))
    return " ".join(sorted(words, key=len, reverse=True)[:_QUERY_WORDS])


def _may_stand_for(stat: Any, piece: Piece) -> bool:
    """Is it the same kind of memory, by the same person, and does it still hold?"""
    if not isinstance(stat, Stat):
        return False
    about = stat.descriptive
    return (
        (about.producer, about.semantic_type)
        == (piece.descriptive.producer, piece.descriptive.semantic_type)
        and not about.valid_to_ns
        and not stat.is_quarantined
        and places(stat) is not None
    )


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + _RUN_WORDS]) for at in range(max(1, len(words) - _RUN_WORDS + 1))}
