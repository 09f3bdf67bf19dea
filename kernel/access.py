"""Who may do what: mode bits against an identity the operating system vouched for.

As in a file system: the owner's bits for the owner, else the group's for members, else the
others'. A namespace works like a directory (r list, w add and remove, x reach what is inside),
its cubes like files. Root and the user the daemon runs as pass every check. Pure functions.
"""

from typing import Final, NamedTuple

from libmem.abi.errors import Errno, MemError

__all__ = ["EXECUTE", "READ", "WRITE", "Identity", "allows", "require_owner"]

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1


class Identity(NamedTuple):
    """A process, as the operating system describes it. Nothing here came from the caller."""

    uid: int
    gid: int
    pid: int
    groups: frozenset[int] = frozenset()
    is_admin: bool = False


def allows(who: Identity, owner: tuple[int, int], mode: int, wanted: int) -> bool:
    """True when `mode` of something owned by `owner` (uid, gid) grants all `wanted` bits."""
    if who.is_admin:
        return True
    uid, gid = owner
    if who.uid == uid:
        granted = mode >> 6
    elif who.gid == gid or gid in who.groups:
        granted = mode >> 3
    else:
        granted = mode
    return granted & wanted == wanted


def require_owner(who: Identity, uid: int, what: str) -> None:
    """Errors: EPERM."""
    if who.uid != uid and not who.is_admin:
        raise MemError(Errno.EPERM, f"only the owner may change {what}")
