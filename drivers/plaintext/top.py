"""Top half of plaintext: UTF-8 text and JSON.

Owns nothing; any thread may call it. Invariant: a payload that passes decodes as UTF-8, holds no
NUL, and is one JSON value of bounded size and depth where its media type says JSON, so no reader
has to check again.
"""

import codecs
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Descriptive, Durability
from memosd.drivers.plaintext.nesting import is_deeper

__all__ = ["PlaintextDriver"]

_SLICE_BYTES: Final = 1 << 20
"""How much is decoded at a time: bounds memory and how long the interpreter lock is held."""

_INDEXED_BYTES: Final = 8 << 20
"""Of a longer text the index sees the beginning only: some 4,000 pages. Longer JSON is indexed as
it is written; as objects it would take ten times the memory."""

_JSON_MAX_BYTES: Final = 64 << 20
"""The grammar of JSON is checked in one go, and nobody else gets the interpreter meanwhile: this
much takes 0.04 to 0.4 s."""

_JSON_DEPTH_MAX: Final = 128
"""Far below what a recursive parser can take, ours or any reader's, on whatever stack it runs."""

_JSON: Final = msgspec.json.Decoder(msgspec.Raw)
"""Checks the grammar without building a single object."""

_OFFSET: Final = re.compile(r"\(byte (\d+)\)")


class PlaintextDriver:
    """Text: any `text/...` media type, JSON, or none at all, which means text/plain."""

    type: CubeType = CubeType.PLAINTEXT
    durability: Durability = Durability.DURABLE
    indexed_bytes: int = _INDEXED_BYTES + 1  # one more tells a text that is longer
    fixed_attributes: frozenset[str] = frozenset()
    prefixes: None = None

    def model_of(self, attributes: dict[str, Any]) -> str:
        """None's."""
        return ""

    def check_header(self, descriptive: Descriptive, attributes: dict[str, Any]) -> None:
        """Attributes are the writer's own. Errors: EINVAL (a media type that is no text)."""
        _is_json(descriptive)

    def check_payload(
        self, payload: memoryview | bytes, descriptive: Descriptive, attributes: dict[str, Any]
    ) -> None:
        """Errors: EINVAL as `check_header`; EILSEQ with `offset_bytes`: not UTF-8, a NUL (every
        C program would see another text), not one JSON value, or JSON more than 128 deep; EFBIG
        (more than 64 MiB of JSON)."""
        view = payload if type(payload) is bytes else memoryview(payload).cast("B")
        is_json = _is_json(descriptive)
        if is_json and len(view) > _JSON_MAX_BYTES:
            raise MemError(
                Errno.EFBIG,
                "JSON beyond the limit; as text/... it may be of any size",
                need_bytes=len(view),
                free_bytes=_JSON_MAX_BYTES,
            )
        _check_text(view)
        if is_json:
            _check_json(view)

    def is_new_promise(self, old: Descriptive, new: Descriptive) -> bool:
        """JSON is text; a text may be no JSON. Errors: EINVAL as `check_header`."""
        return _is_json(new) and not _is_json(old)

    def coding(self, attributes: dict[str, Any]) -> None:
        """Texts are stored as they are."""

    def index_text(self, payload: memoryview | bytes, descriptive: Descriptive) -> str | None:
        """Title, tags, then the text; of JSON its keys, strings and numbers.

        The payload, of which `indexed_bytes` are enough, has passed `check_payload`.
        """
        view = memoryview(payload).cast("B")
        # An incomplete last character of a shortened text is left out.
        text, _ = codecs.utf_8_decode(view[:_INDEXED_BYTES], "replace", False)
        if _is_json(descriptive) and len(view) <= _INDEXED_BYTES:
            text = _flattened(text)
        return "\n".join(filter(None, (descriptive.title, " ".join(descriptive.tags), text)))


def _is_json(descriptive: Descriptive) -> bool:
    """Errors: EINVAL when the media type is not one of text."""
    if not descriptive.media_type:  # nearly every text
        return False
    media_type = descriptive.media_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        return True
    if media_type and not media_type.startswith("text/"):
        raise MemError(
            Errno.EINVAL,
            "plaintext is text/... or JSON; other bytes are a blob",
            media_type=descriptive.media_type,
        )
    return False


def _check_text(view: memoryview | bytes) -> None:
    at = 0
    while at < len(view):
        is_last = at + _SLICE_BYTES >= len(view)
        try:
            # Consumes whole characters; one cut by the slice's end opens the next slice.
            text, used = codecs.utf_8_decode(view[at : at + _SLICE_BYTES], "strict", is_last)
        except UnicodeDecodeError as error:
            raise _refused(f"not UTF-8: {error.reason}", at + error.start) from None
        nul = text.find("\0")
        if nul >= 0:
            raise _refused("text holds no NUL", at + len(text[:nul].encode()))
        at += used


def _check_json(view: memoryview | bytes) -> None:
    try:
        _JSON.decode(view)
    except msgspec.DecodeError as error:
        reason = str(error)
        offset = _OFFSET.search(reason)
        raise _refused(reason, int(offset[1]) if offset else len(view)) from None
    except RecursionError:
        is_too_deep = True
    else:
        is_too_deep = is_deeper(memoryview(view), _JSON_DEPTH_MAX)
    if is_too_deep:
        raise _refused(f"JSON is nested more than {_JSON_DEPTH_MAX} deep", 0)


def _refused(reason: str, offset_bytes: int) -> MemError:
    return MemError(Errno.EILSEQ, reason, offset_bytes=offset_bytes)


def _flattened(text: str) -> str:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        # A number that no float or integer holds, or what an older store called JSON by a header
        # that nobody compared with the payload: the source has the same words.
        return text
    return "\n".join(_words(value))


def _words(value: Any) -> Iterator[str]:
    """Keys, strings and numbers in the order of the document, without recursion."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key, inner in reversed(item.items()):
                waiting += (inner, key)
        elif isinstance(item, list):
            waiting += reversed(item)
        elif item is not None and not isinstance(item, bool):
            yield str(item)
