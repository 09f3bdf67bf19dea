"""Conversations in the shapes that programs keep them in, read as turns. Pure functions.

- messages: a list of `{"role", "content"}`, or an object with such a list under `messages`;
  `name`, `time` (also `timestamp`, `created_at`) and `session` are read where they are there;
- sessions: `{"sessions": [{"session", "time", "turns": [{"producer", "text", "time"}]}]}`;
- either of them as one object in each line.

Times are ISO 8601 (without a zone: UTC) or seconds or milliseconds since 1970.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import POSITION_MAX

__all__ = ["Turn", "is_conversation", "read_turns"]

_TIMES: Final = ("time", "timestamp", "created_at", "event_time")
_PRODUCERS: Final = ("producer", "name", "speaker", "role")
_MILLISECONDS: Final = 100_000_000_000
"""A number beyond this counts milliseconds: as seconds it would be the year 5138."""
_ATTRIBUTE_MAX: Final = 1000
"""Characters of a text that is kept as an attribute."""
_READ: Final = frozenset({"text", "content", "session", "position", "tags", *_TIMES, *_PRODUCERS})


class Turn(NamedTuple):
    """What somebody said."""

    text: str
    producer: str = ""
    event_time_ns: int = 0
    session: str = ""
    """Empty: that of the conversation it is part of."""
    position: int | None = None
    """Its place in the session; None: behind the turn before it."""
    attributes: dict[str, Any] = {}  # noqa: RUF012 - never changed
    tags: tuple[str, ...] = ()


def is_conversation(value: Any) -> bool:
    """Does a JSON value have one of the shapes?"""
    if isinstance(value, dict):
        return isinstance(value.get("sessions"), list) or _is_messages(value.get("messages"))
    return _is_messages(value) or (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and _is_messages(item.get("messages")) for item in value)
    )


def read_turns(value: Any) -> Iterator[Turn]:
    """The turns of a JSON value, in order. Errors: EINVAL (it has none of the shapes)."""
    match value:
        case {"sessions": list(sessions)}:
            for number, session in enumerate(sessions, 1):
                yield from _session(session, str(number))
        case {"messages": list()} | {"turns": list()}:
            yield from _session(value, "")
        case list():
            for number, item in enumerate(value, 1):
                if isinstance(item, dict) and ("messages" in item or "turns" in item):
                    yield from _session(item, str(number))
                else:
                    yield _turn(item)
        case _:
            raise MemError(Errno.EINVAL, "neither a list of messages nor of sessions")


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value)
    )


def _session(value: Any, default: str) -> Iterator[Turn]:
    """Turns without a time of their own have their session's."""
    turns = value.get("turns", value.get("messages")) if isinstance(value, dict) else None
    if not isinstance(turns, list):
        raise MemError(Errno.EINVAL, "a session has a list of `turns` or `messages`")
    name = str(value.get("session") or value.get("id") or default)
    time_ns = _time_ns(value)
    for turn in map(_turn, turns):
        yield turn._replace(
            session=turn.session or name, event_time_ns=turn.event_time_ns or time_ns
        )


def _turn(value: Any) -> Turn:
    if not isinstance(value, dict):
        raise MemError(Errno.EINVAL, "a message is an object with `role` and `content`")
    position = value.get("position")
    if isinstance(position, int) and not 0 <= position <= POSITION_MAX:
        raise MemError(Errno.EINVAL, f"a position is within 0..{POSITION_MAX}")
    return Turn(
        text=_text(value.get("content", value.get("text"))),
        producer=next((str(value[key]) for key in _PRODUCERS if value.get(key)), ""),
        event_time_ns=_time_ns(value),
        session=str(value.get("session") or ""),
        position=position if isinstance(position, int) else None,
        attributes={key: item for key, item in value.items() if _is_kept(key, item)},
        tags=tuple(map(str, _list(value.get("tags")))),
    )


def _is_kept(key: str, item: Any) -> bool:
    """What else a message says of itself; not the calls of tools and vectors that hang on it."""
    if key in _READ or (isinstance(item, int) and abs(item) >= 1 << 63):
        return False
    return isinstance(item, int | float) or (isinstance(item, str) and len(item) <= _ATTRIBUTE_MAX)


def _text(content: Any) -> str:
    """What was said; of parts (text, pictures, ...) the texts."""
    if isinstance(content, str):
        return content
    texts = (part.get("text") if isinstance(part, dict) else part for part in _list(content))
    return "\n".join(text for text in texts if isinstance(text, str))


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _time_ns(value: dict[str, Any]) -> int:
    """Errors: EINVAL (a text that is no time, a time that no header holds)."""
    time = next((value[key] for key in _TIMES if value.get(key)), None)
    if isinstance(time, str):
        time_ns = _iso_ns(time)
    elif isinstance(time, int | float):
        time_ns = int(time * (1_000_000 if abs(time) > _MILLISECONDS else 1_000_000_000))
    else:
        return 0
    if not -(1 << 63) <= time_ns < 1 << 63:
        raise MemError(Errno.EINVAL, f"{time!r} is not within the years 1678 to 2261")
    return time_ns


def _iso_ns(time: str) -> int:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise MemError(Errno.EINVAL, f"{time!r} is no time in ISO 8601") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    # In whole microseconds: a float of seconds has lost some of them.
    since = moment - datetime.fromtimestamp(0, UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
