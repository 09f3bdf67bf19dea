"""Conversations: a cube for each turn, named by its place.

A turn is an event. "Thanks!" said twice was said twice, and what was said before it, which a search
shows beside it, was another thing each time: turns are never folded by their text. A turn is known
by session and position instead, so that reading a conversation again, or one that went on since,
writes what is new.
"""

from collections.abc import Callable, Iterable
from typing import Final, TypedDict, Unpack

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Descriptive, Governance
from libmem.client import Client
from libmem.ingest.messages import Turn
from libmem.ingest.names import folder_of, numbered, session_of
from libmem.ingest.pieces import Ingested, Piece, clean, existing, put

__all__ = ["ConversationOptions", "conversation"]

_TURN_TYPE: Final = "episode"


class ConversationOptions(TypedDict, total=False):
    """`session`: of turns that name none. `progress`: told how many turns are done, each time."""

    session: str
    governance: Governance | None
    progress: Callable[[int], object]


def conversation(
    client: Client, under: str, turns: Iterable[Turn], **options: Unpack[ConversationOptions]
) -> Ingested:
    """Keep each turn as `under/<session>/<position>`, with who said it and when in its header.

    Errors: EINVAL (no session, two turns in one place), and those of `write`; what was written
    until then stays.
    """
    done = Ingested()
    for session, pieces in _sessions(under, turns, options.get("session", "")).items():
        known = existing(client, session)
        said = {name: piece for name, piece in pieces.items() if piece.text}
        done += Ingested(skipped=len(pieces) - len(said))
        done += put(client, said.values(), known, options.get("governance"))
        options.get("progress", int)(len(pieces))
    return done


def _sessions(under: str, turns: Iterable[Turn], default: str) -> dict[str, dict[str, Piece]]:
    """Folder -> name -> piece."""
    sessions: dict[str, dict[str, Piece]] = {}
    after: dict[str, int] = {}
    for turn in turns:
        if not (turn.session or default):
            raise MemError(Errno.EINVAL, "a conversation needs a session to be known by")
        folder = folder_of(under, turn.session or default)
        position = after.get(folder, 0) if turn.position is None else turn.position
        after[folder] = position + 1
        piece = _piece(turn, folder, position)
        pieces = sessions.setdefault(folder, {})
        if piece.name in pieces:
            raise MemError(
                Errno.EINVAL, f"two turns at position {position} of a session", cube=piece.name
            )
        pieces[piece.name] = piece
    return sessions


def _piece(turn: Turn, folder: str, position: int) -> Piece:
    about = Descriptive(
        semantic_type=_TURN_TYPE,
        producer=turn.producer,
        event_time_ns=turn.event_time_ns,
        tags=turn.tags,
        session=session_of(folder),
        position=position,
    )
    return Piece(numbered(folder, position), clean(turn.text), about, turn.attributes)
