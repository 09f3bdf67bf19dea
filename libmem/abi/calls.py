"""One request struct per syscall, with the struct of its result.

`Call[R]` ties them together, so that `client.call(StatCube(name=...))` is a `Stat` to a type
checker. What each call means, who may call it and how it fails stands in `syscalls.py`.
"""

from typing import Any, Generic, TypeVar

import msgspec

from libmem.abi.structs import (
    Advice,
    CubeType,
    Decision,
    Descriptive,
    Durability,
    Event,
    Finding,
    Governance,
    Hit,
    NamespaceStat,
    Quota,
    SessionStat,
    Stat,
    TierName,
    TierStat,
    Value,
)

R = TypeVar("R", bound=Value)


class Call(Value, Generic[R], frozen=True):
    """A request whose reply is an R."""


class Done(Value, frozen=True):
    """Nothing to say but success."""


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


class Info(Call[InfoReply], frozen=True):
    pass


class CreateReply(Value, frozen=True):
    """The descriptor of the writable memory arrives on the fd socket, tagged with `handle`."""

    handle: int
    size_bytes: int


class CreateCube(Call[CreateReply], frozen=True):
    name: str
    size_bytes: int
    type: CubeType = CubeType.BLOB
    descriptive: Descriptive = Descriptive()
    governance: Governance | None = None
    attributes: dict[str, Any] = {}
    parents: tuple[str, ...] = ()
    expected_version: int | None = None
    """None: whatever is there. 0: nothing may be there. N: exactly version N."""
    durability: Durability | None = None
    """None: the type's own default."""


class WriteReply(Value, frozen=True):
    id: bytes
    version: int
    digest: bytes


class SealCube(Call[WriteReply], frozen=True):
    handle: int
    size_bytes: int | None = None
    """Shorter than what was asked for in `create_cube`: the rest is given back."""


class AbortCube(Call[Done], frozen=True):
    handle: int


class WriteCube(Call[WriteReply], frozen=True):
    name: str
    payload: bytes
    type: CubeType = CubeType.PLAINTEXT
    descriptive: Descriptive = Descriptive()
    governance: Governance | None = None
    attributes: dict[str, Any] = {}
    parents: tuple[str, ...] = ()
    expected_version: int | None = None
    durability: Durability | None = None


class ReadReply(Value, frozen=True):
    payload: bytes
    version: int
    size_bytes: int
    """Of the whole payload; more is left when offset + len(payload) is less."""


class ReadCube(Call[ReadReply], frozen=True):
    name: str
    offset_bytes: int = 0
    length_bytes: int | None = None
    """None: to the end, which must not be more than READ_MAX_BYTES away."""


class MapPart(Value, frozen=True):
    """A cube that another one stands on."""

    id: bytes
    version: int
    size_bytes: int
    attributes: dict[str, Any] = {}


class MapReply(Value, frozen=True):
    """The sealed memory's descriptor arrives on the fd socket, tagged with `handle`; with it come
    those of `bases`, in their order."""

    handle: int
    id: bytes
    version: int
    size_bytes: int
    type: CubeType
    attributes: dict[str, Any] = {}
    bases: tuple[MapPart, ...] = ()
    """What the cube stands on, nearest first; where it was asked for."""


class MmapCube(Call[MapReply], frozen=True):
    name: str
    model: str = ""
    """The fingerprint that the cube's model must have; empty: any, or none."""
    is_whole: bool = False
    """With what the cube stands on, where it holds only a part."""


class MunmapCube(Call[Done], frozen=True):
    handle: int


class StatCube(Call[Stat], frozen=True):
    name: str


class HistoryReply(Value, frozen=True):
    versions: tuple[Stat, ...]


class HistoryCube(Call[HistoryReply], frozen=True):
    name: str
    limit: int = 100


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


class RenameReply(Value, frozen=True):
    version: int


class RenameCube(Call[RenameReply], frozen=True):
    name: str
    new_name: str
    expected_version: int | None = None


class UnlinkReply(Value, frozen=True):
    freed_bytes: int
    versions: int


class UnlinkCube(Call[UnlinkReply], frozen=True):
    """Of a cube whose own rows are damaged (ECORRUPT) the administrator removes what is left.

    What it was charged comes back with the last damaged cube of its namespace. EBUSY: a large
    namespace is being written to, so that it cannot be added up.
    """

    name: str
    """With `@vN`: that old version only; the current one cannot go alone."""
    expected_version: int | None = None


class PinReply(Value, frozen=True):
    handle: int


class PinCube(Call[PinReply], frozen=True):
    name: str


class UnpinCube(Call[Done], frozen=True):
    handle: int


class AdviseCube(Call[Done], frozen=True):
    name: str
    advice: Advice


class EvictReply(Value, frozen=True):
    freed_bytes: int


class Evict(Call[EvictReply], frozen=True):
    name: str


class MigrateReply(Value, frozen=True):
    tiers: tuple[str, ...]


class MigrateCube(Call[MigrateReply], frozen=True):
    name: str
    tier: TierName


class SearchReply(Value, frozen=True):
    hits: tuple[Hit, ...]


class Search(Call[SearchReply], frozen=True):
    query: str
    under: str = "/"
    k: int = 10
    types: tuple[CubeType, ...] = ()


class PrefixReply(Value, frozen=True):
    """`tokens` is 0 and `name` empty where no cube begins as the prompt does."""

    name: str = ""
    """With its version: `/ns/path@v1`."""
    tokens: int = 0
    """Shared with the prompt, from position 0 on."""
    cube_tokens: int = 0
    """All that the cube has."""


class FindPrefix(Call[PrefixReply], frozen=True):
    model: str
    """Fingerprint: 64 hexadecimal digits."""
    tokens: bytes
    """The prompt's token ids: u32, little endian."""
    under: str = "/"


class WatchReply(Value, frozen=True):
    events: tuple[Event, ...]
    next_seq: int
    """Pass it as `since_seq` next time; nothing is missed between two calls."""


class Watch(Call[WatchReply], frozen=True):
    under: str = "/"
    since_seq: int | None = None
    """None: from now on. Older than the retained log: ESTALE, list again."""
    max_events: int = 100
    timeout_ms: int = 0


class ExplainReply(Value, frozen=True):
    stat: Stat
    residency: str
    decisions: tuple[Decision, ...]


class Explain(Call[ExplainReply], frozen=True):
    name: str


class SetHeader(Call[WriteReply], frozen=True):
    """Each group given replaces the old one whole; None keeps it. Makes a new version.

    A header that promises more of the payload than the old one (plaintext that is to be JSON) has
    it checked: EILSEQ where it is something else. What is no small payload comes into RAM for that.
    """

    name: str
    descriptive: Descriptive | None = None
    governance: Governance | None = None
    attributes: dict[str, Any] | None = None
    expected_version: int | None = None


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


class Sync(Call[Done], frozen=True):
    pass


class FsckReply(Value, frozen=True):
    checked: int
    findings: tuple[Finding, ...]
    next_cursor: str = ""


class Fsck(Call[FsckReply], frozen=True):
    cursor: str = ""
    limit: int = 100
    repair: bool = False
    """Quarantine what is broken, so that it is never served."""


class LogReply(Value, frozen=True):
    decisions: tuple[tuple[str, Decision], ...]
    """(cube name, decision), newest first."""


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
