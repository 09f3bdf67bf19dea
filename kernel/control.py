"""Control groups: the tree of subtrees that limits are set for, and what folders hold on disk.

A group is `/`, a namespace, or a folder below one that was given limits. A cube belongs to the
deepest group whose folder its name lies in; what it takes is charged there and to all above. A
group that was taken away may still be charged for something under way: it is part of what it was
in, without limits. Rows are durable and go back with the ledger. Kernel thread only.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import msgspec

from libmem.abi.control import Limits, TierLimits
from libmem.abi.errors import Errno, MemError
from memosd.kernel.ledger import Ledger
from memosd.kernel.ports import Store
from memosd.kernel.rows import GroupRow, decode_row, encode_row

__all__ = ["NO_LIMITS", "ROOT", "Control", "Group", "GroupSpace", "with_max"]

NO_LIMITS: Final = Limits()
ROOT: Final = 0
"""The number of `/`, which no namespace has."""
_FOLDERS_PER_SPACE: Final = 1024


class Group:
    """One node of the tree. Accounts go by its number: rows that come back make new objects."""

    __slots__ = (
        "__weakref__", "children", "counted_to", "disk_bytes", "is_folder", "limits", "lineage",
        "number", "path", "reserved_bytes", "space",
    )  # fmt: skip

    def __init__(self, number: int, path: str, *, space: int, parent: "Group | None") -> None:
        self.number = number
        self.path = path
        self.space = space
        """The number of its namespace; 0 for `/`."""
        self.is_folder = space != number
        self.limits = NO_LIMITS
        self.children: dict[int, Group] = {}
        self.lineage: tuple[Group, ...] = (self,)
        """Itself and what it lies in, up to `/`."""
        self.disk_bytes = 0
        """Of a folder. What a namespace holds is its own account."""
        self.reserved_bytes = 0
        """Of a folder: promised to writes under way; not durable."""
        self.counted_to: str | None = None
        """Of a folder: names before this one are in `disk_bytes`; None: all are."""
        if parent is not None:
            self.put_below(parent)

    def put_below(self, parent: "Group") -> None:
        """Make it, and nothing below it, part of `parent`."""
        self.lineage = (self, *parent.lineage)
        parent.children[self.number] = self

    @property
    def parent(self) -> "Group | None":
        return self.lineage[1] if len(self.lineage) > 1 else None

    def of(self, tier: str) -> TierLimits:
        limits: TierLimits = getattr(self.limits, tier)
        return limits

    def subtree(self) -> Iterator["Group"]:
        """Itself and all below, by path."""
        yield self
        for child in sorted(self.children.values(), key=lambda group: group.path.split("/")):
            yield from child.subtree()


class GroupSpace(Protocol):
    """What is asked of a namespace."""

    id: int
    group: Group


class Control:
    """The tree, its rows, and the account of its folders on disk."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self._ledger = ledger
        self._store = store
        self.root = Group(ROOT, "/", space=ROOT, parent=None)
        self._stored: dict[str, Limits] = {}
        """Path -> what its row grants, folders left out."""
        self._folders: dict[int, dict[str, Group]] = {}
        """Namespace -> path -> group."""
        self._gone: weakref.WeakSet[Group] = weakref.WeakSet()
        """Folders that have no limits any more but are charged for something under way."""
        self._dirty: dict[str, Group] = {}
        self.damaged: set[str] = set()
        """Paths whose rows cannot be read: their limits are not in force until set again."""
        self.highest_number = 0
        ledger.before_stage.append(self._write_back)

    # -- the tree ------------------------------------------------------------------------------

    def group_of(self, space: GroupSpace, name: str) -> Group:
        """The deepest group that a cube of this name is in."""
        folders = self._folders.get(space.id)
        if not folders:
            return space.group
        return _deepest(folders, name) or space.group

    def find(self, path: str, space: GroupSpace | None) -> Group:
        """The group of a path. Errors: ENOENT."""
        if space is None:
            return self.root
        group = space.group if path == space.group.path else self._folder(space.id, path)
        if group is None:
            raise MemError(Errno.ENOENT, "no limits are set for that folder", cube=path)
        return group

    def _folder(self, space: int, path: str) -> Group | None:
        return self._folders.get(space, {}).get(path)

    def folders(self) -> Iterator[Group]:
        for folders in self._folders.values():
            yield from folders.values()

    def attach(self, space: GroupSpace) -> None:
        """A namespace was made, or came back."""
        space.group.put_below(self.root)
        space.group.children.clear()

    def stored_limits(self, path: str) -> Limits:
        """What the row of a namespace, or of `/`, grants."""
        return self._stored.get(path, NO_LIMITS)

    def set_stored(self, group: Group, limits: Limits) -> None:
        """Of `/` or a namespace, whose quota is not part of its row."""
        self.damaged.discard(group.path)
        if limits == NO_LIMITS:
            self._stored.pop(group.path, None)
            self._ledger.delete("control", group.path.encode())
            return
        self._stored[group.path] = limits
        row = GroupRow(group.number, group.space, limits)
        self._put(group.path, row)

    def set_folder(self, space: GroupSpace, path: str, limits: Limits, number: int) -> Group:
        """Grant a folder something, or change that; `number`: for a group that is new.

        Errors: EDQUOT (too many folders of the namespace have limits).
        """
        folders = self._folders.setdefault(space.id, {})
        group = folders.get(path)
        if group is None:
            if len(folders) >= _FOLDERS_PER_SPACE:
                raise MemError(
                    Errno.EDQUOT, f"{_FOLDERS_PER_SPACE} folders of the namespace have limits"
                )
            group = folders[path] = Group(number, path, space=space.id, parent=None)
            group.counted_to = ""
            self.damaged.discard(path)
            self._link(space)
        group.limits = limits
        self._touch(group)
        return group

    def remove_folder(self, space: GroupSpace, group: Group) -> None:
        """What it is charged for belongs to what it was in."""
        del self._folders[space.id][group.path]
        group.limits = NO_LIMITS
        self._gone.add(group)
        self._dirty.pop(group.path, None)
        self._ledger.delete("control", group.path.encode())
        self._link(space)

    def remove_space(self, space: GroupSpace) -> None:
        """The namespace is gone, and with it all groups in it, damaged ones included."""
        path = space.group.path
        for folder in self._folders.pop(space.id, {}).values():
            folder.limits = NO_LIMITS
            self._dirty.pop(folder.path, None)
            self._gone.add(folder)
        self.root.children.pop(space.id, None)
        self._stored.pop(path, None)
        below = (path + "/").encode()
        rows = [key for key, _ in self._ledger.scan("control", below, below)]
        for key in [path.encode(), *rows]:
            self.damaged.discard(key.decode(errors="replace"))
            if self._ledger.get("control", key) is not None:
                self._ledger.delete("control", key)
        space.group.children.clear()

    def _link(self, space: GroupSpace) -> None:
        """Put every folder of a namespace below what it lies in."""
        folders = self._folders.get(space.id, {})
        space.group.children.clear()
        for group in folders.values():
            group.children.clear()
        for path in sorted(folders):
            folders[path].put_below(_deepest(folders, path) or space.group)
        for gone in self._gone:
            if gone.space == space.id:
                above = _deepest(folders, gone.path) or space.group
                gone.lineage = (gone, *above.lineage)

    # -- what folders hold on disk ---------------------------------------------------------------

    def book(self, group: Group, name: str, disk_bytes: int) -> None:
        """A cube takes so much more, or less; follows with this commit."""
        for folder in group.lineage:
            if folder.is_folder and (folder.counted_to is None or name < folder.counted_to):
                folder.disk_bytes += disk_bytes
                if folder.path in self._folders.get(folder.space, {}):
                    self._touch(folder)

    def count_on(self, group: Group, disk_bytes: int, counted_to: str | None) -> None:
        """A stretch of a folder was added up."""
        group.disk_bytes += disk_bytes
        group.counted_to = counted_to
        self._touch(group)

    def is_live(self, group: Group) -> bool:
        """Are its limits still in force?"""
        return self._folder(group.space, group.path) is group

    # -- durable rows ----------------------------------------------------------------------------

    def _put(self, path: str, row: GroupRow) -> None:
        key = path.encode()
        self._ledger.put("control", key, encode_row(key, row))

    def _touch(self, group: Group) -> None:
        if group.path in self._dirty:
            self._ledger.touch()
            return
        self._dirty[group.path] = group
        self._ledger.put("control", group.path.encode(), b"")

    def _write_back(self) -> None:
        for path, group in self._dirty.items():
            is_counted = group.counted_to is None
            disk_bytes = group.disk_bytes if is_counted else 0
            self._put(
                path, GroupRow(group.number, group.space, group.limits, disk_bytes, is_counted)
            )
        self._dirty.clear()

    def reload(self, spaces: Iterable[GroupSpace]) -> None:
        """Take everything from the last commit again; the namespaces did so before.

        Objects and their reservations stay: writes under way hold on to both.
        """
        by_number = {space.id: space for space in spaces}
        known = {group.number: group for group in self.folders()}
        self._folders, self._stored = {}, {}
        self._dirty.clear()
        self.damaged.clear()
        self.root.children.clear()
        for space in by_number.values():
            self.attach(space)
        for key, value in self._store.scan("control", b""):
            self._load(key, value, by_number, known)
        self._gone.update(group for group in known.values() if not self.is_live(group))
        for gone in self._gone:
            gone.limits = NO_LIMITS
        self.root.limits = self.stored_limits("/")
        for space in by_number.values():
            self._link(space)

    def _load(
        self, key: bytes, value: bytes, spaces: dict[int, GroupSpace], known: dict[int, Group]
    ) -> None:
        path = key.decode(errors="replace")  # of a damaged row, which is not read below
        try:
            row = decode_row(GroupRow, "control", key, value)
        except MemError:
            self.damaged.add(path)
            return
        self.highest_number = max(self.highest_number, row.number)
        if row.number == row.namespace:
            self._stored[path] = row.limits
        elif row.namespace in spaces:
            group = known.get(row.number) or Group(
                row.number, path, space=row.namespace, parent=None
            )
            group.limits = row.limits
            group.disk_bytes = row.disk_bytes
            group.counted_to = None if row.is_counted else ""
            self._folders.setdefault(row.namespace, {})[path] = group


def _deepest(folders: dict[str, Group], name: str) -> Group | None:
    """The deepest of the folders that a name lies in, itself left out."""
    end = name.rfind("/")
    while end > 0:
        group = folders.get(name[:end])
        if group is not None:
            return group
        end = name.rfind("/", 0, end)
    return None


def with_max(limits: Limits, tier: str, max_bytes: int) -> Limits:
    """The limits with another `max` of one tier."""
    changed = msgspec.structs.replace(getattr(limits, tier), max_bytes=max_bytes)
    return msgspec.structs.replace(limits, **{tier: changed})
