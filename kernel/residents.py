"""Residents: the payloads in the RAM tier, who holds them, and their place in the order.

Invariants: one frame per resident payload, charged to the control group its cube is in; what is
pinned, mapped or being written back is held under the policy, so never a victim. Kernel thread
only.
"""

import heapq
from collections.abc import Iterator, Sequence

from libmem.abi.digest import Manifest
from memosd.kernel.accounts import TierAccount
from memosd.kernel.control import Group
from memosd.kernel.policies.policy import Entry, Policy
from memosd.kernel.ports import Coding, Frame, PayloadKey

__all__ = ["Resident", "Residents"]


class Resident:
    """A payload in RAM."""

    __slots__ = (
        "busy",
        "charged_bytes",
        "coding",
        "cube_id",
        "frame",
        "group",
        "is_orphan",
        "is_sequential",
        "key",
        "manifest",
        "maps",
        "parent",
        "pins",
        "priority",
    )

    def __init__(self, cube_id: bytes, key: PayloadKey, frame: Frame, group: Group) -> None:
        self.cube_id = cube_id
        self.key = key
        self.frame = frame
        self.group = group
        """What it is charged to."""
        self.charged_bytes = 0
        self.priority = 50
        self.parent: PayloadKey = b""
        """The payload it stands on; empty: none."""
        self.manifest: Manifest | None = None
        """Set while the payload is dirty: in RAM only, to be written back."""
        self.coding: Coding | None = None
        """What makes the form that it is to be written back in, if not its own."""
        self.pins = 0
        self.maps = 0
        self.busy = 0
        """I/O under way that reads the frame."""
        self.is_orphan = False
        """Unlinked; goes with its last holder."""
        self.is_sequential = False

    @property
    def is_dirty(self) -> bool:
        return self.manifest is not None

    @property
    def is_held(self) -> bool:
        return bool(self.pins or self.maps or self.busy)

    def entry(self) -> Entry:
        """What the policy may know of it."""
        return Entry(
            key=self.key,
            size_bytes=self.charged_bytes,
            group=self.group.number,
            priority=self.priority,
            parent=self.parent,
        )


class Residents:
    """All residents, and their place in the policy's order."""

    def __init__(self, account: TierAccount, policy: Policy) -> None:
        self.account = account
        self.policy = policy
        self._by_key: dict[PayloadKey, Resident] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Resident]:
        return iter(list(self._by_key.values()))

    def find(self, key: PayloadKey) -> Resident | None:
        return self._by_key.get(key)

    def add(self, resident: Resident) -> None:
        """Its bytes are charged already."""
        assert resident.key not in self._by_key, "one frame per resident payload"
        self._by_key[resident.key] = resident
        self.policy.insert(resident.entry())

    def drop(self, resident: Resident, *, is_reclaim: bool) -> None:
        """Forget it and give its bytes back; the caller frees the frame. `is_reclaim`: it may come
        back."""
        assert not resident.is_held, "a held payload is never a victim"
        del self._by_key[resident.key]
        if is_reclaim:
            self.policy.evict(resident.key)
            self.account.count_reclaim(resident.group)
        else:
            self.policy.remove(resident.key)
        self.account.release(resident.group, resident.charged_bytes)

    def set_apart(self, resident: Resident) -> None:
        """It is found no more, but charged until its last holder lets go."""
        del self._by_key[resident.key]
        self.policy.remove(resident.key)
        resident.is_orphan = True

    def hold(self, resident: Resident, kind: str) -> None:
        """`kind`: pins, maps or busy."""
        if not resident.is_held:
            self.policy.hold(resident.key)
        setattr(resident, kind, getattr(resident, kind) + 1)

    def let_go(self, resident: Resident, kind: str) -> None:
        setattr(resident, kind, getattr(resident, kind) - 1)
        if resident.is_held or resident.is_orphan:
            return
        self.policy.release(resident.key)
        if resident.is_sequential:
            self.policy.cool(resident.key)

    def reprioritise(self, key: PayloadKey, priority: int) -> None:
        resident = self._by_key.get(key)
        if resident is not None and resident.priority != priority:
            resident.priority = priority
            self._update(resident)

    def move(self, key: PayloadKey, group: Group) -> None:
        """Charge a resident to another control group. Errors: EDQUOT."""
        resident = self._by_key.get(key)
        if resident is None or resident.group.number == group.number:
            return
        self.account.move(resident.group, group, resident.charged_bytes)
        resident.group = group
        self._update(resident)

    def _update(self, resident: Resident) -> None:
        if not resident.is_orphan:
            self.policy.update(resident.entry())

    def victims(self, groups: Sequence[int]) -> Iterator[Resident]:
        """Evictable residents of these groups, best first."""
        orders = [self.policy.candidates(group) for group in groups]
        for candidate in heapq.merge(*orders):
            yield self._by_key[candidate.key]

    def held_bytes(self) -> int:
        return sum(r.charged_bytes for r in self._by_key.values() if r.is_held)

    def dirty_bytes(self) -> int:
        return sum(r.charged_bytes for r in self._by_key.values() if r.is_dirty)
