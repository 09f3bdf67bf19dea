"""A worker's loop, against a daemon that is a list of jobs."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from libmem.abi.calls import FinishJob, JobReply, TakeJob
from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import JobClass
from libmem.abi.limits import FRAME_MAX_BYTES
from memosd.worker.loop import Loop, Slices

QUERY, EMBED = JobClass.QUERY, JobClass.EMBED


class Script:
    """A client whose daemon hands out what waits, and is gone when nothing does."""

    def __init__(self) -> None:
        self.waiting: deque[JobReply] = deque()
        self.finished: dict[int, FinishJob] = {}
        self.asked: list[TakeJob] = []

    def call(self, request: Any, timeout_s: float | None = None) -> Any:
        if isinstance(request, FinishJob):
            if len(request.body) > FRAME_MAX_BYTES:
                raise MemError(Errno.EMSGSIZE, "too large")
            self.finished[request.id] = request
            return None
        self.asked.append(request)
        for job in self.waiting:
            if job.job_class in request.classes:
                self.waiting.remove(job)
                return job
        if request.timeout_ms == 0:
            return JobReply()
        raise MemError(Errno.ESHUTDOWN, "no more")

    def run(self, **work: Callable[[bytes], Slices]) -> None:
        """The whole life of a worker."""
        table = {JobClass(name): each for name, each in work.items()}
        with pytest.raises(MemError) as caught:
            Loop(self, table, 0).run()  # type: ignore[arg-type]
        assert caught.value.errno is Errno.ESHUTDOWN


@pytest.fixture
def script() -> Script:
    return Script()


def echo(body: bytes) -> Slices:
    yield
    return body


def raising(error: Exception) -> Callable[[bytes], Slices]:
    def work(_body: bytes) -> Slices:
        yield
        raise error

    return work


def test_every_job_is_done_and_returned(script: Script) -> None:
    script.waiting += [JobReply(1, EMBED, b"a"), JobReply(2, QUERY, b"b")]
    script.run(query=echo, embed=echo)
    assert script.finished == {1: FinishJob(1, b"a"), 2: FinishJob(2, b"b")}


def test_between_slices_more_urgent_jobs_are_done_and_no_others(script: Script) -> None:
    order = []

    def embed(body: bytes) -> Slices:
        for number in range(3):
            order.append(f"{body.decode()}{number}")
            if number == 0:
                script.waiting += [JobReply(8, EMBED, b"other"), JobReply(9, QUERY, b"q")]
            yield
        return b""

    def query(body: bytes) -> Slices:
        yield
        order.append(body.decode())
        return b""

    script.waiting.append(JobReply(1, EMBED, b"first"))
    embedded = iter([embed])

    def once(body: bytes) -> Slices:
        return next(embedded, echo)(body)

    script.run(query=query, embed=once)
    assert order == ["first0", "q", "first1", "first2"]
    assert list(script.finished) == [9, 1, 8]


def test_a_query_is_not_interrupted_and_asks_for_nothing(script: Script) -> None:
    script.waiting.append(JobReply(1, QUERY, b""))
    script.run(query=echo, embed=echo)
    assert [request.classes for request in script.asked] == [(QUERY, EMBED), (QUERY, EMBED)]


def test_background_jobs_are_done_on_a_thread_of_their_own(script: Script) -> None:
    threads = {}

    def work(body: bytes) -> Slices:
        yield
        threads[body] = threading.current_thread() is threading.main_thread()
        return b""

    script.waiting += [JobReply(1, EMBED, b"embed"), JobReply(2, QUERY, b"query")]
    script.run(query=work, embed=work)
    assert threads == {b"embed": False, b"query": True}


@pytest.mark.parametrize("job_class", [QUERY, EMBED])
@pytest.mark.parametrize(
    ("error", "errno"),
    [
        (MemoryError(), Errno.ENOMEM),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), Errno.ENOMEM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Errno.ENOMEM),
        (RuntimeError("shapes differ"), Errno.EIO),
        (ValueError("bad text"), Errno.EINVAL),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), Errno.EINVAL),
        (msgspec.ValidationError("no texts"), Errno.EINVAL),
        (MemError(Errno.EMODEL, "another model"), Errno.EMODEL),
        (KeyError("surprise"), Errno.EIO),
    ],
)
def test_what_a_job_raises_is_returned(
    script: Script, job_class: JobClass, error: Exception, errno: Errno
) -> None:
    script.waiting += [JobReply(1, job_class), JobReply(2, job_class, b"next")]
    work = iter([raising(error), echo])

    def each(body: bytes) -> Slices:
        return next(work)(body)

    script.run(query=each, embed=each)
    assert script.finished[1].errno == errno
    assert script.finished[1].message
    assert script.finished[2] == FinishJob(2, b"next")


def test_a_result_too_large_for_a_message_is_an_error(script: Script) -> None:
    def work(_body: bytes) -> Slices:
        yield
        return bytes(FRAME_MAX_BYTES + 1)

    script.waiting.append(JobReply(1, EMBED))
    script.run(embed=work)
    assert script.finished[1].errno == Errno.EMSGSIZE


def test_the_end_of_the_session_is_no_fault_of_the_job(script: Script) -> None:
    def work(_body: bytes) -> Iterator[None]:
        yield from ()
        yield

    def gone(request: Any, timeout_s: float | None = None) -> Any:
        if isinstance(request, TakeJob) and request.timeout_ms == 0:
            raise MemError(Errno.ESHUTDOWN, "no more")
        return Script.call(script, request, timeout_s)

    script.call = gone  # type: ignore[method-assign]
    script.waiting.append(JobReply(1, EMBED))
    script.run(query=echo, embed=echo)
    assert script.finished == {}
