"""What the kernel needs from the outside: protocols that drivers fulfil.

The kernel decides and moves no bytes itself. It imports nothing of `memosd.drivers`; boot hands
it objects of these shapes, and a type checker compares them there. Payloads travel between tiers
as descriptors of host memory (memfds), so that a tier over a GPU or a network needs no other
road.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Protocol, TypeVar

from libmem.abi.digest import Manifest
from libmem.abi.index import (
    IndexCounts,
    IndexDocument,
    IndexHit,
    IndexPassage,
    IndexQuestion,
    IndexVectors,
)
from libmem.abi.prefix import Base, Prefix
from libmem.abi.structs import CubeType, Descriptive, Durability, Understood
from memosd.kernel.wait import Completion

__all__ = [
    "Base",
    "Changes",
    "Clock",
    "Coding",
    "Driver",
    "Encoding",
    "Frame",
    "FrameTier",
    "Index",
    "IndexCounts",
    "IndexDocument",
    "IndexHit",
    "IndexPassage",
    "IndexPlan",
    "IndexQuestion",
    "IndexVectors",
    "Io",
    "PayloadKey",
    "Prefix",
    "PrefixSource",
    "Store",
    "Tier",
    "Workers",
]

T = TypeVar("T")
PayloadKey = bytes
"""16 bytes that name one payload; versions that differ in their header only share it."""
Changes = Mapping[str, Mapping[bytes, bytes | None]]
"""Table -> key -> value, None to delete."""


class Clock(Protocol):
    """Time, injected so that tests own it."""

    def wall_ns(self) -> int: ...

    def monotonic_ns(self) -> int: ...


class Io(Protocol):
    """Threads for slow work. The completion is resolved on the kernel thread."""

    def run(self, work: Callable[..., T], *args: Any) -> Completion[T]: ...


class Store(Protocol):
    """Ordered tables of bytes with atomic, durable commits. Kernel thread only, bar `commit`.

    Reads see the last settled commit. One commit is under way at a time: `stage` on the kernel
    thread, the callable it returns on an I/O thread, `settle` on the kernel thread.
    """

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with key >= start, ascending. Ends quietly when a `settle` passes it by: do not
        hold it over an await."""
        ...

    def last_key(self, table: str) -> bytes | None: ...

    def count(self, table: str) -> int: ...

    def stage(self, changes: Changes) -> Callable[[], None]:
        """Begin a transaction, apply `changes`, return the blocking commit.

        Errors: ENOSPC (map or disk full), EIO. Also raised by the commit; then nothing of it is
        visible, now or after a restart.
        """
        ...

    def settle(self) -> None:
        """Let reads see what was committed; to be called after the commit, failed or not."""
        ...

    def used_bytes(self) -> int:
        """Bytes that the settled rows take, the free room between them included."""
        ...

    def close(self) -> None: ...


class Tier(Protocol):
    """A place that keeps payloads. Any thread.

    Of the calls for one key only those that read (`load`, `blocks`, `read`, `verify`) overlap.
    A `free` may come during one of them; it then gives the right bytes or an error.

    MUST: `store` and `store_blocks` are atomic (all or nothing, also over a crash) and, where
    `is_durable`, durable on return. `load` verifies every page before it returns, `read` and
    `blocks` every page they return bytes of. `free` of an absent key is no error.
    """

    name: str
    is_durable: bool

    def charge_bytes(self, size_bytes: int) -> int:
        """What a payload of this size costs here; the kernel reserves it before it stores."""
        ...

    def store(self, key: PayloadKey, fd: int, manifest: Manifest) -> None:
        """Keep the first `manifest.size_bytes` bytes behind `fd`. Errors: ENOSPC, ENOMEM, EIO."""
        ...

    def store_blocks(self, key: PayloadKey, blocks: Iterable[memoryview | bytes]) -> Manifest:
        """Keep what comes block by block, of any sizes; returns what was kept.

        Errors: as `store`, and whatever `blocks` raises; then nothing is kept.
        """
        ...

    def load(self, key: PayloadKey, fd: int, size_bytes: int, digest: bytes) -> None:
        """Copy the payload into writable memory behind `fd`. Errors: ENOENT, EIO, ECORRUPT."""
        ...

    def blocks(self, key: PayloadKey, size_bytes: int, digest: bytes) -> Iterator[bytes]:
        """The payload block by block, each checked before it comes. Errors as `load`."""
        ...

    def read(self, key: PayloadKey, size_bytes: int, digest: bytes, limit_bytes: int) -> bytes:
        """The payload's beginning, `limit_bytes` of it at most, in memory of the caller's own.

        For a look that is not worth a frame. Errors as `load`.
        """
        ...

    def verify(self, key: PayloadKey, size_bytes: int, digest: bytes) -> None:
        """Read and check the payload, going nowhere. Errors as `load`."""
        ...

    def free(self, key: PayloadKey) -> None: ...

    def keys(self) -> Iterator[PayloadKey]: ...


class Frame(Protocol):
    """Memory that processes can map. Its size is fixed at birth; its content once sealed."""

    fd: int
    size_bytes: int
    is_sealed: bool


class FrameTier(Tier, Protocol):
    """A tier whose payloads can be mapped: RAM."""

    def allocate(self, size_bytes: int) -> Frame:
        """Fresh zeroed writable memory, not yet under any key. Errors: ENOMEM, EMFILE."""
        ...

    def fill(self, frame: Frame, payload: bytes) -> None:
        """Write a payload of the frame's size into an unsealed frame. Errors: ENOMEM, EIO."""
        ...

    def seal(self, frame: Frame, size_bytes: int) -> None:
        """Make it immutable, at `size_bytes` or shorter. Errors: EBUSY while anybody has it
        mapped writable."""
        ...

    def hash(self, frame: Frame) -> Manifest:
        """Page digests of a sealed frame. Slow: an I/O thread's work."""
        ...

    def view(self, frame: Frame) -> memoryview:
        """A read-only view of a sealed frame, for top halves to validate."""
        ...

    def adopt(self, key: PayloadKey, frame: Frame) -> None:
        """Keep a sealed frame under a key, without a copy."""
        ...

    def take(self, key: PayloadKey) -> Frame:
        """Remove a frame from under its key, to be discarded."""
        ...

    def discard(self, frame: Frame) -> None:
        """Give back a frame that is under no key. Slow for large ones: an I/O thread's work."""
        ...


class PrefixSource(Protocol):
    """What a driver knows besides where payloads begin with tokens."""

    def is_part(self, attributes: dict[str, Any]) -> bool:
        """Does such a payload stand on its cube's first parent? The header was checked."""
        ...

    def prefix_of(
        self, payload: memoryview | bytes, attributes: dict[str, Any], base: Base | None
    ) -> Prefix:
        """The tokens of a payload that was checked. Any thread.

        Errors: EMODEL, EINVAL when it does not continue its base.
        """
        ...


class Encoding(Protocol):
    """A payload on its way into another form: its blocks, and afterwards what became of it."""

    form: str
    error: float
    content_digest: bytes
    """Of what the blocks will be decoded to."""

    def __iter__(self) -> Iterator[memoryview | bytes]:
        """Errors: UnfitError (it has to stay as it is), EIO."""
        ...


class Coding(Protocol):
    """The smaller form that one payload may have below RAM; its type and header decide.

    Any thread. A type whose payloads have one is not indexed: `Driver.indexed_bytes` is 0.
    """

    @property
    def is_wanted(self) -> bool:
        """Is the payload to be stored in that form?"""
        ...

    def encode(self, fd: int) -> Encoding:
        """Of the payload behind `fd`, which never changes again. Errors: UnfitError."""
        ...

    def decode(self, form: str, blocks: Iterable[bytes], fd: int) -> None:
        """The reverse, into zeroed memory behind `fd`.

        MUST: the same blocks give the same bytes, on every machine.
        Errors: ECORRUPT, EOPNOTSUPP (what it takes is not installed), EIO, ENOMEM.
        """
        ...


class Driver(Protocol):
    """The top half of a memory type: validates and describes, never loads a model."""

    type: CubeType
    durability: Durability
    """The default for cubes that do not ask."""
    indexed_bytes: int
    """How much of a payload, from its start, `index_text` has a use for; 0: it is not indexed."""
    fixed_attributes: frozenset[str]
    """Those that say what the payload is: a later header may not change them."""

    @property
    def prefixes(self) -> PrefixSource | None:
        """For the types whose payloads begin with tokens."""
        ...

    def model_of(self, attributes: dict[str, Any]) -> str:
        """Fingerprint of the model that such a payload belongs to; empty: of none."""
        ...

    def check_header(self, descriptive: Descriptive, attributes: dict[str, Any]) -> None:
        """Fast; kernel thread. Errors: EINVAL."""
        ...

    def check_payload(
        self, payload: memoryview | bytes, descriptive: Descriptive, attributes: dict[str, Any]
    ) -> None:
        """Any thread. Errors: EILSEQ when the payload is not what the header promises, EFBIG
        when it is too large to be checked."""
        ...

    def is_new_promise(self, old: Descriptive, new: Descriptive) -> bool:
        """Does `new` say more of a payload than `old`, against which it was checked? Fast."""
        ...

    def coding(self, attributes: dict[str, Any]) -> Coding | None:
        """For the types whose payloads may have another form below RAM. The header was checked."""
        ...

    def index_text(self, payload: memoryview | bytes, descriptive: Descriptive) -> str | None:
        """What the lexical index should know of it; None: nothing."""
        ...


class IndexPlan(Protocol):
    """A search under way: what `plan` made of a question, for the calls that follow."""

    understood: Understood
    lacks_vectors: bool
    """`rank` had a vector, and nothing to compare it with."""


class Index(Protocol):
    """How texts are found: derived state, stamped with the log sequence it reflects.

    All calls come from one thread, its own. A document replaces the one with the same id.
    Statistics (document frequencies) never cross from one namespace into another, nor from what a
    caller may not read into what it may.
    """

    name: str
    counts: IndexCounts
    """Replaced as a whole; the kernel thread may look."""

    def open(self) -> int:
        """Open or make it; return its stamp, 0 when it is new or had to be discarded."""
        ...

    def apply(
        self, stamp: int, documents: Sequence[IndexDocument], removed: Iterable[bytes]
    ) -> None:
        """Removals first, then documents, then the stamp, in one transaction.

        A document that is among the removals stays; of an older text of it nothing does.
        """
        ...

    def plan(self, question: IndexQuestion) -> IndexPlan:
        """What the query means: whom and when it names, and the text that is left of it."""
        ...

    def match(self, plan: Any) -> None:
        """Find by words; the plan keeps what was found. May come while a vector is waited for."""
        ...

    def rank(self, plan: Any, vector: IndexVectors | None) -> list[IndexHit]:
        """Best first. `vector`: of `plan.understood.text`; None, or of another model than the
        passages': words decide, and by meaning alone nothing is found. `apply` may have come since
        `plan`."""
        ...

    def waiting(self, limit: int, characters: int, skip: Set[int]) -> list[IndexPassage]:
        """Passages without vectors of `counts.model`, at most so many, of all namespaces in turn,
        but those that the caller has in hand; the first of any length."""
        ...

    def keep(self, vectors: Mapping[int, IndexVectors]) -> None:
        """Keep vectors by passage; what is gone meanwhile is passed over. Durable in its time."""
        ...

    def use_model(self, model: str) -> None:
        """Vectors of any other model are not compared from now on, and wait to be replaced."""
        ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


class Workers(Protocol):
    """Whoever starts worker processes, and hears of their ends."""

    on_end: Callable[[int, str], None]
    """Set by the kernel: called on its thread with a process id and how the process ended, once it
    is reaped and not before."""

    def start(self) -> int:
        """Start one; its process id. Errors: EAGAIN, ENOMEM, EMFILE, EIO."""
        ...

    def is_alive(self, pid: int) -> bool:
        """Has it not ended by now? One that has is reaped a little later."""
        ...

    def end(self, pid: int) -> None:
        """Ask it to end."""
        ...

    def kill(self, pid: int) -> None:
        """End it at once; nothing where it has ended by itself."""
        ...
