"""Succession: cubes whose validity ends where another one's begins.

A write that supersedes others puts one version with a new header on each of them, over the same
payload, in the commit of its own rows. Valid time is in the header (`valid_from_ns`,
`valid_to_ns`), record time is each version's `created_ns`: what was believed at any moment can be
told from both. `superseded_by` is the kernel's to set; whoever may change a header may keep or
clear it. Called by `cubes` and `headers`; pure but for the clock's answer, which is handed in.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import PARENTS_MAX
from libmem.abi.structs import Descriptive, Durability
from memosd.kernel.namespace import Namespace
from memosd.kernel.pagetable import Cube
from memosd.kernel.rows import VersionRow

__all__ = ["Ending", "check_names", "check_successor", "check_unsigned", "ending_of", "signed"]

_UNSIGNED: Final = "0" * 32
"""Stands for the successor's id, which a new cube gets at the commit: it takes as many bytes."""


class Ending(msgspec.Struct, frozen=True):
    """A cube that is about to be superseded, and the version that will say so."""

    cube: Cube
    space: Namespace
    version: VersionRow


def check_names(names: tuple[str, ...]) -> None:
    """Errors: EINVAL."""
    if len(names) > PARENTS_MAX:
        raise MemError(Errno.EINVAL, f"a cube supersedes at most {PARENTS_MAX} others")


def check_successor(
    endings: Iterable[Ending], existing: Cube | None, durability: Durability
) -> None:
    """May this cube take the place of those? Errors: EINVAL."""
    for ending in endings:
        if existing is not None and ending.cube.id == existing.id:
            raise MemError(
                Errno.EINVAL, "a cube cannot supersede itself", cube=ending.cube.row.name
            )
        if durability is Durability.CACHE:
            # Lost in a crash, it would leave the others ended by nothing.
            raise MemError(Errno.EINVAL, "a cache cube may be lost; it cannot supersede another")


def check_unsigned(old: Descriptive | None, new: Descriptive) -> None:
    """A caller keeps `superseded_by` or clears it. Errors: EINVAL."""
    if new.superseded_by and (old is None or new.superseded_by != old.superseded_by):
        raise MemError(Errno.EINVAL, "superseded_by is written by the kernel; see `supersedes`")


def ending_of(cube: Cube, number: int, author_uid: int, times_ns: tuple[int, int]) -> VersionRow:
    """The version `number` that ends a cube; `times_ns`: now, and until when it holds.

    What had ended before that stays ended then.
    """
    now_ns, until_ns = times_ns
    old = cube.row.current
    ended_ns = old.descriptive.valid_to_ns
    descriptive = msgspec.structs.replace(
        old.descriptive,
        valid_to_ns=min(ended_ns, until_ns) if ended_ns else until_ns,
        superseded_by=_UNSIGNED,
    )
    return msgspec.structs.replace(
        old,
        version=number,
        created_ns=now_ns,
        author_uid=author_uid,
        descriptive=descriptive,
    )


def signed(version: VersionRow, successor: bytes) -> VersionRow:
    """The version with the id of the cube that takes its place."""
    descriptive = msgspec.structs.replace(version.descriptive, superseded_by=successor.hex())
    return msgspec.structs.replace(version, descriptive=descriptive)
