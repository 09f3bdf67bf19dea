"""Header groups: what their free fields may hold. Pure functions."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import (
    ATTRIBUTES_DEPTH_MAX,
    ATTRIBUTES_MAX_BYTES,
    POSITION_MAX,
    TAGS_MAX,
    TEXT_FIELD_MAX_BYTES,
)
from libmem.abi.structs import Descriptive
from libmem.abi.wire import encode

__all__ = ["PLAIN_DESCRIPTIVE", "check_fixed", "check_header"]

PLAIN_DESCRIPTIVE: Final = Descriptive()


def check_header(descriptive: Descriptive, attributes: dict[str, Any]) -> None:
    """Sizes of the free fields. Errors: EINVAL."""
    if attributes:
        _check_depth(attributes)
        if len(encode(attributes)) > ATTRIBUTES_MAX_BYTES:
            raise MemError(Errno.EINVAL, f"attributes have at most {ATTRIBUTES_MAX_BYTES} bytes")
    if descriptive == PLAIN_DESCRIPTIVE:
        return
    if len(descriptive.tags) > TAGS_MAX:
        raise MemError(Errno.EINVAL, f"a cube has at most {TAGS_MAX} tags")
    for text in (*descriptive.tags, *_texts(descriptive)):
        if len(text.encode()) > TEXT_FIELD_MAX_BYTES:
            raise MemError(Errno.EINVAL, f"a header text has at most {TEXT_FIELD_MAX_BYTES} bytes")
    for field in ("event_time_ns", "valid_from_ns", "valid_to_ns"):
        if not -(1 << 63) <= getattr(descriptive, field) < 1 << 63:
            raise MemError(Errno.EINVAL, f"{field} is not a time")
    if not 0 <= descriptive.position <= POSITION_MAX:
        raise MemError(Errno.EINVAL, f"a position is within 0..{POSITION_MAX}")


def check_fixed(fixed: frozenset[str], old: dict[str, Any], new: dict[str, Any]) -> None:
    """Attributes that say what the payload is stay as they are. Errors: EINVAL."""
    for name in fixed:
        if old.get(name) != new.get(name):
            raise MemError(Errno.EINVAL, f"the attribute {name!r} describes the payload; it stays")


def _texts(descriptive: Descriptive) -> Iterator[str]:
    yield from (
        descriptive.title,
        descriptive.semantic_type,
        descriptive.origin,
        descriptive.producer,
        descriptive.media_type,
        descriptive.session,
        descriptive.superseded_by,
    )


def _check_depth(attributes: dict[str, Any]) -> None:
    """Level by level: recursion is what a deep value would exhaust. Errors: EINVAL."""
    level: list[Any] = [attributes]
    for _ in range(ATTRIBUTES_DEPTH_MAX):
        inner = [item for outer in level for item in _items(outer)]
        level = [item for item in inner if isinstance(item, dict | list | tuple)]
        if not level:
            return
    raise MemError(Errno.EINVAL, f"attributes are nested deeper than {ATTRIBUTES_DEPTH_MAX}")


def _items(outer: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterable[Any]:
    return chain(outer, outer.values()) if isinstance(outer, dict) else outer
