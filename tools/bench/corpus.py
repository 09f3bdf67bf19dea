"""Real text to write: distinct English notes of an exact size, without a file to ship.

Cut from the language reference that every CPython carries for `help()`. Each note starts with
its number, which makes it distinct and findable, and goes on with a passage of the reference.
"""

import re
from functools import cache

__all__ = ["NOTE_MIN_BYTES", "note", "paragraphs", "reference"]

NOTE_MIN_BYTES = 32
"""Shorter notes would hold little but their number."""

# Prime to any corpus length that matters, so that neighbours have nothing in common.
_STRIDE = 7919


@cache
def reference() -> str:
    from pydoc_data.topics import topics

    prose = re.sub(r"[\W_]*\s[\W_]*", " ", " ".join(topics.values()))
    return prose.encode("ascii", "ignore").decode("ascii")


@cache
def paragraphs() -> tuple[str, ...]:
    """As they are written, one line each, always in this order: of 20 to 1,000 characters."""
    from pydoc_data.topics import topics

    found = (" ".join(text.split()) for page in topics.values() for text in page.split("\n\n"))
    return tuple(dict.fromkeys(text for text in found if 20 <= len(text) <= 1000))


def note(number: int, size_bytes: int) -> str:
    """Note `number`: ASCII, exactly `size_bytes` long, which is at least NOTE_MIN_BYTES."""
    text = reference()
    head = f"Note {number} "
    start = text.find(" ", number * _STRIDE % (len(text) - 2 * size_bytes)) + 1
    return head + text[start : start + size_bytes - len(head)]
