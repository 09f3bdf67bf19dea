"""Conversations with questions about them, in the JSON of LoCoMo (arXiv 2402.17753).

Reads a file that the caller names; none comes with memosd. A question's gold is the set of turns
that its annotators cite as evidence; questions without any, and those of category 5 (adversarial:
there is no answer), are left out, as everybody leaves them out.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from libmem.abi.errors import Errno, MemError

__all__ = ["CATEGORIES", "Conversation", "Question", "Turn", "read_conversations"]

CATEGORIES: Final = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
_ADVERSARIAL: Final = 5
_SESSION: Final = re.compile(r"session_(\d+)")
_SEVERAL: Final = re.compile(r"[;, ]+")
_TIME: Final = "%I:%M %p on %d %B, %Y"
_NS: Final = 1_000_000_000


class Turn(NamedTuple):
    """One thing that somebody said; `[...]` at its end describes a picture that came with it."""

    id: str
    session: str
    position: int
    speaker: str
    text: str
    time_ns: int


class Question(NamedTuple):
    text: str
    category: int
    gold: frozenset[str]
    """Ids of turns."""


class Conversation(NamedTuple):
    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


def read_conversations(path: Path) -> list[Conversation]:
    """All conversations of a file. Errors: ENOENT, EINVAL (another shape)."""
    try:
        return [_conversation(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise MemError(Errno.ENOENT, f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise MemError(Errno.EINVAL, f"{path} is not in the JSON of LoCoMo: {error!r}") from None


def _conversation(entry: dict[str, Any]) -> Conversation:
    said = entry["conversation"]
    # Some name sessions in which nothing was said.
    sessions = sorted(
        int(match[1]) for key in said if (match := _SESSION.fullmatch(key)) and said[key]
    )
    turns = tuple(
        _turn(session, position, turn, said[f"session_{session}_date_time"])
        for session in sessions
        for position, turn in enumerate(said[f"session_{session}"])
    )
    known = {turn.id for turn in turns}
    asked = (_question(question, known) for question in entry["qa"])
    questions = tuple(question for question in asked if question.gold)
    return Conversation(str(entry["sample_id"]), turns, questions)


def _turn(session: int, position: int, turn: dict[str, Any], when: str) -> Turn:
    caption = turn.get("blip_caption")
    text = turn["text"] + (f" [{caption}]" if caption else "")
    moment = datetime.strptime(when, _TIME).replace(tzinfo=UTC)
    time_ns = int(moment.timestamp()) * _NS
    return Turn(turn["dia_id"], str(session), position, turn["speaker"], text, time_ns)


def _question(question: dict[str, Any], known: set[str]) -> Question:
    category = int(question["category"])
    cited = {turn for part in question.get("evidence", ()) for turn in _SEVERAL.split(part)}
    gold = frozenset() if category == _ADVERSARIAL else frozenset(cited & known)
    return Question(str(question["question"]), category, gold)
