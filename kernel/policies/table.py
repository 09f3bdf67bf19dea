"""The one list of reclaim policies."""

from collections.abc import Callable
from typing import Final

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.default import Default
from memosd.kernel.policies.gdsf import Gdsf
from memosd.kernel.policies.lfu import Lfu
from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Clock, Policy
from memosd.kernel.policies.sieve import Sieve

__all__ = ["POLICIES", "make_policy"]

POLICIES: Final[dict[str, Callable[[Clock], Policy]]] = {
    "default": Default,
    "lru": Lru,
    "lfu": Lfu,
    "sieve": Sieve,
    "gdsf": Gdsf,
}


def make_policy(name: str, clock: Clock) -> Policy:
    """Errors: EINVAL."""
    if name not in POLICIES:
        raise MemError(Errno.EINVAL, f"no policy {name[:80]!r}; there are {', '.join(POLICIES)}")
    return POLICIES[name](clock)
