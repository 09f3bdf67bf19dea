"""Bytes of files as text: by mark, as UTF-8, or as a Western 8-bit encoding. Pure functions.

Invariant: what is returned is valid Unicode without NUL, as memosd asks of every text.
"""

import codecs
from typing import Final

from libmem.abi.errors import Errno, MemError

__all__ = ["decoded"]

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as UTF-16's does: looked for first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS: Final = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")
"""Bytes that no text in an 8-bit encoding has."""
_SNIFF_BYTES: Final = 64 << 10


def decoded(payload: bytes, name: str) -> str:
    """The text of a file, with plain line ends. Errors: EILSEQ (it is no text)."""
    for mark, encoding in _MARKS:
        if payload.startswith(mark):
            return _strict(payload[len(mark) :], encoding, name)
    if not _CONTROLS.isdisjoint(payload[:_SNIFF_BYTES]):
        raise MemError(Errno.EILSEQ, f"{name}: binary, not text")
    try:
        return _checked(payload.decode(), name)
    except UnicodeDecodeError:
        pass
    try:
        return _checked(payload.decode("cp1252"), name)
    except UnicodeDecodeError:  # five bytes mean nothing there; each means something in Latin-1
        return _checked(payload.decode("latin-1"), name)


def _strict(payload: bytes, encoding: str, name: str) -> str:
    try:
        return _checked(payload.decode(encoding), name)
    except UnicodeDecodeError as error:
        raise MemError(
            Errno.EILSEQ, f"{name}: marked as {encoding}, but is not: {error.reason}"
        ) from None


def _checked(text: str, name: str) -> str:
    if "\0" in text:
        raise MemError(Errno.EILSEQ, f"{name}: binary, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")
