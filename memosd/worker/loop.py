"""A worker's loop: take a job, do it, return what became of it.

Owns the order of work in this process. A job is a generator that yields wherever others may go
first; between two slices of a background job the loop asks for more urgent ones, so that a query
waits for a slice and not for a batch. Slices of background jobs run on a thread of their own, which
is nice to the rest of the machine: niceness is a thread's, and cannot be taken back. Invariant: at
any moment one thread works, so that a model need not be safe for two. Loads no model framework.
"""

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeAlias, TypeVar

import msgspec

from libmem import Client
from libmem.abi.calls import Call, FinishJob, JobReply, TakeJob
from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import JobClass
from libmem.abi.limits import WATCH_MAX_MS
from libmem.abi.structs import Value

__all__ = ["Loop", "Slices", "Table", "Work"]

R = TypeVar("R", bound=Value)
Slices: TypeAlias = Generator[None, None, bytes]
Work: TypeAlias = Callable[[bytes], Slices]
"""What does one class of jobs: from a request's body, slice by slice, to its result's body."""
Table: TypeAlias = Mapping[JobClass, Work]

_PATIENCE_S: Final = 30.0
"""With a daemon that is busy; beyond it the worker ends, and another one is started."""
_ORDER: Final = tuple(JobClass)
_NO_MEMORY: Final = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)


class Loop:
    """One worker's session with its daemon."""

    def __init__(self, client: Client, table: Table, nice: int) -> None:
        """`nice`: by how much background jobs are nicer than queries."""
        self._client = client
        self._table = table
        self._background = ThreadPoolExecutor(1, "background", _be_nice, (nice,))

    def run(self) -> None:
        """Work until the session ends. Errors: the MemError that ends it."""
        while True:
            self._do(self._take(tuple(self._table), WATCH_MAX_MS))

    def _take(self, classes: tuple[JobClass, ...], timeout_ms: int) -> JobReply:
        return self._call(TakeJob(classes, timeout_ms), timeout_ms / 1000)

    def _call(self, request: Call[R], wait_s: float = 0.0) -> R:
        return self._client.call(request, timeout_s=_PATIENCE_S + wait_s)

    def _do(self, job: JobReply) -> None:
        """Do a job and return it; nothing where there is none."""
        if not job.id:
            return
        outcome = self._outcome(job)
        try:
            self._call(outcome)
        except MemError as error:
            if error.errno is not Errno.EMSGSIZE:
                raise
            self._call(FinishJob(job.id, errno=error.errno, message="the result is too large"))

    def _outcome(self, job: JobReply) -> FinishJob:
        """Do a job, and between its slices whatever is more urgent."""
        urgent = tuple(c for c in _ORDER[: _ORDER.index(job.job_class)] if c in self._table)
        slices = self._table[job.job_class](job.body)
        while True:
            try:
                if urgent:
                    body = self._background.submit(_advance, slices).result()
                else:
                    body = _advance(slices)
            except Exception as error:  # noqa: BLE001
                return _failure(job, error)
            if body is not None:
                return FinishJob(job.id, body)
            if urgent:
                self._do(self._take(urgent, 0))


def _advance(slices: Slices) -> bytes | None:
    """Do one slice; the result where it was the last."""
    try:
        next(slices)
    except StopIteration as end:
        body: bytes = end.value
        return body
    return None


def _be_nice(nice: int) -> None:
    # A sandbox may forbid it. The work is done all the same, then.
    with suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)


def _failure(job: JobReply, error: Exception) -> FinishJob:
    """What the kernel is told of an exception. One that nobody expected leaves its traceback."""
    errno = _errno_of(error)
    if errno is Errno.EIO:
        print(f"a job of class {job.job_class} failed", file=sys.stderr)
        traceback.print_exception(error)
    message = error.message if isinstance(error, MemError) else f"{type(error).__name__}: {error}"
    return FinishJob(job.id, errno=errno, message=message)


def _errno_of(error: Exception) -> Errno:
    if isinstance(error, MemError):
        return error.errno
    # Of an accelerator's memory torch has a class of its own, of the machine's it tells in words.
    is_torchs = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))
    if is_torchs or isinstance(error, MemoryError):
        return Errno.ENOMEM
    if isinstance(error, ValueError | msgspec.DecodeError):
        return Errno.EINVAL
    return Errno.EIO
