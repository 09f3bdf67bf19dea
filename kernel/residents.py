"""Residents: the payloads in the RAM tier, who holds them, and their place in the order.

Invariants: one frame per resident payload, charged to the control group its cube is in; what is
pinned, mapped or read is held under the policy, so never a victim, nor is what is being written
back. Kernel thread only.
"""

import heapq
from collections.abc import Iterator, Sequence

from libmem.abi.digest import Manifest
from memosd.kernel.accounts import TierAccount
from memosd.kernel.control import Group
from memosd.kernel.governance import Weight
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
        "interval_bytes",
        "is_cold",
        "is_orphan",
        "is_passing",
        "is_sequential",
        "key",
        "manifest",
        "maps",
        "parent",
        "pins",
        "restore_s",
        "since_ns",
        "stores",
        "used_at",
        "weight",
    )

    def __init__(self, cube_id: bytes, key: PayloadKey, frame: Frame, group: Group) -> None:
        self.cube_id = cube_id
        self.key = key
        self.frame = frame
        self.group = group
        """What it is charged to."""
        self.charged_bytes = 0
        self.weight = Weight()
        """By its cube's header."""
        self.restore_s = 0.0
        """What it would take to bring it back; 0: not known."""
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
        self.stores = 0
        """Write-back under way: it may not go meanwhile, but that is no use of it."""
        self.is_orphan = False
        """Unlinked; goes with its last holder."""
        self.is_sequential = False
        """Whoever lets go of it is done with it."""
        self.is_cold = False
        """As `is_sequential`, for those who hold it now."""
        self.is_passing = False
        """Admitted because it had to be mapped; the first to go again."""
        self.since_ns = 0
        """Came into RAM then, by the wall clock."""
        self.used_at = 0
        """When it was used last, in bytes used (`workingset.py`)."""
        self.interval_bytes = 0
        """Between its last two uses; 0: not known."""

    @property
    def is_dirty(self) -> bool:
        return self.manifest is not None

    @property
    def is_used(self) -> bool:
        return bool(self.pins or self.maps or self.busy)

    @property
    def is_held(self) -> bool:
        return self.is_used or bool(self.stores)

    def entry(self) -> Entry:
        """What the policy may know of it."""
        return Entry(
            key=self.key,
            size_bytes=self.charged_bytes,
            group=self.group.number,
            priority=self.weight.priority,
            parent=self.parent,
            restore_s=self.restore_s,
            half_life_s=self.weight.half_life_s,
            expires_s=self.weight.expires_s,
        )


class Residents:
    """All residents, and their place in the policy's order."""

    def __init__(self, account: TierAccount, policy: Policy) -> None:
        self.account = account
        self.policy = policy
        self.hits = 0
        """Uses that found the payload in RAM."""
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
        """Forget it; the caller frees the frame, and then its charge. `is_reclaim`: it may come
        back."""
        assert not resident.is_held, "a held payload is never a victim"
        del self._by_key[resident.key]
        if is_reclaim:
            self.policy.evict(resident.key)
            self.account.count_reclaim(resident.group)
        else:
            self.policy.remove(resident.key)

    def set_apart(self, resident: Resident) -> None:
        """It is found no more, but charged until its last holder lets go."""
        del self._by_key[resident.key]
        self.policy.remove(resident.key)
        resident.is_orphan = True

    def hold(self, resident: Resident, kind: str) -> None:
        """`kind`: pins, maps, busy or stores."""
        if kind != "stores" and not resident.is_used:
            self.policy.hold(resident.key)
        setattr(resident, kind, getattr(resident, kind) + 1)

    def let_go(self, resident: Resident, kind: str) -> None:
        setattr(resident, kind, getattr(resident, kind) - 1)
        if kind == "stores" or resident.is_used or resident.is_orphan:
            return
        self.policy.release(resident.key)
        if resident.is_sequential or resident.is_passing or resident.is_cold:
            resident.is_cold = False
            self.policy.cool(resident.key)

    def cool(self, resident: Resident) -> None:
        """It is not expected to be used again, once whoever holds it now has let go."""
        resident.is_cold = resident.is_used
        self.policy.cool(resident.key)

    def switch(self, policy: Policy) -> None:
        """Put another policy in charge: it learns of all, those first who would have gone first."""
        order = {each.key: each for each in self.victims(self.account.groups())}
        order.update({each.key: each for each in self if not each.is_orphan})
        for resident in order.values():
            policy.insert(resident.entry())
            if resident.is_used:
                policy.hold(resident.key)
        self.policy = policy

    def reweigh(self, key: PayloadKey, weight: Weight) -> None:
        """The header of its cube changed."""
        resident = self._by_key.get(key)
        if resident is not None and resident.weight != weight:
            resident.weight = weight
            self._update(resident)

    def reprice(self, resident: Resident, restore_s: float) -> None:
        """It would take another time to bring it back."""
        resident.restore_s = restore_s
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
            resident = self._by_key[candidate.key]
            if not resident.stores:  # few are, and briefly
                yield resident

    def victims_by_level(
        self, root: Group | None, charger: Group | None = None, taken: Sequence[Resident] = ()
    ) -> Iterator[Resident]:
        """Whom to reclaim for a control group at its ceiling, or for the tier's sake (None), best
        first. `charger`: as for `TierAccount.reclaim_levels`. `taken`: those of them that will go;
        as the caller adds to it, groups come to what is protected and give no more."""
        levels = self.account.reclaim_levels(root, charger)
        if len(levels) == 1:
            yield from self.victims(levels[0])
            return
        seen: set[PayloadKey] = set()  # a group may stand in several levels
        counted = 0
        for nth in range(len(levels)):
            for victim in self.victims(levels[nth]):
                if len(taken) > counted:
                    counted = len(taken)
                    going = [(each.group, each.charged_bytes) for each in taken]
                    levels = self.account.reclaim_levels(root, charger, going)
                if victim.key not in seen and victim.group.number in levels[nth]:
                    seen.add(victim.key)
                    yield victim

    def held_bytes(self) -> int:
        return sum(r.charged_bytes for r in self._by_key.values() if r.is_held)

    def dirty_bytes(self) -> int:
        return sum(r.charged_bytes for r in self._by_key.values() if r.is_dirty)
