"""Handlers about namespaces and listings."""

from itertools import islice
from typing import Final

from libmem.abi import calls as c
from libmem.abi.control import GroupStat
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import READDIR_MAX
from libmem.abi.names import namespace_of, parse_namespace, parse_subtree
from libmem.abi.structs import EventKind, NamespaceStat, Quota, Stat, Usage
from memosd.kernel.access import EXECUTE, READ, require_owner
from memosd.kernel.control import Group
from memosd.kernel.dispatch import Context
from memosd.kernel.namespace import Namespace
from memosd.kernel.pagetable import Cube
from memosd.kernel.rows import EventRow, NamespaceRow

__all__ = [
    "sys_make_namespace",
    "sys_readdir",
    "sys_remove_namespace",
    "sys_set_limits",
    "sys_set_quota",
    "sys_stat_limits",
    "sys_stat_namespace",
]

_SCAN_MAX: Final = 2048
"""Names looked at per call, so that one listing cannot hold the kernel."""
_PAGE_MAX_BYTES: Final = 1 << 20
"""Headers may be large: a page ends with the row that exceeds this."""


def _stat(context: Context, space: Namespace) -> NamespaceStat:
    parts = context.kernel.parts
    return parts.namespaces.stat(space, parts.residents.account.used_by(space.group))


def _log(context: Context, space: Namespace) -> None:
    """Made, removed or given other ceilings: an event of the namespace's own."""
    parts, row = context.kernel.parts, space.row
    parts.table.log.append(
        EventRow(
            parts.clock.wall_ns(), EventKind.NAMESPACE, row.name, b"", 0, context.who.uid, "",
            row.uid, row.gid, row.mode, space.id,
        )
    )  # fmt: skip


def sys_make_namespace(context: Context, request: c.MakeNamespace) -> NamespaceStat:
    parts, who = context.kernel.parts, context.who
    parameters = parts.parameters
    name = parse_namespace(request.name)
    if not (parameters.anyone_makes_namespaces or who.is_admin):
        raise MemError(Errno.EPERM, "only the administrator makes namespaces here")
    mode = parameters.namespace_mode if request.mode is None else request.mode
    if not 0 <= mode <= 0o777:
        raise MemError(Errno.EINVAL, f"mode {mode:#o} is not within 0..0o777")
    owned = parts.namespaces.owned_by(who.uid)
    if owned >= parameters.namespaces_per_uid and not who.is_admin:
        raise MemError(Errno.EDQUOT, f"uid {who.uid} owns {owned} namespaces already")
    quota = Quota(
        disk_bytes=parameters.quota_disk_bytes,
        ram_bytes=parameters.quota_ram_bytes,
        cubes=parameters.quota_cubes,
    )
    row = NamespaceRow(name, who.uid, who.gid, mode, parts.clock.wall_ns(), quota, Usage())
    space = parts.namespaces.add(row)
    _log(context, space)
    return _stat(context, space)


def sys_remove_namespace(context: Context, request: c.RemoveNamespace) -> c.Done:
    namespaces = context.kernel.parts.namespaces
    space = namespaces.find(parse_namespace(request.name))
    require_owner(context.who, space.row.uid, "a namespace")
    namespaces.remove(space)
    _log(context, space)
    return c.Done()


def sys_stat_namespace(context: Context, request: c.StatNamespace) -> NamespaceStat:
    space = context.kernel.parts.namespaces.find(parse_namespace(request.name))
    space.require(context.who, EXECUTE)
    return _stat(context, space)


def sys_set_quota(context: Context, request: c.SetQuota) -> NamespaceStat:
    parts = context.kernel.parts
    space = parts.namespaces.find(parse_namespace(request.namespace))
    context.kernel.grants.check_quota(space, request.quota)
    parts.namespaces.set_quota(space, request.quota, parts.residents.account.used_by(space.group))
    _log(context, space)
    return _stat(context, space)


async def sys_set_limits(context: Context, request: c.SetLimits) -> GroupStat:
    grants, who = context.kernel.grants, context.who
    path = parse_subtree(request.path)
    space = grants.place(path)
    if space is not None and path != space.row.name:
        require_owner(who, space.row.uid, "the limits of a folder")
    elif not who.is_admin:
        raise MemError(Errno.EPERM, "only the administrator limits a whole namespace")
    group = await grants.set(path, request.limits)
    space = grants.place(path)
    if space is not None:
        _log(context, space)
    return grants.stat(group)


def sys_stat_limits(context: Context, request: c.StatLimits) -> c.StatLimitsReply:
    grants = context.kernel.grants
    control = context.kernel.parts.namespaces.control
    path = parse_subtree(request.path)
    space = grants.place(path)
    if space is not None:
        space.require(context.who, EXECUTE)
    group = control.find(path, space)
    if not request.is_recursive:
        return c.StatLimitsReply(groups=(grants.stat(group),))
    after = request.cursor.split("/") if request.cursor else []
    following = (each for each in group.subtree() if each.path.split("/") > after)
    seen = (each for each in following if each is group or _may_see(context, each))
    page = list(islice(seen, READDIR_MAX))
    cursor = page[-1].path if len(page) == READDIR_MAX else ""
    return c.StatLimitsReply(groups=tuple(map(grants.stat, page)), next_cursor=cursor)


def _may_see(context: Context, group: Group) -> bool:
    """As `readdir` has it: a namespace that one may enter, folders of one that one may list."""
    if not group.space:
        return True
    wanted = READ | EXECUTE if group.is_folder else EXECUTE
    return context.kernel.parts.namespaces.by_id(group.space).allows(context.who, wanted)


def sys_readdir(context: Context, request: c.Readdir) -> c.ReaddirReply:
    path = parse_subtree(request.path)
    if not 1 <= request.limit <= READDIR_MAX:
        raise MemError(Errno.EINVAL, f"limit is within 1..{READDIR_MAX}")
    if path == "/":
        return _namespaces(context)
    space = context.kernel.parts.namespaces.find(namespace_of(path))
    space.require(context.who, READ | EXECUTE)
    if request.cursor and not request.cursor.startswith(path + "/"):
        raise MemError(Errno.EINVAL, "that cursor belongs to another listing")
    return _Listing(context, path, request).run()


def _namespaces(context: Context) -> c.ReaddirReply:
    visible = [
        _stat(context, space)
        for space in context.kernel.parts.namespaces
        if space.allows(context.who, EXECUTE)
    ]
    return c.ReaddirReply(entries=(), folders=(), namespaces=tuple(visible))


class _Listing:
    """One page of a listing: cubes the caller may read, and the folders that hold any."""

    def __init__(self, context: Context, path: str, request: c.Readdir) -> None:
        self._context = context
        self._prefix = path + "/"
        self._request = request
        self._entries: list[Stat] = []
        self._folders: list[str] = []
        self._looked_at = 0
        self._size_bytes = 0

    def run(self) -> c.ReaddirReply:
        prefix = self._prefix.encode()
        start = _after(self._request.cursor) if self._request.cursor else prefix
        while True:
            stopped = self._take(start, prefix)
            if stopped is None:
                return self._reply("")
            if self._is_full():
                return self._reply(stopped)
            start = _after(stopped)

    def _take(self, start: bytes, prefix: bytes) -> str | None:
        """Take cubes up to the first folder or the page's end; where it stopped, None at the
        listing's end."""
        table = self._context.kernel.parts.table
        for name, value in table.scan_names(start, prefix):
            self._looked_at += 1
            folder = self._folder(name)
            stat = self._readable(name, value)
            if stat is not None and folder is not None:
                self._folders.append(folder)
                return folder
            if stat is not None:
                self._entries.append(stat)
            if self._is_full():
                return name
        return None

    def _folder(self, name: str) -> str | None:
        end = -1 if self._request.is_recursive else name.find("/", len(self._prefix))
        return None if end < 0 else name[: end + 1]

    def _readable(self, name: str, value: bytes) -> Stat | None:
        kernel = self._context.kernel
        try:
            cube_id = kernel.parts.table.opened_id(name, value)
            row, size_bytes = kernel.parts.table.sized_row(cube_id)
        except MemError:
            return None  # damaged: fsck reports it, a listing goes on
        if row is None or not kernel.cubes.may_read(self._context.who, row):
            return None
        self._size_bytes += size_bytes
        return self._context.describe(Cube(cube_id, row, row.current))

    def _is_full(self) -> bool:
        taken = len(self._entries) + len(self._folders)
        return (
            taken >= self._request.limit
            or self._looked_at >= _SCAN_MAX
            or self._size_bytes >= _PAGE_MAX_BYTES
        )

    def _reply(self, cursor: str) -> c.ReaddirReply:
        return c.ReaddirReply(
            entries=tuple(self._entries), folders=tuple(self._folders), next_cursor=cursor
        )


def _after(cursor: str) -> bytes:
    """The key to go on from: behind a name, or behind all of a folder (it ends in "/").

    0xFF is no byte of UTF-8, so it sorts behind every name below the folder.
    """
    return cursor.encode() + (b"\xff" if cursor.endswith("/") else b"\0")
