"""Requests about namespaces and what they list."""

from libmem.abi.calls.base import Call, Done
from libmem.abi.structs import NamespaceStat, Quota, Stat, Value

__all__ = [
    "MakeNamespace",
    "Readdir",
    "ReaddirReply",
    "RemoveNamespace",
    "SetQuota",
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
