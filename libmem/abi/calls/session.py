"""Requests about the session, the daemon, and many calls at once."""

import msgspec

from libmem.abi.calls.base import Call, Done
from libmem.abi.calls.observe import PolicyStat
from libmem.abi.costs import CostStat
from libmem.abi.state import MachineStat, RecallStat, SessionStat, TierStat, WorkerStat
from libmem.abi.structs import Decision, Value

__all__ = [
    "Batch",
    "BatchItem",
    "BatchReply",
    "Hello",
    "HelloReply",
    "Info",
    "InfoReply",
    "ListSessions",
    "ListSessionsReply",
    "Log",
    "LogReply",
    "Shutdown",
    "Sync",
]


class HelloReply(Value, frozen=True):
    """The session's terms. `token` is to be sent over the fd socket at once."""

    session: int
    token: bytes
    fd_socket: str
    server: str
    uid: int
    gid: int
    pid: int
    inline_limit_bytes: int
    call_by_value_bytes: int
    page_bytes: int


class Hello(Call[HelloReply], frozen=True):
    client: str
    """Program name, cut after 64 characters; `list_sessions` shows it. It grants nothing."""
    transition: int = 0
    """For the worker that has this transition in hand: the session acts for the user who asked for
    it, until the transition is over."""


class InfoReply(Value, frozen=True):
    server: str
    epoch: int
    pid: int
    uptime_ns: int
    sessions: int
    namespaces: int
    cubes: int
    tiers: tuple[TierStat, ...]
    log_seq: int
    indexed_seq: int
    """The index lags the log by log_seq - indexed_seq events."""
    calls: int
    faults: int
    evictions: int
    rss_bytes: int
    table_bytes: int
    """The table's pages in use: all rows and small payloads, whoever is charged for them."""
    data_dir: str
    policy: str
    indexer: str
    notices: tuple[str, ...] = ()
    """What the administrator should know: quarantined cubes, a rebuilding index, ..."""
    recall: RecallStat = RecallStat()
    workers: tuple[WorkerStat, ...] = ()
    machine: MachineStat = MachineStat()
    reclaim: PolicyStat = PolicyStat()
    costs: tuple[CostStat, ...] = ()
    """What was measured so far; of prefills the caller's own."""


class Info(Call[InfoReply], frozen=True):
    pass


class Sync(Call[Done], frozen=True):
    pass


class LogReply(Value, frozen=True):
    decisions: tuple[tuple[str, Decision], ...]
    """(cube name, decision), newest first; `/`: it concerns all cubes."""


class Log(Call[LogReply], frozen=True):
    limit: int = 100


class Shutdown(Call[Done], frozen=True):
    pass


class BatchItem(Value, frozen=True):
    """The outcome of one call: errno 0 and its result, or an error and a Fault."""

    errno: int
    body: msgspec.Raw


class BatchReply(Value, frozen=True):
    results: tuple[BatchItem, ...]


class Batch(Call[BatchReply], frozen=True):
    """Calls in order; each succeeds or fails alone, all share one durable commit."""

    calls: tuple[tuple[int, msgspec.Raw], ...]
    """(syscall number, its encoded arguments)"""
    stop_on_error: bool = False
    """The first failure cancels what follows it (ECANCELED); what came before stays done."""


class ListSessionsReply(Value, frozen=True):
    sessions: tuple[SessionStat, ...]
    """By number, so by age."""
    next_after: int = 0
    """0 at the end; else pass it back as `after`."""


class ListSessions(Call[ListSessionsReply], frozen=True):
    after: int = 0
    limit: int = 1000
