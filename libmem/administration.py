"""What a client asks about the daemon as a whole, and what an administrator sets in it.

The half of `operations` that is about no single cube's contents; written in the same way.
"""

from typing import Final

from libmem.abi import calls as c
from libmem.abi.control import GroupStat, Limits
from libmem.abi.errors import Errno, MemError
from libmem.abi.state import SessionStat
from libmem.abi.structs import Decision, NamespaceStat, Quota
from libmem.methods import one_call, pages, steps
from libmem.steps import Items, Pages, Steps, paged

__all__ = ["Administration"]

_FSCK_CUBES: Final = 100


class Administration:
    """Why things lie where they do, who is there, namespaces and limits, the daemon itself."""

    @one_call
    def explain(self, name: str) -> c.Call[c.ExplainReply]:
        """Why a cube is where it is."""
        return c.Explain(name=name)

    @steps
    def log(self, limit: int = 100) -> Steps[tuple[tuple[str, Decision], ...]]:
        """The kernel's latest decisions as (cube name, decision), newest first."""
        reply: c.LogReply = yield c.Log(limit=limit)
        return reply.decisions

    @one_call
    def hottest(self, limit: int = 10) -> c.Call[c.HottestReply]:
        """The cubes that are used most just now."""
        return c.Hottest(limit)

    @one_call
    def set_policy(self, name: str) -> c.Call[c.PolicyStat]:
        """Put another reclaim policy in charge; for the administrator."""
        return c.SetPolicy(name)

    @one_call
    def info(self) -> c.Call[c.InfoReply]:
        """The daemon's state: tiers, budgets, sessions, counters."""
        return c.Info()

    @pages
    def sessions(self) -> Pages[SessionStat]:
        """The open sessions of one's own user; to the administrator all of them."""
        return paged(c.ListSessions, 0, lambda reply: (reply.sessions, reply.next_after))

    @pages
    def pins(self) -> Pages[c.PinStat]:
        """The pins of one's own user; to the administrator all of them."""
        return paged(c.ListPins, 0, lambda reply: (reply.pins, reply.next_after))

    # Namespaces

    @one_call
    def make_namespace(self, name: str, mode: int | None = None) -> c.Call[NamespaceStat]:
        """Make a namespace owned by the caller."""
        return c.MakeNamespace(name=name, mode=mode)

    @pages
    def namespaces(self) -> Pages[NamespaceStat]:
        """The namespaces that the caller may enter."""
        reply: c.ReaddirReply = yield c.Readdir("/")
        yield Items(reply.namespaces)

    @steps
    def remove_namespace(self, name: str) -> Steps[None]:
        """Remove an empty namespace."""
        yield c.RemoveNamespace(name=name)

    @one_call
    def stat_namespace(self, name: str) -> c.Call[NamespaceStat]:
        """Owner, mode, quota and usage."""
        return c.StatNamespace(name=name)

    @one_call
    def set_quota(self, namespace: str, quota: Quota) -> c.Call[NamespaceStat]:
        """Set a namespace's ceilings; for the administrator."""
        return c.SetQuota(namespace=namespace, quota=quota)

    @one_call
    def set_limits(self, path: str, limits: Limits) -> c.Call[GroupStat]:
        """Set what a namespace, or a folder below one, is granted of each tier.

        For the administrator; a folder's for the owner of its namespace as well.
        """
        return c.SetLimits(path=path, limits=limits)

    @pages
    def limits(self, path: str = "/") -> Pages[GroupStat]:
        """The control groups of a subtree, with their limits and what they use."""

        def ask(cursor: str) -> c.Call[c.StatLimitsReply]:
            return c.StatLimits(path, is_recursive=True, cursor=cursor)

        return paged(ask, "", lambda reply: (reply.groups, reply.next_cursor))

    # The daemon

    @steps
    def sync(self) -> Steps[None]:
        """Return when all that was committed so far, cache cubes included, is on disk."""
        yield c.Sync()

    @pages
    def fsck(self, *, repair: bool = False) -> Pages[c.FsckReply]:
        """Verify every cube, yielding after each stretch; `repair` quarantines what is broken."""

        def ask(cursor: str) -> c.Call[c.FsckReply]:
            return c.Fsck(cursor, _FSCK_CUBES, repair)

        return paged(ask, "", lambda reply: ((reply,), reply.next_cursor))

    @steps
    def shutdown(self) -> Steps[None]:
        """Stop the daemon; for the administrator."""
        try:
            yield c.Shutdown()
        except MemError as error:
            if error.errno is not Errno.ECONNRESET:  # gone before it could say so
                raise
