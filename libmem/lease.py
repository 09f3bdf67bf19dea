"""Handles that a client holds: what keeps one, and the pin, which is nothing but one.

Invariant: a lease is given back at most once, and only to the session that granted it. A lease
that is dropped without being given back queues its request for the session's next call:
collection may happen on any thread, at any moment, so it does no I/O.

Made by `Connection.grant`; held by mappings, fills and pins.
"""

from types import TracebackType
from typing import Any, NamedTuple, Protocol

from libmem.abi.calls import Call
from libmem.link import Link

__all__ = ["Grant", "Keeper", "Lease", "Pin"]


class Keeper(Protocol):
    """The client, as seen by what it handed out."""

    def give_back(self, link: Link, undo: Call[Any]) -> None:
        """Send `undo` over `link` soon, without waiting for anything."""


class Lease:
    """One handle of one session."""

    __slots__ = ("_is_over", "_keeper", "_undo", "handle", "link")

    def __init__(self, keeper: Keeper, link: Link, handle: int, undo: Call[Any]) -> None:
        self.handle = handle
        self.link = link
        self._keeper = keeper
        self._undo = undo
        self._is_over = False

    def __del__(self) -> None:
        if not self._is_over:
            self.link.ledger.released.append(self._undo)

    @property
    def is_stale(self) -> bool:
        """True when the session that granted the handle is over."""
        return self.link.is_over()

    def give_back(self) -> None:
        """Tell the daemon that the handle is no longer needed. Idempotent, never waits."""
        if not self._is_over:
            self._is_over = True
            self._keeper.give_back(self.link, self._undo)

    def disown(self) -> None:
        """The handle is somebody else's to give back, or gone already (sealed)."""
        self._is_over = True


class Grant(NamedTuple):
    """A granted handle with the reply that granted it."""

    lease: Lease
    reply: Any
    fds: list[int]
    """One for memory, and one more for each cube that it stands on; else none."""


class Pin:
    """A cube held in RAM, until `release()`, the end of the `with` block, or of the client.

    After the daemon was restarted the client pins the cube again by itself when it reconnects.
    """

    def __init__(self, name: str, lease: Lease) -> None:
        self.name = name
        self._lease = lease
        self._is_released = False

    def __enter__(self) -> "Pin":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def handle(self) -> int:
        """The pin's handle in the present session."""
        return self._lease.handle

    @property
    def is_held(self) -> bool:
        """False once released, or lost in a restart (the cube is gone, or does not fit)."""
        return not self._is_released and not self._lease.is_stale

    @property
    def is_released(self) -> bool:
        """True once `release` was called."""
        return self._is_released

    def release(self) -> None:
        """Let the cube be evicted again. Idempotent, never waits."""
        self._is_released = True
        self._lease.give_back()

    def renew(self, lease: Lease) -> None:
        """Go on with the handle of a new session. For the connection alone."""
        self._lease = lease
        if self._is_released:  # by another thread, while the new one was on its way
            lease.give_back()
