"""JSON files: one value, a list of records, or one record in each line. Pure functions."""

from collections.abc import Iterator
from typing import Any

import msgspec

from libmem.abi.errors import Errno, MemError

__all__ = ["parsed", "records"]


def parsed(text: str, name: str) -> Any:
    """The value of a JSON file; of one with a value in each line the list of them.

    Errors: EILSEQ, with the line where there are several.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise MemError(Errno.EILSEQ, f"{name}: not JSON: {error}") from None
    return list(_values(text, name))


def _values(text: str, name: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise MemError(Errno.EILSEQ, f"{name}: line {number} is no JSON: {error}") from None


def records(value: Any) -> Iterator[tuple[str, str]]:
    """(media type, text) of each record; a string is a text, everything else stays JSON."""
    for record in value if isinstance(value, list) else [value]:
        if isinstance(record, str):
            yield "", record
        elif record not in (None, {}, []):
            yield "application/json", msgspec.json.encode(record).decode()
