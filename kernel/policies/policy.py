"""What a reclaim policy is: an order over the payloads of one tier. It knows nothing of I/O.

The residents tell it what comes, what is used and what goes; it answers who should go first. All
payloads of the tier are under it, so that it may learn from every use; those that are held (pinned,
mapped, being read) are no candidates meanwhile.

Control groups (`Entry.group`) share one policy object: it answers for one group at a time, and the
ranks of its answers compare across groups, so whoever knows which groups may be reclaimed from
takes the lowest rank among theirs. Docs: docs/design/0008-scheduler.md.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import msgspec

from memosd.kernel.ports import PayloadKey

__all__ = ["Candidate", "Clock", "Entry", "Policy"]

Clock = Callable[[], float]
"""Seconds since any point, never backwards."""


class Entry(msgspec.Struct, frozen=True):
    """What a policy may know of a payload."""

    key: PayloadKey
    size_bytes: int
    """What it takes in the tier."""
    group: int = 0
    priority: int = 50
    """Of its cube's header, 0..100."""
    parent: PayloadKey = b""
    """The payload it stands on: without that it is of no use. Empty: none."""
    restore_s: float = 0.0
    """What it would take to bring it back, by the cost model; 0: not known."""
    half_life_s: float = 0.0
    """Of its cube's header: after so long without a use it is worth half; 0: the policy's own."""
    expires_s: float = 0.0
    """Of no use from then on, by the policy's clock; 0: never."""


class Candidate(NamedTuple):
    """One that may go. The lower the rank, the sooner; ranks of one policy object compare."""

    rank: tuple[float, ...]
    key: PayloadKey


class Policy(Protocol):
    """One file, one row in `policies/table.py`. Unknown keys are ignored everywhere."""

    name: str

    def insert(self, entry: Entry) -> None:
        """A payload came into the tier, just used and not held. One with that key is replaced."""
        ...

    def touch(self, key: PayloadKey) -> None:
        """It was used."""
        ...

    def cool(self, key: PayloadKey) -> None:
        """It is not expected to be used again."""
        ...

    def hold(self, key: PayloadKey) -> None:
        """It may not go for now."""
        ...

    def release(self, key: PayloadKey) -> None:
        """It may go again; it was in use until now."""
        ...

    def update(self, entry: Entry) -> None:
        """Something about it changed, but it was not used."""
        ...

    def evict(self, key: PayloadKey) -> None:
        """It was reclaimed; it may be remembered, should it come back."""
        ...

    def remove(self, key: PayloadKey) -> None:
        """It is gone for good, not by reclaim: nothing of it is remembered."""
        ...

    def candidates(self, group: int) -> Iterator[Candidate]:
        """Who of the group should go, best first. The policy must not change meanwhile."""
        ...

    def explain(self, key: PayloadKey) -> dict[str, float | str]:
        """The numbers that its place is due to, for people; empty where nothing is known."""
        ...
