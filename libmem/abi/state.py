"""What the daemon tells of its own state: tiers, the machine, sessions, workers. Plain data, as in
`structs`."""

from libmem.abi.structs import Value

__all__ = ["MachineStat", "RecallStat", "SessionStat", "StallStat", "TierStat", "WorkerStat"]


class StallStat(Value, frozen=True):
    """How much of the time was lost to waiting, as /proc/pressure shows it."""

    avg10: float = 0.0
    """Percent of the last 10 s, by an average that decays; then of 60 and of 300 s."""
    avg60: float = 0.0
    avg300: float = 0.0
    total_us: int = 0
    """Since the daemon was started."""


class MachineStat(Value, frozen=True):
    """The machine's memory, as far as the daemon may use it."""

    total_bytes: int = 0
    """The machine's; 0: it is not watched."""
    available_bytes: int = 0
    """What is left before something has to give, where it is tightest."""
    reserve_bytes: int = 0
    """What of it is left to others: below that, the RAM tier gives back."""
    bound: str = ""
    """Where it is tightest: `machine`, or a cgroup's limit."""
    some_avg10: float = 0.0
    """Linux's own pressure of memory, percent; 0 where it tells none."""
    full_avg10: float = 0.0
    is_triggered: bool = False
    """Does Linux tell of pressure at once? Else it is looked at each second."""


class TierStat(Value, frozen=True):
    """One tier's account. `used_bytes` never exceeds `budget_bytes`."""

    name: str
    budget_bytes: int
    used_bytes: int
    cubes: int
    pinned_bytes: int = 0
    dirty_bytes: int = 0
    configured_bytes: int = 0
    """The budget at its full size: `budget_bytes` is less while the machine is short of memory."""
    some: StallStat = StallStat()
    """Time in which at least one call waited for memory or I/O of the tier."""
    full: StallStat = StallStat()
    """Of it, time in which no other call was served either."""


class SessionStat(Value, frozen=True):
    """One open session: a process, and what the kernel holds on its behalf."""

    number: int
    uid: int
    gid: int
    pid: int
    """These three as the operating system reported them."""
    client: str
    """What the program called itself; it proves nothing."""
    since_ns: int
    is_bound: bool
    """False until its token has arrived on the fd socket."""
    pins: int
    maps: int
    fills: int
    """Memory of `create_cube` that is not sealed yet."""
    pinned_bytes: int
    """RAM that its pins keep from being reclaimed; what it pinned twice counts once."""
    calls: int
    """Calls that wait for something, long polls included."""


class RecallStat(Value, frozen=True):
    """How far the vectors behind `search` are."""

    embedder: str = ""
    """Fingerprint of the model whose vectors are compared; empty: words alone are."""
    passages: int = 0
    waiting: int = 0
    """Of them, how many have no vector of that model yet."""
    problem: str = ""
    """Why no vectors are made, for people; empty when all is well."""


class WorkerStat(Value, frozen=True):
    """One process that does the kernel's work with models."""

    pid: int
    state: str
    """`starting`, `idle`, `busy`, or `waiting` to be started again."""
    jobs: int
    """Done since it started."""
    rss_bytes: int
    restarts: int
    problem: str = ""
    """Why the last one ended, where it did not end in order."""
