"""The governance group of a header: who may give which, how it lies in a cube's row, and what of it
a reclaim policy is told. No state, no I/O.
"""

from contextlib import suppress
from typing import Final, NamedTuple

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import HALF_LIFE_MAX_S, HALF_LIFE_MIN_S, PRIORITY_MAX
from libmem.abi.structs import Governance
from memosd.kernel.access import Identity, require_owner
from memosd.kernel.pagetable import PageTable
from memosd.kernel.ports import Clock
from memosd.kernel.rows import CubeRow

__all__ = ["Weight", "check_governance", "govern", "governance_of", "weigh", "weight_of"]

_BEGINNING_S: Final = 1e-9
"""The earliest time of a policy that is one: 0 stands for never."""


class Weight(NamedTuple):
    """What of a header weighs in on who goes first; as the fields of `Entry`."""

    priority: int = Governance().priority
    half_life_s: float = 0.0
    expires_s: float = 0.0


def weigh(rules: CubeRow | Governance, clock: Clock) -> Weight:
    """The expiry by the policies' clock, which does not follow when the wall clock is set."""
    expires_s = 0.0
    if rules.expires_ns:
        left_ns = rules.expires_ns - clock.wall_ns()
        expires_s = max((clock.monotonic_ns() + left_ns) / 1e9, _BEGINNING_S)
    return Weight(rules.priority, rules.half_life_s, expires_s)


def weight_of(table: PageTable, clock: Clock, cube_id: bytes) -> Weight:
    """As the cube's header has it now; a damaged row counts as one that says nothing."""
    with suppress(MemError):
        row = table.cube_row(cube_id)
        if row is not None:
            return weigh(row, clock)
    return Weight()


def check_governance(who: Identity, existing: CubeRow | None, wanted: Governance) -> None:
    """May the caller give a cube this? Errors: EPERM, EINVAL."""
    if existing is not None:
        require_owner(who, existing.uid, "the governance of a cube")
    owner = existing.uid if existing else who.uid
    if wanted.owner_uid not in (-1, owner) and not who.is_admin:
        raise MemError(Errno.EPERM, "only the administrator gives cubes away")
    groups = who.groups | {who.gid} | ({existing.gid} if existing else set())
    if wanted.owner_gid != -1 and wanted.owner_gid not in groups and not who.is_admin:
        raise MemError(Errno.EPERM, "the caller is not in that group")
    if not 0 <= wanted.mode <= 0o777:
        raise MemError(Errno.EINVAL, f"mode {wanted.mode:#o} is not within 0..0o777")
    if not 0 <= wanted.priority <= PRIORITY_MAX:
        raise MemError(Errno.EINVAL, f"a priority is within 0..{PRIORITY_MAX}")
    if not 0 <= wanted.expires_ns < 1 << 63:
        raise MemError(Errno.EINVAL, "expires_ns is not a time")
    if wanted.half_life_s != 0 and not HALF_LIFE_MIN_S <= wanted.half_life_s <= HALF_LIFE_MAX_S:
        limits = f"{HALF_LIFE_MIN_S:g}..{HALF_LIFE_MAX_S:g} seconds"
        raise MemError(Errno.EINVAL, f"a half-life is within {limits}, or 0")


def govern(row: CubeRow, rules: Governance) -> None:
    """Put it into a row; an owner below 0 leaves that as it is."""
    row.mode, row.priority = rules.mode, rules.priority
    row.sensitivity, row.expires_ns = rules.sensitivity, rules.expires_ns
    row.half_life_s = rules.half_life_s
    row.uid = row.uid if rules.owner_uid < 0 else rules.owner_uid
    row.gid = row.gid if rules.owner_gid < 0 else rules.owner_gid


def governance_of(row: CubeRow) -> Governance:
    """What `govern` put there."""
    return Governance(
        row.mode,
        row.uid,
        row.gid,
        row.expires_ns,
        row.priority,
        row.sensitivity,
        row.half_life_s,
    )
