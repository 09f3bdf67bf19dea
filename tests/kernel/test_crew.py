"""The crew: when workers are started, started again and given up."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import EmbedRequest, JobClass
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.test_jobs import Bench, failure


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nobody_is_started_before_there_is_work() -> None:
    bench = Bench(workers=3)
    assert (bench.workers.pids, bench.jobs.stats()) == ([], ())
    bench.submit()
    bench.submit()
    assert len(bench.workers.pids) == 3
    assert [stat.state for stat in bench.jobs.stats()] == ["starting"] * 3


def test_without_an_embedder_there_is_no_work() -> None:
    bench = Bench(workers=0, no_workers="no embedder is configured")
    assert bench.jobs.problem
    with pytest.raises(MemError) as caught:
        bench.submit()
    assert caught.value.errno is Errno.EOPNOTSUPP
    assert caught.value.message == bench.jobs.problem == "no embedder is configured"


def test_a_worker_is_seen_to_start_work_and_rest(bench: Bench) -> None:
    job = bench.submit()

    def state() -> str:
        return bench.jobs.stats()[0].state

    worker = bench.session()
    assert state() == "starting"
    bench.take(worker)
    assert state() == "busy"
    bench.finish(worker, job.id)
    assert state() == "idle"
    bench.workers.finish(worker.identity.pid)
    stat = bench.jobs.stats()[0]
    assert (stat.pid, stat.state, stat.problem) == (0, "waiting", "killed by signal 9")


def test_pauses_between_starts_double_up_to_a_minute(bench: Bench) -> None:
    bench.submit()
    pauses = []
    for _ in range(10):
        bench.workers.finish(bench.workers.pids[0], "ended with status 1")
        delay_s = bench.timers.next_delay_s()
        assert delay_s is not None
        pauses.append(delay_s)
        bench.pass_time(int(delay_s * SECOND_NS) - 1)
        assert bench.workers.pids == []
        bench.pass_time(1)
        assert len(bench.workers.pids) == 1
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert bench.jobs.stats()[0].restarts == 10


def test_a_good_job_makes_the_pause_short_again(bench: Bench) -> None:
    job = bench.submit()
    for _ in range(3):
        bench.workers.finish(bench.workers.pids[0], "ended with status 1")
        bench.pass_time(60 * SECOND_NS)
    worker = bench.session()
    bench.take(worker)
    bench.finish(worker, job.id)
    assert bench.jobs.stats()[0].problem == ""
    bench.workers.finish(worker.identity.pid)
    assert bench.timers.next_delay_s() == 0.5


def test_who_cannot_begin_is_a_problem_until_one_can(bench: Bench) -> None:
    bench.submit()
    bench.workers.finish(bench.workers.pids[0], "ended with status 1")
    assert bench.jobs.problem == "no worker can begin: ended with status 1"
    with pytest.raises(MemError) as caught:
        bench.submit()
    assert caught.value.errno is Errno.EOPNOTSUPP
    bench.pass_time(60 * SECOND_NS)
    assert bench.jobs.problem
    assert bench.drain(bench.session()) != []
    assert not bench.jobs.problem


def test_who_keeps_dying_is_a_problem_and_one_bad_job_is_none(bench: Bench) -> None:
    jobs = [bench.submit(), bench.submit()]
    for deaths in range(1, 5):
        bench.take(bench.session())
        bench.workers.finish(bench.workers.pids[0], "killed by signal 9")
        assert bool(bench.jobs.problem) == (deaths >= 3)
        bench.pass_time(60 * SECOND_NS)
    assert bench.jobs.problem == "the worker keeps dying: killed by signal 9"
    assert all(job.done.is_done for job in jobs)
    bench.take(bench.session())
    assert not bench.jobs.problem


def test_one_that_works_is_enough() -> None:
    bench = Bench(workers=2)
    bench.submit()
    bench.workers.finish(bench.workers.pids[0], "ended with status 1")
    assert not bench.jobs.problem


def test_a_worker_says_itself_why_it_cannot_begin(bench: Bench) -> None:
    bench.submit()
    pid = bench.workers.pids[0]
    bench.jobs.finish(pid, c.FinishJob(0, errno=2, message="no such folder"))
    bench.workers.finish(pid, "ended with status 2")
    assert bench.jobs.stats()[0].problem == "no such folder"


def test_a_start_that_fails_is_tried_again(bench: Bench) -> None:
    bench.workers.failure = MemError(Errno.EAGAIN, "too many processes")
    job = bench.submit()
    assert "too many processes" in bench.jobs.stats()[0].problem
    bench.workers.failure = None
    bench.pass_time(SECOND_NS // 2)
    assert bench.drain(bench.session()) == [job.id]


def test_who_never_begins_is_killed(bench: Bench) -> None:
    bench.submit()
    bench.pass_time(600 * SECOND_NS)
    assert bench.workers.killed == bench.workers.pids
    bench.workers.finish(bench.workers.pids[0])
    assert bench.jobs.stats()[0].problem == "it did not begin in 600 s"


def test_who_does_not_end_when_asked_is_killed(bench: Bench) -> None:
    bench.submit()
    (pid,) = bench.workers.pids
    gone = bench.jobs.close()
    bench.pass_time(2 * SECOND_NS)
    assert (bench.workers.asked_to_end, bench.workers.killed) == ([pid], [pid])
    assert not gone.is_done
    bench.workers.finish(pid)
    assert gone.is_done


def test_an_end_without_workers_waits_for_nobody(bench: Bench) -> None:
    assert bench.jobs.close().is_done


def test_a_job_is_lost_when_two_workers_were(bench: Bench) -> None:
    job = bench.submit()
    for _ in range(2):
        bench.drain(bench.session())
        bench.workers.finish(bench.workers.pids[0], "killed by signal 11")
        bench.pass_time(60 * SECOND_NS)
    assert "killed by signal 11" in failure(job).message


def test_the_administrator_is_told(make_world: MakeWorld) -> None:
    world = make_world(workers=1)
    world.kernel.jobs.submit(JobClass.EMBED, 1, EmbedRequest(("heron",)))
    assert world.root.call(c.Info()).notices == ()
    world.workers.finish(world.workers.pids[0], "ended with status 1")
    notices = world.root.call(c.Info()).notices
    assert notices == ("no worker can begin: ended with status 1",)
