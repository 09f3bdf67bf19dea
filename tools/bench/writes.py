"""Many writes for a benchmark, in batches; one that fails ends it."""

from collections.abc import Sequence

import libmem
from libmem.abi.calls import WriteCube
from libmem.abi.errors import MemError

__all__ = ["write_all"]


def write_all(client: libmem.Client, calls: Sequence[WriteCube], batch: int) -> None:
    """Write in order, `batch` calls at a time. Errors: the first one's."""
    for first in range(0, len(calls), batch):
        for outcome in client.batch(calls[first : first + batch]):
            if isinstance(outcome, MemError):
                raise outcome
