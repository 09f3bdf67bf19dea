"""Requests by which worker processes get and return their work."""

from libmem.abi.calls.base import Call, Done
from libmem.abi.jobs import JobClass
from libmem.abi.structs import Value

__all__ = ["FinishJob", "JobReply", "MapJob", "MapJobReply", "TakeJob"]


class JobReply(Value, frozen=True):
    """`id` is 0 where there was nothing to do in time."""

    id: int = 0
    job_class: JobClass = JobClass.QUERY
    body: bytes = b""


class TakeJob(Call[JobReply], frozen=True):
    """Whoever asks has loaded its model, and may ask again before it has finished."""

    classes: tuple[JobClass, ...] = tuple(JobClass)
    timeout_ms: int = 0


class FinishJob(Call[Done], frozen=True):
    id: int
    """0: none in particular. This worker cannot begin, `message` says why, and it ends."""
    body: bytes = b""
    errno: int = 0
    """Not 0: it failed, and `message` says why."""
    message: str = ""


class MapJobReply(Value, frozen=True):
    """Descriptors arrive on the fd socket: the payload's sealed memory, and where the copy is to
    be the host's memory, that one, writable."""

    handle: int
    descriptors: int


class MapJob(Call[MapJobReply], frozen=True):
    key: bytes
    """Of a `LoadRequest` that this worker has in hand. Given back with `munmap_cube`."""
