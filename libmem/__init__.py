"""libmem: talk to memosd, the memory kernel for language-model programs.

    import libmem

    with libmem.connect() as client:
        client.make_namespace("/notes")
        client.write("/notes/today", "The kernel boots.")
        print(client.read("/notes/today").decode())

`libmem.aio` is the same for asyncio. Errors are `MemError`, with an `Errno`.
"""

from libmem.abi.errors import Errno, MemError
from libmem.abi.state import SessionStat, TierStat
from libmem.abi.structs import (
    Advice,
    Behaviour,
    Beside,
    CubeType,
    Decision,
    Descriptive,
    Durability,
    Event,
    EventKind,
    Finding,
    Governance,
    Hit,
    NamespaceStat,
    Quota,
    SearchMode,
    Sensitivity,
    Stat,
    TierName,
    Understood,
    Usage,
)
from libmem.client import Client, connect
from libmem.fill import Fill
from libmem.lease import Pin
from libmem.mapping import Mapping

__all__ = [
    "connect",
    "Client",
    "Fill",
    "Mapping",
    "Pin",
    "Errno",
    "MemError",
    # The values that calls carry
    "Advice",
    "Behaviour",
    "Beside",
    "CubeType",
    "Decision",
    "Descriptive",
    "Durability",
    "Event",
    "EventKind",
    "Finding",
    "Governance",
    "Hit",
    "NamespaceStat",
    "Quota",
    "SearchMode",
    "Sensitivity",
    "SessionStat",
    "Stat",
    "TierName",
    "TierStat",
    "Understood",
    "Usage",
]
