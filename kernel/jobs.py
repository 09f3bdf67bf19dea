"""Jobs: what the kernel has worker processes do, and who does what next.

`submit` queues a job; a worker asks for one (`take`) and returns what became of it (`finish`).
Classes go in the order of `JobClass`, accounts of one class in turn: users with their queries,
namespaces with what they store. A job is handed out at most twice: when its worker dies it goes
back to the front once, and fails the second time. Invariant: a job is done, or in exactly one of a
queue and `_running`; one that is done may still be in `_running`, where its worker has not returned
yet. A job that overruns its time limit fails at once, for it would again: who submits it may divide
it. Kernel thread only; nothing here loads a model.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from libmem.abi.calls import FinishJob, JobReply
from libmem.abi.errors import Errno, MemError, known_errno
from libmem.abi.jobs import JobClass
from libmem.abi.state import WorkerStat
from libmem.abi.structs import Value
from libmem.abi.wire import encode
from memosd.kernel.crew import Crew
from memosd.kernel.param import Parameters
from memosd.kernel.ports import Clock, Workers
from memosd.kernel.session import Session
from memosd.kernel.timers import Timer, Timers
from memosd.kernel.wait import Completion

__all__ = ["Job", "Jobs"]

_WAITING_MAX: Final = 1024
"""Jobs of one class that wait, ..."""
_WAITING_OF_ACCOUNT_MAX: Final = 256
"""... and those of one account, so that none takes all the room."""
_HAND_OUTS_MAX: Final = 2
_MESSAGE_MAX: Final = 1000


class Job:
    """One request. Await `done` for the result's body; `cancel` when nobody does any more."""

    __slots__ = ("account", "begun_ns", "body", "deadline", "done", "hand_outs", "id",
                 "is_waiting", "job_class", "limit", "pid", "took_ns", "turn")  # fmt: skip

    def __init__(self, number: int, job_class: JobClass, account: int, body: bytes) -> None:
        self.id = number
        self.job_class = job_class
        self.account = account
        self.body = body
        self.done: Completion[bytes] = Completion()
        """Fails with ETIMEDOUT (its deadline passed, or it overran), ECANCELED, ESHUTDOWN, EIO (its
        worker died twice), or with what the worker says: EINVAL, ENOMEM, EIO."""
        self.is_waiting = False
        """It is in a queue."""
        self.hand_outs = 0
        self.pid = 0
        """The worker that had it last."""
        self.turn = 0
        """That worker's: larger than that of all who were started before it."""
        self.begun_ns = 0
        self.took_ns = 0
        """How long the worker that returned it had it."""
        self.deadline: Timer | None = None
        self.limit: Timer | None = None
        """When the worker that has it is taken to hang."""

    def cancel(self) -> None:
        """Nobody waits for it any more; a worker that has begun may go on. Idempotent."""
        self.fail(MemError(Errno.ECANCELED, "nobody waits for the job any more"))

    def fail(self, error: MemError) -> None:
        """Nothing where it is done already."""
        if not self.done.is_done:
            self.done.fail(error)

    def succeed(self, body: bytes) -> None:
        """Nothing where it is done already."""
        if not self.done.is_done:
            self.done.resolve(body)


class _Queue:
    """Jobs of one class that wait: accounts in turn, the jobs of each in their order."""

    def __init__(self) -> None:
        self._turns: OrderedDict[int, deque[Job]] = OrderedDict()
        """Without namespaces that have none."""
        self._count = 0

    def check_room(self, account: int) -> None:
        """Errors: EAGAIN."""
        of_account = len(self._turns.get(account, ()))
        if self._count >= _WAITING_MAX or of_account >= _WAITING_OF_ACCOUNT_MAX:
            raise MemError(Errno.EAGAIN, "too many jobs wait for a worker already")

    def put(self, job: Job) -> None:
        job.is_waiting = True
        self._turns.setdefault(job.account, deque()).append(job)
        self._count += 1

    def put_back(self, job: Job) -> None:
        """Before all others."""
        job.is_waiting = True
        self._turns.setdefault(job.account, deque()).appendleft(job)
        self._turns.move_to_end(job.account, last=False)
        self._count += 1

    def pop(self) -> Job | None:
        if not self._turns:
            return None
        account, jobs = self._turns.popitem(last=False)
        self._count -= 1
        job = jobs.popleft()
        job.is_waiting = False
        if jobs:
            self._turns[account] = jobs
        return job

    def remove(self, job: Job) -> None:
        jobs = self._turns[job.account]
        jobs.remove(job)
        job.is_waiting = False
        self._count -= 1
        if not jobs:
            del self._turns[job.account]

    def __len__(self) -> int:
        return self._count


class _Taker:
    """A worker that waits for work. Resolved with a job, or None when it is to wait no longer."""

    __slots__ = ("classes", "job", "pid")

    def __init__(self, pid: int, classes: Collection[JobClass]) -> None:
        self.pid = pid
        self.classes = classes
        self.job: Completion[Job | None] = Completion()

    def let_go(self) -> None:
        if not self.job.is_done:
            self.job.resolve(None)


class Jobs:
    """See the head of this file."""

    def __init__(
        self, workers: Workers, clock: Clock, timers: Timers, parameters: Parameters
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._run_max_ns = parameters.job_timeout_ns
        self._numbers = itertools.count(1)
        self._queues = {job_class: _Queue() for job_class in JobClass}
        self._running: dict[int, Job] = {}
        self._takers: list[_Taker] = []
        """Longest waiting first."""
        self._is_closed = False
        self.crew = Crew(workers, timers, parameters)
        self.crew.on_lost = self._lost
        self.on_worker_lost: list[Callable[[int], None]] = []
        """Called with its process id, before others get its jobs."""
        self.on_hand_out: list[Callable[[Job], None]] = []
        """Called when a worker gets a job."""

    # -- the kernel's side ---------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why nothing can be done, for people; empty where it can."""
        return self.crew.problem

    @property
    def run_max_ns(self) -> int:
        """The time limit of a job."""
        return self._run_max_ns

    @property
    def is_possible(self) -> bool:
        """Is there a model at all? Where there is, what is a problem now may pass."""
        return self.crew.is_possible

    def call_up(self) -> None:
        """Have the workers started, before there is work."""
        if self.is_possible:
            self.crew.call_up()

    def submit(
        self, job_class: JobClass, account: int, request: Value, deadline_ns: int = 0
    ) -> Job:
        """Queue a job. `account`: of a user or a namespace; who has had less goes first.

        Units:  deadline_ns on the monotonic clock, ETIMEDOUT from then on; 0: never.
        Errors: EAGAIN (too many wait), EOPNOTSUPP (`problem`), ESHUTDOWN.
        """
        if self._is_closed:
            raise MemError(Errno.ESHUTDOWN, "the daemon is shutting down")
        if problem := self.problem:
            raise MemError(Errno.EOPNOTSUPP, problem)
        queue = self._queues[job_class]
        queue.check_room(account)
        job = Job(next(self._numbers), job_class, account, encode(request))
        # Before anybody can wait for it: who hears that it is done finds it in no queue.
        job.done.on_done(partial(self._forget, job))
        queue.put(job)
        if deadline_ns:
            late = MemError(Errno.ETIMEDOUT, "no worker did the job in time")
            left_ns = max(0, deadline_ns - self._clock.monotonic_ns())
            job.deadline = self._timers.after(left_ns, partial(job.fail, late))
        self.crew.call_up()
        self._serve_takers()
        return job

    def stats(self) -> tuple[WorkerStat, ...]:
        """The workers, for people."""
        return self.crew.stats()

    def replace_worker(self, job: Job, reason: str) -> None:
        """End the worker that had the job last, where it is still there; another one begins."""
        self.crew.kill(job.pid, reason)

    def waiting(self, job_class: JobClass) -> int:
        """How many jobs of a class no worker has in hand."""
        return len(self._queues[job_class])

    def _forget(self, job: Job) -> None:
        """It is done. What a worker has in hand stays with it until it returns it."""
        if job.deadline is not None:
            job.deadline.cancel()
        if job.is_waiting:
            self._queues[job.job_class].remove(job)

    # -- the workers' side ---------------------------------------------------------------------

    async def take(
        self, session: Session, classes: Collection[JobClass], timeout_ms: int
    ) -> JobReply:
        """The next job of some classes for a member of the crew; id 0 when none came in time."""
        pid = session.identity.pid
        self.crew.arrived(session)
        job = self._next(pid, classes)
        if job is None and timeout_ms and not self._is_closed:
            job = await self._wait(session, _Taker(pid, classes), timeout_ms)
        return JobReply() if job is None else self._hand_out(job, pid)

    async def _wait(self, session: Session, taker: _Taker, timeout_ms: int) -> Job | None:
        timer = self._timers.after(timeout_ms * 1_000_000, taker.let_go)
        session.on_end.add(taker.let_go)
        self._takers.append(taker)
        try:
            return await taker.job
        finally:
            self._takers.remove(taker)
            session.on_end.discard(taker.let_go)
            timer.cancel()

    def _serve_takers(self) -> None:
        for taker in list(self._takers):
            # One may be served, or let go, by what another's job sets off.
            if taker.job.is_done:
                continue
            job = self._next(taker.pid, taker.classes)
            if job is not None:
                taker.job.resolve(job)

    def _next(self, pid: int, classes: Collection[JobClass]) -> Job | None:
        """What a worker is to do. One that is dead gets nothing, for the job is not to blame."""
        if not any(self._queues[job_class] for job_class in classes) or not self.crew.can_work(pid):
            return None
        for job_class, queue in self._queues.items():
            if job_class in classes and (job := queue.pop()) is not None:
                return job
        return None

    def _hand_out(self, job: Job, pid: int) -> JobReply:
        job.pid = pid
        job.hand_outs += 1
        job.begun_ns = self._clock.monotonic_ns()
        self._running[job.id] = job
        job.turn = self.crew.took(pid)
        job.limit = self._timers.after(self._run_max_ns, partial(self._overran, job))
        for hear in self.on_hand_out:
            hear(job)
        return JobReply(id=job.id, job_class=job.job_class, body=job.body)

    def finish(self, pid: int, outcome: FinishJob) -> None:
        """A member returns a job. Errors: EBADF."""
        message = outcome.message[:_MESSAGE_MAX]
        if not outcome.id:
            self.crew.gives_up(pid, message)
            return
        job = self._running.get(outcome.id)
        if job is None or job.pid != pid:
            raise MemError(Errno.EBADF, f"this worker has no job {outcome.id} in hand")
        self._take_back(job)
        job.took_ns = self._clock.monotonic_ns() - job.begun_ns
        self.crew.gave_back(pid, is_good=not outcome.errno)
        if outcome.errno:
            job.fail(MemError(known_errno(outcome.errno), message))
        else:
            job.succeed(outcome.body)

    def _overran(self, job: Job) -> None:
        lasted = f"{self._run_max_ns / 1e9:g} s"
        self.crew.kill(job.pid, f"it had one {job.job_class} job for {lasted}")
        job.fail(MemError(Errno.ETIMEDOUT, f"the job was not done within {lasted}"))

    def _take_back(self, job: Job) -> None:
        del self._running[job.id]
        if job.limit is not None:
            job.limit.cancel()

    def _lost(self, pid: int, reason: str) -> None:
        """A worker is gone: what it had in hand goes back, or has had its chances."""
        for hear in self.on_worker_lost:
            hear(pid)
        for taker in self._takers:
            if taker.pid == pid:
                taker.let_go()
        held = [job for job in self._running.values() if job.pid == pid]
        for job in reversed(held):
            self._take_back(job)
            if job.done.is_done:
                continue
            if job.hand_outs >= _HAND_OUTS_MAX:
                job.fail(MemError(Errno.EIO, f"its worker died twice: {reason}"))
            elif self._is_closed:
                job.fail(MemError(Errno.ESHUTDOWN, "the daemon is shutting down"))
            else:
                self._queues[job.job_class].put_back(job)
        self._serve_takers()

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> Completion[None]:
        """Fail all jobs with ESHUTDOWN and end the workers; done when they are gone."""
        self._is_closed = True
        for taker in list(self._takers):
            taker.let_go()
        waiting = [job for queue in self._queues.values() for job in iter(queue.pop, None)]
        for job in (*waiting, *self._running.values()):
            job.fail(MemError(Errno.ESHUTDOWN, "the daemon is shutting down"))
        return self.crew.close()
