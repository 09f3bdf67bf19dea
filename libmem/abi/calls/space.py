"""Requests about namespaces and what they list."""

from libmem.abi.calls.base import Call, Done
from libmem.abi.control import GroupStat, Limits
from libmem.abi.structs import NamespaceStat, Quota, Stat, Value

__all__ = [
    "MakeNamespace",
    "Readdir",
    "ReaddirReply",
    "RemoveNamespace",
    "SetLimits",
    "SetQuota",
    "StatLimits",
    "StatLimitsReply",
    "StatNamespace",
]


class ReaddirReply(Value, frozen=True):
    entries: tuple[Stat, ...]
    folders: tuple[str, ...]
    namespaces: tuple[NamespaceStat, ...] = ()
    next_cursor: str = ""
    """Empty at the end; else pass it back as `cursor`."""


class Readdir(Call[ReaddirReply], frozen=True):
    path: str
    cursor: str = ""
    limit: int = 100
    is_recursive: bool = False


class MakeNamespace(Call[NamespaceStat], frozen=True):
    name: str
    mode: int | None = None
    """None: the configured default, 0700."""


class RemoveNamespace(Call[Done], frozen=True):
    name: str


class StatNamespace(Call[NamespaceStat], frozen=True):
    name: str


class SetQuota(Call[NamespaceStat], frozen=True):
    namespace: str
    quota: Quota


class SetLimits(Call[GroupStat], frozen=True):
    path: str
    """`/`, a namespace, or a folder below one."""
    limits: Limits
    """All of them; `Limits()` takes them away, and with them a folder's group."""


class StatLimitsReply(Value, frozen=True):
    groups: tuple[GroupStat, ...]
    """The one asked for, then those below it, by path."""
    next_cursor: str = ""
    """Empty at the end; else pass it back as `cursor`."""


class StatLimits(Call[StatLimitsReply], frozen=True):
    path: str
    is_recursive: bool = False
    cursor: str = ""
