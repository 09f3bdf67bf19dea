"""Which handler answers which row of `libmem.abi.syscalls`. Boot compares the two."""

from typing import Final

from memosd.kernel.dispatch import Handler
from memosd.kernel.syscalls import (
    cost,
    cube,
    explain,
    hint,
    lineage,
    observe,
    place,
    query,
    session,
    space,
    work,
)

__all__ = ["HANDLERS"]

HANDLERS: Final[dict[str, Handler]] = {
    name.removeprefix("sys_"): getattr(module, name)
    for module in (cost, cube, explain, hint, lineage, observe, place, query, session, space, work)
    for name in module.__all__
}
