"""THE contract: one row per syscall.

Dispatch, the clients, `memctl help`, the man page and `docs/syscalls.md` derive from this table.
Boot refuses a row without a handler and a handler without a row. Numbers are never reused.

Every call may also fail with EBADMSG, EPROTO, ESTALE, ESHUTDOWN, EIO and, in the client,
ECONNREFUSED, ECONNRESET and ETIMEDOUT; rows list the errors beyond these.
"""

from enum import StrEnum
from typing import Any, Final

import msgspec

from libmem.abi import calls as c
from libmem.abi.control import GroupStat
from libmem.abi.errors import Errno as E  # noqa: N817
from libmem.abi.structs import NamespaceStat, Stat, Value
from libmem.abi.transitions import TransitionStat

__all__ = ["BY_NAME", "BY_NUMBER", "BY_REQUEST", "COMMON_ERRORS", "SYSCALLS", "Access", "Syscall"]


class Access(StrEnum):
    """What the caller must be allowed; checked by the kernel on every call."""

    NONE = "anyone who can connect, before the session is bound"
    SESSION = "any bound session; what it returns is filtered by what the caller may read"
    HANDLE = "the session that holds the handle"
    READ = "read on the cube, search (x) on its namespace"
    WRITE = "write on the cube, or write on the namespace for a new one"
    NAMESPACE = "write on the namespace, write on the cube"
    OWNER = "the owner of the cube or namespace, or the administrator"
    ADMIN = "root, or the user the daemon runs as"
    WORKER = "a worker process that this daemon started"


class Syscall(msgspec.Struct, frozen=True):
    """One row. `blocks`: the reply may wait for I/O, so other calls overtake it."""

    number: int
    name: str
    request: type[c.Call[Any]]
    result: type[Value]
    access: Access
    errors: tuple[E, ...]
    doc: str
    blocks: bool = False
    is_mutation: bool = False
    """A lost reply leaves the outcome unknown, so the client never repeats it by itself."""
    since: int = 1


COMMON_ERRORS: Final = (
    E.EBADMSG,
    E.EPROTO,
    E.ESTALE,
    E.ESHUTDOWN,
    E.EIO,
    E.EAGAIN,
    E.ECONNREFUSED,
    E.ECONNRESET,
    E.ETIMEDOUT,
)

_NAME = (E.EINVAL, E.ENAMETOOLONG, E.ENOENT, E.EACCES)
_MADE = (
    E.EOUTDATED,
    *_NAME,
    E.EVERSION,
    E.EDQUOT,
    E.ENOSPC,
    E.EFBIG,
    E.EILSEQ,
    E.EOPNOTSUPP,
    E.EPERM,
    E.EBUSY,
    E.ECORRUPT,
    E.EMODEL,
)
_FAULT = (*_NAME, E.EOUTDATED, E.ENOMEM, E.EDQUOT, E.ECORRUPT, E.EMFILE, E.EOPNOTSUPP)


SYSCALLS: Final[tuple[Syscall, ...]] = (
    Syscall(
        0, "hello", c.Hello, c.HelloReply, Access.NONE,
        (E.EPROTONOSUPPORT, E.EMFILE, E.EPERM),
        "Open a session; bound when its token arrives on the fd socket from the same process.",
    ),
    Syscall(
        1, "info", c.Info, c.InfoReply, Access.SESSION, (),
        "The daemon's state: tiers, budgets, sessions, counters, index lag.",
    ),
    Syscall(
        2, "create_cube", c.CreateCube, c.CreateReply, Access.WRITE,
        (*_MADE, E.ENOMEM, E.EMFILE, E.ECANCELED),
        "Get writable memory of a size to fill in place; `seal_cube` commits it under the name.",
        blocks=True,
    ),
    Syscall(
        3, "seal_cube", c.SealCube, c.WriteReply, Access.HANDLE,
        (*_MADE, E.EBADF, E.ECANCELED),
        "Freeze the memory of `create_cube` and commit it as the cube's next version.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        4, "abort_cube", c.AbortCube, c.Done, Access.HANDLE, (E.EBADF,),
        "Give the memory of `create_cube` back; nothing is committed.",
    ),
    Syscall(
        5, "write_cube", c.WriteCube, c.WriteReply, Access.WRITE,
        (*_MADE, E.ENOMEM, E.EMFILE),
        "Commit a small payload, carried by value, as the cube's next version.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        6, "read_cube", c.ReadCube, c.ReadReply, Access.READ, (*_FAULT, E.EFBIG),
        "Return bytes of the payload by value.",
        blocks=True,
    ),
    Syscall(
        7, "mmap_cube", c.MmapCube, c.MapReply, Access.READ,
        (*_FAULT, E.ECANCELED, E.EMODEL, E.EOPNOTSUPP),
        "Hand out the payload's sealed memory; faults it in, verified, where it is not in RAM.",
        blocks=True,
    ),
    Syscall(
        8, "munmap_cube", c.MunmapCube, c.Done, Access.HANDLE, (E.EBADF,),
        "Say that a mapping is no longer used, so that its memory may be reclaimed.",
    ),
    Syscall(
        9, "stat_cube", c.StatCube, Stat, Access.READ, (*_NAME, E.ECORRUPT),
        "Header, versions, size, place and behaviour of a cube.",
    ),
    Syscall(
        10, "history_cube", c.HistoryCube, c.HistoryReply, Access.READ,
        (*_NAME, E.ECORRUPT),
        "The versions of a cube, newest first.",
    ),
    Syscall(
        11, "readdir", c.Readdir, c.ReaddirReply, Access.SESSION, (*_NAME, E.ECORRUPT),
        "Namespaces under '/', else cubes and folders under a path; only what the caller may read.",
    ),
    Syscall(
        12, "rename_cube", c.RenameCube, c.RenameReply, Access.NAMESPACE,
        (*_NAME, E.EEXIST, E.EVERSION, E.EDQUOT, E.ENOSPC, E.ECORRUPT),
        "Give a cube another name, in the same or another namespace; id and versions stay.",
        is_mutation=True,
    ),
    Syscall(
        13, "unlink_cube", c.UnlinkCube, c.UnlinkReply, Access.NAMESPACE,
        (*_NAME, E.EVERSION, E.EBUSY, E.ENOSPC, E.ECORRUPT),
        "Remove a cube with all its versions, or with '@vN' one old version.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        14, "pin_cube", c.PinCube, c.PinReply, Access.READ, (*_FAULT, E.ECANCELED),
        "Bring a cube into RAM and keep it there until unpinned or the session ends; pins have"
        " ceilings for each session and user (EDQUOT).",
        blocks=True,
    ),
    Syscall(
        15, "unpin_cube", c.UnpinCube, c.Done, Access.HANDLE, (E.EBADF,),
        "Let go of a pin.",
    ),
    Syscall(
        16, "advise_cube", c.AdviseCube, c.AdviseReply, Access.READ, (*_NAME, E.ECORRUPT),
        "Tell how the cube will be used; a hint, whose refusal is an answer and no error.",
        blocks=True,
    ),
    Syscall(
        17, "evict", c.Evict, c.EvictReply, Access.WRITE,
        (*_NAME, E.EBUSY, E.ENOSPC, E.ECORRUPT),
        "Drop a cube's payload from RAM, after writing it back where it is not on disk yet.",
        blocks=True,
    ),
    Syscall(
        18, "migrate_cube", c.MigrateCube, c.MigrateReply, Access.WRITE,
        (*_FAULT, E.EBUSY, E.ENOSPC),
        "Move a cube's payload to a tier: `ram` faults it in, `disk` writes it back and evicts it.",
        blocks=True,
    ),
    Syscall(
        19, "search", c.Search, c.SearchReply, Access.SESSION,
        (E.EINVAL, E.ENAMETOOLONG, E.ENOENT, E.EACCES, E.EOPNOTSUPP),
        "Rank texts by the query's words, its meaning and what is known of them; what is written is"
        " found at once.",
        blocks=True,
    ),
    Syscall(
        20, "watch", c.Watch, c.WatchReply, Access.SESSION,
        (E.EINVAL, E.ENAMETOOLONG, E.ENOENT, E.EACCES, E.EMFILE),
        "Events of a subtree after a sequence number, waiting for the first up to a time-out.",
        blocks=True,
    ),
    Syscall(
        21, "explain", c.Explain, c.ExplainReply, Access.READ, (*_NAME, E.ECORRUPT),
        "Why a cube is where it is: its latest decisions, with their numbers.",
    ),
    Syscall(
        22, "set_header", c.SetHeader, c.WriteReply, Access.OWNER,
        (*_FAULT, E.EPERM, E.EVERSION, E.ENOSPC, E.EOPNOTSUPP, E.EILSEQ, E.EFBIG),
        "Replace header groups; makes a new version that shares the payload.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        23, "make_namespace", c.MakeNamespace, NamespaceStat, Access.SESSION,
        (E.EINVAL, E.ENAMETOOLONG, E.EEXIST, E.EPERM, E.EDQUOT, E.ENOSPC),
        "Make a namespace owned by the caller.",
        is_mutation=True,
    ),
    Syscall(
        24, "remove_namespace", c.RemoveNamespace, c.Done, Access.OWNER,
        (*_NAME, E.EPERM, E.ENOTEMPTY, E.EBUSY, E.ENOSPC),
        "Remove an empty namespace.",
        is_mutation=True,
    ),
    Syscall(
        25, "stat_namespace", c.StatNamespace, NamespaceStat, Access.SESSION, _NAME,
        "Owner, mode, quota and usage of a namespace.",
    ),
    Syscall(
        26, "set_quota", c.SetQuota, NamespaceStat, Access.ADMIN,
        (*_NAME, E.EPERM, E.EDQUOT, E.ENOSPC),
        "Set a namespace's ceilings; refused where it already holds more.",
        is_mutation=True,
    ),
    Syscall(
        27, "sync", c.Sync, c.Done, Access.SESSION, (E.ENOSPC,),
        "Return when everything committed so far, cache cubes included, is on disk.",
        blocks=True,
    ),
    Syscall(
        28, "fsck", c.Fsck, c.FsckReply, Access.ADMIN, (E.EPERM, E.EINVAL),
        "Verify rows and payloads against their digests, a stretch of the table per call.",
        blocks=True,
    ),
    Syscall(
        29, "log", c.Log, c.LogReply, Access.SESSION, (E.EINVAL,),
        "The kernel's latest decisions over all cubes the caller may read.",
    ),
    Syscall(
        30, "shutdown", c.Shutdown, c.Done, Access.ADMIN, (E.EPERM,),
        "Finish what is in flight, write back, close the store, exit.",
        is_mutation=True,
    ),
    Syscall(
        31, "batch", c.Batch, c.BatchReply, Access.SESSION, (E.EINVAL, E.EOPNOTSUPP, E.ENOSPC),
        "Many calls in one message and few durable commits; each succeeds or fails alone.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        32, "list_sessions", c.ListSessions, c.ListSessionsReply, Access.SESSION, (E.EINVAL,),
        "The open sessions of the caller's user, for the administrator of all: who, what is held.",
    ),
    Syscall(
        33, "find_prefix", c.FindPrefix, c.PrefixReply, Access.SESSION,
        (E.EINVAL, E.ENAMETOOLONG, E.ENOENT, E.EACCES),
        "Find the cube that shares the longest prefix with a prompt's tokens, for one model.",
    ),
    Syscall(
        34, "take_job", c.TakeJob, c.JobReply, Access.WORKER, (E.EPERM, E.EINVAL),
        "Get the next job of some classes, waiting for one up to a time-out.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        35, "finish_job", c.FinishJob, c.Done, Access.WORKER, (E.EPERM, E.EBADF),
        "Return what became of a job; with id 0, say why this worker can do none.",
        is_mutation=True,
    ),
    Syscall(
        36, "set_limits", c.SetLimits, GroupStat, Access.OWNER,
        (*_NAME, E.EPERM, E.EDQUOT, E.ENOSPC, E.EBUSY),
        "Set what a control group is granted of each tier: a folder's by the namespace's owner, "
        "others by the administrator.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        37, "stat_limits", c.StatLimits, c.StatLimitsReply, Access.SESSION, _NAME,
        "Limits and use of a control group, or of all in a subtree: of the namespaces that the "
        "caller may enter, and the folders of those that he may list.",
    ),
    Syscall(
        38, "set_policy", c.SetPolicy, c.PolicyStat, Access.ADMIN, (E.EPERM, E.EINVAL),
        "Put another reclaim policy in charge of RAM until the daemon stops; `info` shows it.",
        is_mutation=True,
    ),
    Syscall(
        39, "set_trace", c.SetTrace, c.TraceStat, Access.ADMIN,
        (E.EPERM, E.EINVAL, E.EEXIST, E.EBUSY, E.ENOSPC),
        "Record every access of the RAM tier to a file in the data directory, stop that, or tell"
        " how it stands.",
        blocks=True, is_mutation=True,
    ),
    Syscall(
        40, "report_prefill", c.ReportPrefill, c.ReportReply, Access.SESSION, (E.EINVAL,),
        "Tell what prefills of a model took; counts for the caller's user and that user's cubes.",
    ),
    Syscall(
        41, "plan_prefix", c.PlanPrefix, c.PlanReply, Access.SESSION,
        (E.EINVAL, E.ENAMETOOLONG, E.ENOENT, E.EACCES),
        "As `find_prefix`, and say how much of the prefix is quicker loaded than computed; starts"
        " loading that.",
    ),
    Syscall(
        42, "map_job", c.MapJob, c.MapJobReply, Access.WORKER,
        (E.EPERM, E.EBADF, E.EMFILE, E.ECANCELED),
        "Hand a worker the memory that it is to copy a payload from, and to.",
    ),
    Syscall(
        44, "hottest", c.Hottest, c.HottestReply, Access.SESSION, (E.EINVAL,),
        "The cubes that are used most just now, of those the caller may read.",
    ),
    Syscall(
        45, "list_pins", c.ListPins, c.ListPinsReply, Access.SESSION, (E.EINVAL,),
        "The pins of the caller's user, for the administrator of all: who, what, since when.",
    ),
    Syscall(
        46, "lineage", c.Lineage, c.LineageReply, Access.READ, (*_NAME, E.ECORRUPT),
        "What a cube was derived from, and what was derived from it, as a graph.",
    ),
    Syscall(
        47, "transmute", c.Transmute, TransitionStat, Access.READ,
        (*_NAME, E.EOUTDATED, E.ECORRUPT, E.EOPNOTSUPP, E.EAGAIN),
        "Have a worker make a cube of others: a KV cache of texts, a text of a KV cache. Answers at"
        " once; `wait_transition` tells the end.",
        is_mutation=True,
    ),
    Syscall(
        48, "wait_transition", c.WaitTransition, TransitionStat, Access.SESSION,
        (E.EINVAL, E.ENOENT, E.EPERM),
        "How far a transition of the caller's user is; waits for a change where that is asked for.",
        blocks=True,
    ),
    Syscall(
        49, "list_transitions", c.ListTransitions, c.ListTransitionsReply, Access.SESSION,
        (E.EINVAL,),
        "The transitions of the caller's user, for the administrator of all; the latest of those"
        " that are over.",
    ),
    Syscall(
        50, "cancel_transition", c.CancelTransition, c.Done, Access.SESSION,
        (E.ENOENT, E.EPERM),
        "Have a transition come to nothing; one that is over stays as it is.",
        is_mutation=True,
    ),
    Syscall(
        51, "report_job", c.ReportJob, c.ReportJobReply, Access.WORKER, (E.EPERM, E.EBADF),
        "Tell how far a transition is, and hear whether it is wanted still.",
    ),
)  # fmt: skip

BY_NUMBER: Final = {row.number: row for row in SYSCALLS}
BY_NAME: Final = {row.name: row for row in SYSCALLS}
BY_REQUEST: Final = {row.request: row for row in SYSCALLS}
