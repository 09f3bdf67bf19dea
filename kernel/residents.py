"""Residents: the payloads in the RAM tier, who holds them, and the bytes they are charged.

Invariants: one frame per resident payload; charged bytes never exceed the budget, nor a
namespace's RAM quota; what is pinned, mapped or being written back is held under the policy, so
never a victim. Kernel thread only.
"""

import heapq
from collections.abc import Iterator, Sequence

from libmem.abi.digest import Manifest
from libmem.abi.errors import Errno, MemError
from memosd.kernel.namespace import Namespace
from memosd.kernel.policies.policy import Entry, Policy
from memosd.kernel.ports import Coding, Frame, PayloadKey

__all__ = ["RamAccount", "Resident", "Residents"]


class Resident:
    """A payload in RAM."""

    __slots__ = (
        "busy",
        "charged_bytes",
        "coding",
        "cube_id",
        "frame",
        "is_orphan",
        "is_sequential",
        "key",
        "manifest",
        "maps",
        "parent",
        "pins",
        "priority",
        "space",
    )

    def __init__(self, cube_id: bytes, key: PayloadKey, frame: Frame, space: Namespace) -> None:
        self.cube_id = cube_id
        self.key = key
        self.frame = frame
        self.space = space
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
            group=self.space.id,
            priority=self.priority,
            parent=self.parent,
        )


class RamAccount:
    """Bytes and frames charged, in all and per namespace."""

    def __init__(self, budget_bytes: int, budget_frames: int) -> None:
        self.budget_bytes = budget_bytes
        self.budget_frames = budget_frames
        self.used_bytes = 0
        self.used_frames = 0
        self._by_space: dict[int, int] = {}

    def used_by(self, space: Namespace) -> int:
        return self._by_space.get(space.id, 0)

    def groups(self) -> list[int]:
        """Namespaces that are charged for anything."""
        return list(self._by_space)

    def reclaim_levels(self, space: Namespace | None) -> list[list[int]]:
        """Whom to reclaim from for a charge to a namespace that is at its ceiling, or for the
        tier's sake (None): all of a level before any of the next."""
        # By number: a namespace whose removal failed comes back as another object.
        return [self.groups() if space is None else [space.id]]

    def charge(self, space: Namespace, need_bytes: int) -> None:
        """The caller has made sure that it fits."""
        assert self.shortage(space, need_bytes) is None, "charged without room"
        self.used_bytes += need_bytes
        self.used_frames += 1
        self._by_space[space.id] = self.used_by(space) + need_bytes

    def release(self, space: Namespace, charged_bytes: int) -> None:
        self.used_bytes -= charged_bytes
        self.used_frames -= 1
        left = self.used_by(space) - charged_bytes
        if left:
            self._by_space[space.id] = left
        else:
            self._by_space.pop(space.id, None)

    def move(self, old: Namespace, new: Namespace, charged_bytes: int) -> None:
        """Charge a frame to another namespace. Errors: EDQUOT; then nothing moved."""
        self.release(old, charged_bytes)
        shortage = self.shortage(new, charged_bytes)
        self.charge(old if shortage else new, charged_bytes)
        if shortage:
            raise shortage

    def shrink(self, space: Namespace, bytes_less: int) -> None:
        """A charged frame got smaller."""
        self.used_bytes -= bytes_less
        self._by_space[space.id] = self.used_by(space) - bytes_less

    def can_ever_fit(self, space: Namespace, need_bytes: int) -> bool:
        """Were everything else out of the way."""
        return need_bytes <= min(self.budget_bytes, space.row.quota.ram_bytes or need_bytes)

    def shortage(self, space: Namespace, need_bytes: int) -> MemError | None:
        """Why a charge would not fit now: EDQUOT or ENOMEM, or None when it fits."""
        quota = space.row.quota.ram_bytes
        if quota and self.used_by(space) + need_bytes > quota:
            return MemError(
                Errno.EDQUOT,
                "the namespace's RAM quota is exhausted",
                need_bytes=need_bytes,
                free_bytes=max(0, quota - self.used_by(space)),
            )
        if self.used_bytes + need_bytes > self.budget_bytes:
            return MemError(
                Errno.ENOMEM,
                "the RAM tier's budget is exhausted",
                need_bytes=need_bytes,
                free_bytes=self.budget_bytes - self.used_bytes,
            )
        if self.used_frames >= self.budget_frames:
            return MemError(
                Errno.ENOMEM, "the RAM tier holds as many frames as it may", frames=self.used_frames
            )
        return None


class Residents:
    """All residents, and their place in the policy's order."""

    def __init__(self, account: RamAccount, policy: Policy) -> None:
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
        else:
            self.policy.remove(resident.key)
        self.account.release(resident.space, resident.charged_bytes)

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

    def move(self, key: PayloadKey, space: Namespace) -> None:
        """Charge a resident to another namespace. Errors: EDQUOT."""
        resident = self._by_key.get(key)
        if resident is None or resident.space.id == space.id:
            return
        self.account.move(resident.space, space, resident.charged_bytes)
        resident.space = space
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
