"""How deep JSON nests, found without building an object or a stack.

Pure, any thread; called by the top half, on a payload whose grammar it has checked. The work goes
by slices in Python, so other threads get the interpreter in between. 64 MiB of records take about
half a second.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

__all__ = ["is_deeper"]

_SLICE_BYTES: Final = 64 << 10
_BLOCK: Final = 64
"""Brackets at a time: most blocks cannot reach the limit from where they begin, whatever order
their brackets have, and then to count them is enough."""

_OTHERS: Final = bytes(set(range(256)).difference(b"[]{}"))
_STEPS: Final = tuple(1 if byte in b"[{" else -1 for byte in range(256))


def is_deeper(view: memoryview, limit: int) -> bool:
    """Whether arrays and objects of `view`, which is good JSON, lie more than `limit` deep."""
    if len(view) <= 2 * limit:  # many a write: not even brackets alone would get there
        return False
    depth = 0
    for brackets in _brackets(view):
        for at in range(0, len(brackets), _BLOCK):
            block = brackets[at : at + _BLOCK]
            opened = block.count(b"[") + block.count(b"{")
            if depth + opened > limit and _peak(block, depth) > limit:
                return True
            depth += 2 * opened - len(block)
    return False


def _peak(brackets: bytes, depth: int) -> int:
    return max(accumulate(map(_STEPS.__getitem__, brackets), initial=depth))


def _brackets(view: memoryview) -> Iterator[bytes]:
    """The brackets that are in no string, in order."""
    is_inside = False
    cut = b""
    for at in range(0, len(view), _SLICE_BYTES):
        text = cut + view[at : at + _SLICE_BYTES]
        # Pairs of backslashes first: what then stands before a quote escapes it.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        # An escape that the slice's end cuts in two belongs to the next slice.
        cut = b"\\" if text.endswith(b"\\") else b""
        parts = text.split(b'"')
        yield b"".join(parts[is_inside::2]).translate(None, _OTHERS)
        is_inside ^= len(parts) % 2 == 0
