"""Namespaces: ownership, and the account of what each holds on disk.

All namespaces are in memory (there are few); their rows follow with the commit that changes
them. Disk bytes are charged before a payload is stored and never exceed the namespace's quota,
the `max` of the control groups that the cube is in, nor the tier's budget, bytes reserved by
writes under way included. Kernel thread only.
"""

from collections import Counter
from collections.abc import Container, Iterator
from typing import Final, NamedTuple

import msgspec

from libmem.abi.control import Limits
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import NamespaceStat, Quota, Usage
from memosd.kernel.access import READ, WRITE, Identity, allows
from memosd.kernel.control import Control, Group, with_max
from memosd.kernel.ledger import Ledger
from memosd.kernel.ports import Store
from memosd.kernel.protection import Sums
from memosd.kernel.rows import NamespaceRow, decode_row, encode_row

__all__ = ["Namespace", "Namespaces", "Promise"]

_NEXT_KEY: Final = b"next_namespace"
"""Numbers are not given twice: what still refers to a removed namespace must not meet a new one."""


class Namespace:
    """One namespace in memory."""

    __slots__ = ("changes", "cubes", "disk_bytes", "group", "id", "reserved_bytes", "row")

    def __init__(self, number: int, row: NamespaceRow) -> None:
        self.id = number
        self.row = row
        self.group = Group(number, row.name, space=number, parent=None)
        """Its control group, whose `max` is its quota."""
        self.disk_bytes = row.usage.disk_bytes
        self.cubes = row.usage.cubes
        self.changes = 0
        """Of the account, so far: who adds it up over several turns sees whether it stood still."""
        self.reserved_bytes = 0
        """Promised to writes under way; not durable."""

    @property
    def key(self) -> bytes:
        return self.id.to_bytes(4, "big")

    def allows(self, who: Identity, wanted: int) -> bool:
        return allows(who, (self.row.uid, self.row.gid), self.row.mode, wanted)

    def require(self, who: Identity, wanted: int) -> None:
        """Errors: EACCES."""
        row = self.row
        if not allows(who, (row.uid, row.gid), row.mode, wanted):
            verb = "list" if wanted & READ else "change" if wanted & WRITE else "enter"
            raise MemError(Errno.EACCES, f"may not {verb} the namespace", namespace=row.name)


class Promise(NamedTuple):
    """Bytes reserved for a write under way."""

    space: Namespace
    folders: tuple[Group, ...]
    """Control groups that hold it, below the namespace's."""
    disk_bytes: int


class Namespaces:
    """All namespaces, by name and by number."""

    def __init__(self, ledger: Ledger, store: Store, budget_bytes: int) -> None:
        self._ledger = ledger
        self._store = store
        self.control = Control(ledger, store)
        self.budget_bytes = budget_bytes
        self._by_name: dict[str, Namespace] = {}
        self._by_id: dict[int, Namespace] = {}
        self._dirty: set[int] = set()
        self.damaged: set[int] = set()
        """Numbers whose rows cannot be read: their cubes are out of reach until they are mended."""
        self.used_bytes = 0
        self._reserved_bytes = 0
        self.refusals: Counter[int] = Counter()
        """Control group -> writes refused because it holds as much on disk as it may."""
        self._reload()
        ledger.before_stage.append(self._write_back)
        ledger.on_rollback.append(lambda _error: self._reload())

    def __iter__(self) -> Iterator[Namespace]:
        return iter(sorted(self._by_name.values(), key=lambda space: space.row.name))

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str) -> Namespace:
        """Errors: ENOENT."""
        space = self._by_name.get(name)
        if space is None:
            raise MemError(Errno.ENOENT, "no such namespace", namespace=name)
        return space

    def get(self, name: str) -> Namespace | None:
        return self._by_name.get(name)

    def by_id(self, number: int) -> Namespace:
        """Errors: ECORRUPT: a row names a namespace that is not there."""
        space = self._by_id.get(number)
        if space is None:
            raise MemError(Errno.ECORRUPT, "a cube's namespace is missing", namespace_id=number)
        return space

    def owned_by(self, uid: int) -> int:
        return sum(space.row.uid == uid for space in self._by_name.values())

    def add(self, row: NamespaceRow) -> Namespace:
        """Errors: EEXIST."""
        if row.name in self._by_name:
            raise MemError(Errno.EEXIST, "the namespace exists", namespace=row.name)
        below = row.name.encode() + b"/"
        if next(self._ledger.scan("names", below, below), None) is not None:
            # It would open to its maker what the damaged one protected.
            raise MemError(Errno.EEXIST, "a damaged namespace had that name", namespace=row.name)
        space = Namespace(self.next_number(), row)
        self._by_name[row.name] = self._by_id[space.id] = space
        self.control.attach(space)
        self._grant(space)
        self._touch(space)
        return space

    def next_number(self) -> int:
        """For a namespace or a control group; never given before."""
        number = self._next_number
        self._next_number += 1
        self._ledger.put("meta", _NEXT_KEY, self._next_number.to_bytes(4, "big"))
        return number

    def remove(self, space: Namespace) -> None:
        """Errors: ENOTEMPTY; EBUSY while a write into it is under way."""
        if space.cubes:
            raise MemError(Errno.ENOTEMPTY, f"the namespace holds {space.cubes} cubes")
        if space.reserved_bytes:
            raise MemError(Errno.EBUSY, "a write into the namespace is under way")
        del self._by_name[space.row.name], self._by_id[space.id]
        self.control.remove_space(space)
        self._dirty.discard(space.id)
        self._ledger.delete("namespaces", space.key)

    def set_quota(self, space: Namespace, quota: Quota, ram_used: int) -> None:
        """Errors: EDQUOT when the namespace already holds more; EINVAL."""
        held = {
            "disk_bytes": space.disk_bytes + space.reserved_bytes,
            "ram_bytes": ram_used,
            "cubes": space.cubes,
        }
        for field, used in held.items():
            ceiling = getattr(quota, field)
            if ceiling < 0:
                raise MemError(Errno.EINVAL, f"quota {field} is negative")
            if ceiling and used > ceiling:
                raise MemError(
                    Errno.EDQUOT, f"holds more {field} already", need_bytes=used, free_bytes=ceiling
                )
        space.row = msgspec.structs.replace(space.row, quota=quota)
        self._grant(space)
        self._touch(space)

    def grant(self, space: Namespace, limits: Limits, ram_used: int) -> None:
        """Set the limits of its control group; `max` of RAM and disk are its quota.

        Errors: EDQUOT when the namespace already holds more; EINVAL.
        """
        quota = msgspec.structs.replace(
            space.row.quota, ram_bytes=limits.ram.max_bytes, disk_bytes=limits.disk.max_bytes
        )
        self.set_quota(space, quota, ram_used)
        self.control.set_stored(space.group, with_max(with_max(limits, "ram", 0), "disk", 0))
        self._grant(space)

    def _grant(self, space: Namespace) -> None:
        """Its group's limits: the row of the group, and the quota."""
        limits = self.control.stored_limits(space.row.name)
        limits = with_max(limits, "ram", space.row.quota.ram_bytes)
        space.group.limits = with_max(limits, "disk", space.row.quota.disk_bytes)

    # -- the account -------------------------------------------------------------------------

    def check_room(self, space: Namespace, name: str, need_bytes: int, cubes: int = 0) -> None:
        """Would this fit, for a cube of that name? Errors: EDQUOT (namespace or control group),
        ENOSPC (tier), with need and free bytes."""
        quota = space.row.quota
        held = space.disk_bytes + space.reserved_bytes
        if need_bytes > 0 and quota.disk_bytes and held + need_bytes > quota.disk_bytes:
            self.refusals[space.id] += 1
            raise MemError(
                Errno.EDQUOT,
                "the namespace's disk quota is exhausted",
                need_bytes=need_bytes,
                free_bytes=max(0, quota.disk_bytes - held),
            )
        if cubes > 0 and quota.cubes and space.cubes + cubes > quota.cubes:
            raise MemError(
                Errno.EDQUOT, "the namespace holds as many cubes as it may", cubes=space.cubes
            )
        if need_bytes > 0:
            self._check_groups(space, name, need_bytes)
        free = self.budget_bytes - self.used_bytes
        if need_bytes > free:
            raise MemError(
                Errno.ENOSPC,
                "the disk tier's budget is exhausted",
                need_bytes=need_bytes,
                free_bytes=max(0, free),
            )

    def _check_groups(self, space: Namespace, name: str, need_bytes: int) -> None:
        """Errors: EDQUOT."""
        for group in self.control.group_of(space, name).lineage:
            max_bytes = group.limits.disk.max_bytes
            held = self.disk_held(group)
            if max_bytes and group is not space.group and held + need_bytes > max_bytes:
                self.refusals[group.number] += 1
                raise MemError(
                    Errno.EDQUOT,
                    "a control group holds as much on disk as it may",
                    group=group.path,
                    need_bytes=need_bytes,
                    free_bytes=max(0, max_bytes - held),
                )

    def full_group(self, space: Namespace, name: str, need_bytes: int) -> Group | None:
        """The first control group, from a cube's own upwards, that has no room for it on disk."""
        for group in self.control.group_of(space, name).lineage:
            max_bytes = group.limits.disk.max_bytes
            if max_bytes and self.disk_held(group) + need_bytes > max_bytes:
                return group
        return None

    def disk_held(self, group: Group) -> int:
        """What a control group holds on disk, bytes reserved by writes under way included."""
        if group.is_folder:
            return group.disk_bytes + group.reserved_bytes
        space = self._by_id.get(group.number)
        return space.disk_bytes + space.reserved_bytes if space is not None else self.used_bytes

    def disk_sums(self, numbers: Container[int]) -> Sums:
        """What groups hold on disk; those of these numbers may be reclaimed from."""
        groups = list(self.control.root.subtree())
        used = {group.number: self.disk_held(group) for group in groups}
        own = {
            group.number: max(0, used[group.number] - sum(used[n] for n in group.children))
            for group in groups
        }
        within = {group.number: group for group in groups if group.number in numbers}
        return Sums("disk", self.budget_bytes, within, own, used)

    def reserve(self, space: Namespace, name: str, need_bytes: int) -> Promise:
        """Promise bytes to a write under way; `release` them in any case. Errors as above."""
        self.check_room(space, name, need_bytes)
        lineage = self.control.group_of(space, name).lineage
        promise = Promise(space, tuple(each for each in lineage if each.is_folder), need_bytes)
        self._reserve(promise, need_bytes)
        return promise

    def release(self, promise: Promise) -> None:
        self._reserve(promise, -promise.disk_bytes)

    def _reserve(self, promise: Promise, more_bytes: int) -> None:
        promise.space.reserved_bytes += more_bytes
        for folder in promise.folders:
            folder.reserved_bytes += more_bytes
        self._reserved_bytes += more_bytes
        self.used_bytes += more_bytes

    def charge(self, space: Namespace, name: str, disk_bytes: int, cubes: int = 0) -> None:
        """Book bytes and cubes of a cube of that name, negative to give back; follows with this
        commit."""
        self.control.book(self.control.group_of(space, name), name, disk_bytes)
        space.changes += 1
        space.disk_bytes += disk_bytes
        space.cubes += cubes
        self.used_bytes += disk_bytes
        self._touch(space)

    def move(self, old: tuple[Namespace, str], new: tuple[Namespace, str], disk_bytes: int) -> None:
        """Book one cube from one namespace and name to another. Errors: EDQUOT; then nothing
        moved."""
        self.charge(*old, -disk_bytes, cubes=-1)
        try:
            self.check_room(*new, disk_bytes, cubes=1)
        except MemError:
            self.charge(*old, disk_bytes, cubes=1)
            raise
        self.charge(*new, disk_bytes, cubes=1)

    def stat(self, space: Namespace, ram_used: int) -> NamespaceStat:
        self._ledger.get("namespaces", space.key)  # the answer waits for what it shows
        row = space.row
        return NamespaceStat(
            name=row.name,
            owner_uid=row.uid,
            owner_gid=row.gid,
            mode=row.mode,
            created_ns=row.created_ns,
            quota=row.quota,
            usage=Usage(disk_bytes=space.disk_bytes, ram_bytes=ram_used, cubes=space.cubes),
        )

    # -- durable rows --------------------------------------------------------------------------

    def _touch(self, space: Namespace) -> None:
        # The answer that follows depends on this commit, though the row is written at its end.
        if space.id in self._dirty:
            self._ledger.touch()
            return
        self._dirty.add(space.id)
        self._ledger.put("namespaces", space.key, b"")

    def _write_back(self) -> None:
        for number in self._dirty:
            space = self._by_id[number]
            usage = Usage(disk_bytes=space.disk_bytes, cubes=space.cubes)
            space.row = msgspec.structs.replace(space.row, usage=usage)
            self._ledger.put("namespaces", space.key, encode_row(space.key, space.row))
        self._dirty.clear()

    def _reload(self) -> None:
        """Take everything from the last commit again.

        Objects and their reservations stay: writes under way hold on to both.
        """
        known = self._by_id
        self._by_name, self._by_id = {}, {}
        self._dirty.clear()
        self.damaged.clear()
        # Not the sum over `known`: a namespace whose making failed may still hold a promise.
        self.used_bytes = self._reserved_bytes
        self._next_number = int.from_bytes(self._store.get("meta", _NEXT_KEY) or b"\0\0\0\1", "big")
        for key, value in self._store.scan("namespaces", b""):
            number = int.from_bytes(key, "big")
            self._next_number = max(self._next_number, number + 1)
            try:
                row = decode_row(NamespaceRow, "namespaces", key, value)
            except MemError:
                self.damaged.add(number)
                continue
            space = known.get(number) or Namespace(number, row)
            space.row, space.cubes = row, row.usage.cubes
            space.disk_bytes = row.usage.disk_bytes
            space.changes += 1
            self._by_name[row.name] = self._by_id[number] = space
            self.used_bytes += space.disk_bytes
        self.control.reload(self._by_id.values())
        self._next_number = max(self._next_number, self.control.highest_number + 1)
        for space in self._by_id.values():
            self._grant(space)
