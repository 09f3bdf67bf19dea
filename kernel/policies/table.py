"""The one list of reclaim policies."""

from collections.abc import Callable
from typing import Final

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Clock, Policy

__all__ = ["POLICIES", "make_policy"]

POLICIES: Final[dict[str, Callable[[Clock], Policy]]] = {"lru": Lru}


def make_policy(name: str, clock: Clock) -> Policy:
    """Errors: EINVAL."""
    if name not in POLICIES:
        raise MemError(Errno.EINVAL, f"no policy {name!r}; there are {', '.join(POLICIES)}")
    return POLICIES[name](clock)
