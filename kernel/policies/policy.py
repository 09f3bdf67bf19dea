"""What a reclaim policy is: an order over evictable payloads. It knows nothing of I/O.

The residents tell it what comes, what is used and what goes; it answers who should go first.
Only payloads that may be evicted are under it: whatever is pinned or mapped was removed and is
inserted again when let go.
"""

from collections.abc import Iterator
from typing import Protocol

from memosd.kernel.ports import PayloadKey

__all__ = ["Policy"]


class Policy(Protocol):
    """One file, one row in `policies/table.py`."""

    name: str

    def insert(self, key: PayloadKey, priority: int) -> None:
        """A payload became evictable, just used."""
        ...

    def touch(self, key: PayloadKey) -> None:
        """It was used; unknown keys are ignored."""
        ...

    def demote(self, key: PayloadKey) -> None:
        """It is not expected to be used again; unknown keys are ignored."""
        ...

    def remove(self, key: PayloadKey) -> None:
        """It went, or may not be evicted for now; unknown keys are ignored."""
        ...

    def candidates(self) -> Iterator[PayloadKey]:
        """Who should go, best first. The policy must not change while this is iterated."""
        ...
