"""A cube's memory, unmapped: the descriptors of all that it is made of.

Owns the descriptors until `close_descriptors`, and the lease that keeps the parts in RAM until
`give_back`. For whoever lays parts out in memory by himself (`libmem.hf`): unlike a `Mapping`,
nothing is mapped here. Invariant: what the descriptors show never changes.

Made by the clients' `map_parts`.
"""

from typing import Any, NamedTuple

from libmem.abi.calls import MapPart, MapReply
from libmem.lease import Grant
from libmem.ledger import close_all

__all__ = ["Part", "Parts"]


class Part(NamedTuple):
    """One cube of those that a cube is made of."""

    fd: int
    """Sealed memory: map it with MAP_PRIVATE. -1 where it is opened otherwise."""
    id: bytes
    version: int
    size_bytes: int
    attributes: dict[str, Any]
    opening: bytes = b""
    """How to open memory that has no descriptor: see `libmem.device`."""


class Parts:
    """What a cube stands on, the root first, and last the cube itself. A context manager that
    gives everything back; dropped, it does so with the client's next call."""

    def __init__(self, name: str, grant: Grant) -> None:
        reply: MapReply = grant.reply
        self.name = name
        self.id, self.version, self.attributes = reply.id, reply.version, reply.attributes
        self.device = reply.device
        """Where the memory is, if not in RAM."""
        self._lease = grant.lease
        everything: tuple[MapReply | MapPart, ...] = (reply, *reply.bases)
        fds = grant.fds or [-1] * len(everything)
        openings = reply.openings or [b""] * len(everything)
        self.parts: tuple[Part, ...] = tuple(
            Part(fd, each.id, each.version, each.size_bytes, each.attributes, opening)
            for fd, each, opening in zip(fds, everything, openings, strict=True)
        )[::-1]
        self._is_open = True

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.give_back()

    def __del__(self) -> None:
        self.close_descriptors()

    def __repr__(self) -> str:
        return f"<Parts {self.name}@v{self.version}: {len(self.parts)}>"

    @property
    def is_stale(self) -> bool:
        """True when the daemon no longer knows of this (restart, fork, closed client).

        What was mapped stays as valid as ever.
        """
        return self._lease.is_stale

    def close_descriptors(self) -> None:
        """Close them, mapped or not; what was mapped stays. Idempotent."""
        if self._is_open:
            self._is_open = False
            close_all(part.fd for part in self.parts if part.fd >= 0)

    def give_back(self) -> None:
        """Tell the daemon that nothing of it is used any more. Idempotent, never waits."""
        self.close_descriptors()
        self._lease.give_back()
