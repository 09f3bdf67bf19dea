"""What is known of a write that was found to be in order, and of its payload.

Made by `cubes.admit`, for `cubes.commit` and for those who wait in between.
"""

import msgspec

from libmem.abi.structs import Durability, Governance, StoredForm
from memosd.kernel.lineage import Source
from memosd.kernel.namespace import Namespace
from memosd.kernel.pagetable import Cube
from memosd.kernel.ports import Base, Driver, Prefix
from memosd.kernel.succession import Ending

__all__ = ["Admission", "Content"]


class Content(msgspec.Struct, frozen=True):
    """A payload about to be committed."""

    size_bytes: int
    digest: bytes
    inline: bytes | None
    """The payload itself where it goes into the table."""
    charge_bytes: int
    """What the new version costs on disk; `charge_of`."""
    prefix: Prefix | None = None
    """The tokens it begins with, where its type knows of tokens."""
    form: StoredForm | None = None
    """What its page file holds, where that is not the payload itself."""


class Admission(msgspec.Struct, frozen=True):
    """A write that was found to be in order."""

    name: str
    space: Namespace
    existing: Cube | None
    driver: Driver
    governance: Governance | None
    parents: tuple[tuple[bytes, int], ...]
    durability: Durability
    base: Base | None = None
    """What the payload will stand on, where it holds only a part."""
    endings: tuple[Ending, ...] = ()
    """The cubes that it supersedes."""
    sources: tuple[Source, ...] = ()
    """What the payload was made from, where it is derived."""

    @property
    def changed(self) -> set[bytes]:
        """The cubes that the commit changes."""
        ended = {ending.cube.id for ending in self.endings}
        return ended if self.existing is None else ended | {self.existing.id}
