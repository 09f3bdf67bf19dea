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
    transition,
    work,
)

__all__ = ["HANDLERS"]

_MODULES: Final = (
    cost, cube, explain, hint, lineage, observe, place, query, session, space, transition, work,
)  # fmt: skip
HANDLERS: Final[dict[str, Handler]] = {
    name.removeprefix("sys_"): getattr(module, name)
    for module in _MODULES
    for name in module.__all__
}
