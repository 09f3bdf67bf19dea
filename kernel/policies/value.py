"""What a payload is worth by what is known of it beforehand."""

from typing import Final

from memosd.kernel.policies.policy import Entry

__all__ = ["cost_density"]

_SEEK_S: Final = 1e-4
_BYTE_S: Final = 1e-9
"""Where the cost model says nothing: a disk of a gigabyte a second."""


def cost_density(entry: Entry) -> float:
    """Seconds to bring it back for each byte that it takes."""
    size_bytes = max(1, entry.size_bytes)
    return (entry.restore_s or _SEEK_S + size_bytes * _BYTE_S) / size_bytes
