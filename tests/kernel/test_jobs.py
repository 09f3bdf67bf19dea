"""Jobs: who does what next, what becomes of a job whose worker dies."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import EmbedRequest, JobClass
from memosd.kernel.access import Identity
from memosd.kernel.jobs import Job, Jobs
from memosd.kernel.param import Parameters
from memosd.kernel.session import Session
from memosd.kernel.timers import Timers
from memosd.kernel.wait import Completion, spawn
from tests.kernel.fakes import SECOND_NS, FakeClock, FakeWorkers
from tests.kernel.world import ROOT

MS = 1_000_000
NOTHING = c.JobReply()
QUERY, EMBED = JobClass.QUERY, JobClass.EMBED
BOTH = (QUERY, EMBED)


class Bench:
    """A queue with workers that a test moves."""

    def __init__(self, **changes: Any) -> None:
        self.clock = FakeClock()
        self.timers = Timers(self.clock)
        self.workers = FakeWorkers()
        parameters = Parameters(**{"workers": 1, **changes})
        self.jobs = Jobs(self.workers, self.clock, self.timers, parameters)
        self._sessions = iter(range(1, 1_000_000))

    def submit(
        self, job_class: JobClass = EMBED, namespace: int = 1, text: str = "", deadline_ns: int = 0
    ) -> Job:
        return self.jobs.submit(job_class, namespace, EmbedRequest((text,)), deadline_ns)

    def session(self, pid: int = 0) -> Session:
        """A worker's; of the newest one unless told."""
        identity = Identity(ROOT, ROOT, pid or self.workers.pids[-1])
        return Session(next(self._sessions), identity, "worker", 0)

    def ask(
        self, session: Session, classes: tuple[JobClass, ...] = BOTH, timeout_ms: int = 60_000
    ) -> Completion[c.JobReply]:
        return spawn(self.jobs.take(session, classes, timeout_ms))

    def take(self, session: Session, classes: tuple[JobClass, ...] = BOTH) -> c.JobReply:
        return self.ask(session, classes, 0).result()

    def drain(self, session: Session) -> list[int]:
        """The jobs that wait, in the order in which they are handed out."""
        return [reply.id for reply in iter(lambda: self.take(session), NOTHING)]

    def finish(self, session: Session, number: int, body: bytes = b"done") -> None:
        self.jobs.finish(session.identity.pid, c.FinishJob(number, body))

    def pass_time(self, by_ns: int) -> None:
        self.clock.advance(by_ns)
        self.timers.run_due()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def failure(job: Job) -> MemError:
    """What a job failed with."""
    with pytest.raises(MemError) as caught:
        job.done.result()
    return caught.value


# -- order -------------------------------------------------------------------------------------


def test_a_job_is_handed_out_and_its_result_comes_back(bench: Bench) -> None:
    job = bench.submit(text="heron")
    worker = bench.session()
    reply = bench.take(worker)
    assert (reply.id, reply.job_class) == (job.id, EMBED)
    assert b"heron" in reply.body
    assert bench.take(worker) == NOTHING
    bench.finish(worker, job.id, b"vectors")
    assert job.done.result() == b"vectors"


def test_queries_go_before_what_waits_longer(bench: Bench) -> None:
    batch, query = bench.submit(EMBED), bench.submit(QUERY)
    assert bench.drain(bench.session()) == [query.id, batch.id]


def test_a_worker_gets_only_the_classes_it_asks_for(bench: Bench) -> None:
    batch = bench.submit(EMBED)
    worker = bench.session()
    assert bench.take(worker, (QUERY,)) == NOTHING
    assert bench.take(worker).id == batch.id
    query = bench.submit(QUERY)  # between two slices of the batch
    assert bench.take(worker, (QUERY,)).id == query.id


def test_namespaces_take_turns(bench: Bench) -> None:
    loud = [bench.submit(namespace=1).id for _ in range(3)]
    quiet = [bench.submit(namespace=2).id for _ in range(2)]
    expected = [loud[0], quiet[0], loud[1], quiet[1], loud[2]]
    assert bench.drain(bench.session()) == expected


@given(st.lists(st.integers(0, 4), max_size=40))
def test_of_any_two_namespaces_that_wait_none_is_ahead_by_more_than_one(
    namespaces: list[int],
) -> None:
    bench = Bench()
    owner = {bench.submit(namespace=n).id: n for n in namespaces}
    if not owner:
        return
    left = {n: namespaces.count(n) for n in namespaces}
    served = dict.fromkeys(left, 0)
    order = bench.drain(bench.session())
    assert sorted(order) == sorted(owner)
    for number in order:
        served[owner[number]] += 1
        left[owner[number]] -= 1
        waiting = [served[n] for n in left if left[n]]
        assert not waiting or served[owner[number]] - min(waiting) <= 1
    for n in left:
        own = [number for number in order if owner[number] == n]
        assert own == sorted(own)


def test_who_waits_longest_is_served_first_and_at_once(bench: Bench) -> None:
    bench.submit()
    first, second = bench.session(), bench.session()
    bench.drain(first)
    waits = [bench.ask(first, (QUERY,)), bench.ask(second)]
    batch = bench.submit(EMBED)
    assert (waits[0].is_done, waits[1].result().id) == (False, batch.id)
    query = bench.submit(QUERY)
    assert waits[0].result().id == query.id


def test_a_worker_is_let_go_when_nothing_comes(bench: Bench) -> None:
    bench.submit()
    worker = bench.session()
    bench.drain(worker)
    wait = bench.ask(worker, timeout_ms=50)
    bench.pass_time(49 * MS)
    assert not wait.is_done
    bench.pass_time(1 * MS)
    assert wait.result() == NOTHING
    job = bench.submit()
    assert bench.take(worker).id == job.id


def test_room_is_bounded_for_each_namespace_and_for_all(bench: Bench) -> None:
    for _ in range(256):
        bench.submit(namespace=0)
    with pytest.raises(MemError) as caught:
        bench.submit(namespace=0)
    assert caught.value.errno is Errno.EAGAIN
    for namespace in range(1, 4):
        for _ in range(256):
            bench.submit(namespace=namespace)
    with pytest.raises(MemError):
        bench.submit(namespace=9)
    bench.submit(QUERY, namespace=9)  # another class has room of its own
    assert bench.jobs.waiting(EMBED) == 1024


# -- the end of a job --------------------------------------------------------------------------


def test_a_cancelled_job_is_not_handed_out(bench: Bench) -> None:
    gone, kept = bench.submit(), bench.submit()
    gone.cancel()
    gone.cancel()
    assert failure(gone).errno is Errno.ECANCELED
    assert bench.drain(bench.session()) == [kept.id]


def test_a_job_that_is_cancelled_in_hand_is_returned_to_nobody(bench: Bench) -> None:
    job = bench.submit()
    worker = bench.session()
    bench.drain(worker)
    job.cancel()
    bench.finish(worker, job.id)
    assert failure(job).errno is Errno.ECANCELED


@pytest.mark.parametrize("is_in_hand", [False, True])
def test_a_deadline_ends_the_wait(bench: Bench, *, is_in_hand: bool) -> None:
    job = bench.submit(deadline_ns=bench.clock.monotonic_ns() + SECOND_NS)
    worker = bench.session()
    if is_in_hand:
        bench.drain(worker)
    bench.pass_time(SECOND_NS - 1)
    assert not job.done.is_done
    bench.pass_time(1)
    assert failure(job).errno is Errno.ETIMEDOUT
    assert bench.drain(worker) == []
    if is_in_hand:
        bench.finish(worker, job.id)


def test_an_error_of_the_job_is_no_death(bench: Bench) -> None:
    job = bench.submit()
    worker = bench.session()
    bench.drain(worker)
    bench.jobs.finish(worker.identity.pid, c.FinishJob(job.id, errno=12, message="no memory"))
    assert (failure(job).errno, failure(job).message) == (Errno.ENOMEM, "no memory")
    assert bench.workers.killed == []
    odd = bench.submit()
    bench.drain(worker)
    bench.jobs.finish(worker.identity.pid, c.FinishJob(odd.id, errno=4711, message="?"))
    assert failure(odd).errno is Errno.EIO


def test_only_who_has_a_job_returns_it(bench: Bench) -> None:
    job = bench.submit()
    worker = bench.session()
    bench.drain(worker)
    for pid, number in ((1, job.id), (worker.identity.pid, job.id + 1)):
        with pytest.raises(MemError) as caught:
            bench.jobs.finish(pid, c.FinishJob(number))
        assert caught.value.errno is Errno.EBADF
    assert not job.done.is_done


# -- workers that die --------------------------------------------------------------------------


def test_a_dead_workers_job_goes_to_the_front_once(bench: Bench) -> None:
    job, other = bench.submit(namespace=1), bench.submit(namespace=2)
    worker = bench.session()
    assert bench.take(worker).id == job.id
    bench.workers.finish(worker.identity.pid)
    bench.pass_time(SECOND_NS // 2)
    assert bench.drain(bench.session()) == [job.id, other.id]
    bench.workers.finish(bench.workers.pids[-1])
    assert str(failure(job)) == "EIO: its worker died twice: killed by signal 9"
    assert not other.done.is_done  # it has a chance left
    bench.pass_time(SECOND_NS)
    worker = bench.session()
    assert bench.drain(worker) == [other.id]
    bench.finish(worker, other.id)
    assert other.done.result() == b"done"


def test_all_that_a_dead_worker_had_goes_back_in_order(bench: Bench) -> None:
    jobs = [bench.submit(namespace=1) for _ in range(3)]
    query = bench.submit(QUERY)
    assert bench.drain(bench.session()) == [query.id, *(job.id for job in jobs)]
    bench.workers.finish(bench.workers.pids[-1])
    bench.pass_time(SECOND_NS)
    assert bench.drain(bench.session()) == [query.id, *(job.id for job in jobs)]


def test_what_a_dead_worker_had_goes_to_one_that_waits() -> None:
    bench = Bench(workers=2)
    job = bench.submit()
    first, second = (bench.session(pid) for pid in bench.workers.pids)
    bench.drain(first)
    wait = bench.ask(second)
    bench.workers.finish(first.identity.pid)
    assert wait.result().id == job.id


def test_a_job_that_takes_too_long_ends_its_worker() -> None:
    bench = Bench(job_timeout_ns=5 * SECOND_NS)
    job, other = bench.submit(), bench.submit()
    worker = bench.session()
    assert bench.take(worker).id == job.id
    bench.pass_time(5 * SECOND_NS - 1)
    assert worker.identity.pid not in bench.workers.killed
    bench.pass_time(1)
    assert bench.workers.killed == [worker.identity.pid]
    assert str(failure(job)) == "ETIMEDOUT: the job was not done within 5 s"
    bench.workers.finish(worker.identity.pid)
    assert bench.jobs.stats()[0].problem == "it had one embed job for 5 s"
    bench.pass_time(SECOND_NS)
    assert bench.drain(bench.session()) == [other.id], "it would only overrun again"


def test_a_job_that_is_done_says_how_long_it_took(bench: Bench) -> None:
    job = bench.submit()
    bench.pass_time(7 * SECOND_NS)  # to wait in the queue is none of it
    worker = bench.session()
    bench.take(worker)
    bench.pass_time(3 * SECOND_NS)
    bench.finish(worker, job.id)
    assert job.took_ns == 3 * SECOND_NS


@pytest.mark.parametrize("is_waiting", [False, True])
def test_what_a_dead_worker_was_not_given_has_both_its_chances(
    bench: Bench, *, is_waiting: bool
) -> None:
    bench.jobs.call_up()
    worker = bench.session()
    wait = bench.ask(worker) if is_waiting else None
    bench.workers.dead.add(worker.identity.pid)
    job = bench.submit()
    if wait is None:
        assert bench.take(worker) == NOTHING, "its last request lay on the wire"
    bench.workers.finish(worker.identity.pid)
    for pause_ns in (SECOND_NS, 2 * SECOND_NS):
        bench.pass_time(pause_ns)
        assert bench.take(bench.session()).id == job.id
        assert not job.done.is_done
        bench.workers.finish(bench.workers.pids[-1])
    assert "died twice" in str(failure(job))


def test_a_worker_that_is_killed_gets_no_more_work(bench: Bench) -> None:
    late, other = bench.submit(), bench.submit()
    worker = bench.session()
    assert bench.take(worker).id == late.id
    bench.pass_time(60 * SECOND_NS)
    assert bench.workers.killed == [worker.identity.pid]
    assert bench.take(worker) == NOTHING, "it is as good as dead"
    assert not other.done.is_done


def test_a_worker_whose_session_ends_is_killed(bench: Bench) -> None:
    job = bench.submit()
    worker = bench.session()
    bench.drain(worker)
    for give_up in list(worker.on_end):
        give_up()
    assert bench.workers.killed == [worker.identity.pid]
    assert not job.done.is_done  # not before the process is gone for certain
    bench.workers.finish(worker.identity.pid)
    bench.pass_time(SECOND_NS)
    assert bench.drain(bench.session()) == [job.id]


def test_the_session_of_a_worker_that_is_gone_ends_nobody_else(bench: Bench) -> None:
    bench.submit()
    worker = bench.session()
    bench.drain(worker)
    bench.workers.finish(worker.identity.pid)
    bench.pass_time(SECOND_NS)
    bench.drain(bench.session())
    for give_up in list(worker.on_end):
        give_up()
    assert bench.workers.killed == []


def test_a_cancelled_job_of_a_dead_worker_is_not_done_again(bench: Bench) -> None:
    job = bench.submit()
    bench.drain(bench.session())
    job.cancel()
    bench.workers.finish(bench.workers.pids[-1])
    bench.pass_time(SECOND_NS)
    assert bench.drain(bench.session()) == []


def test_the_end_fails_all_jobs_and_lets_all_workers_go(bench: Bench) -> None:
    held, waiting = bench.submit(), bench.submit()
    worker = bench.session()
    bench.take(worker)
    waits = bench.ask(bench.session(), (QUERY,))
    gone = bench.jobs.close()
    assert waits.result() == NOTHING
    assert {failure(job).errno for job in (held, waiting)} == {Errno.ESHUTDOWN}
    with pytest.raises(MemError):
        bench.submit()
    assert bench.workers.asked_to_end == [worker.identity.pid]
    bench.workers.finish(worker.identity.pid, "killed by signal 15")
    assert gone.is_done
    bench.pass_time(100 * SECOND_NS)
    assert bench.workers.pids == []
