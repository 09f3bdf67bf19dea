"""take_job and finish_job: for workers of this daemon, and for nobody else."""

from collections.abc import Iterator

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.jobs import EmbedRequest, JobClass
from memosd.kernel.access import Identity
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import ROOT, USER, Client, World, batch_of

NOTHING = c.JobReply()
QUERY, EMBED = JobClass.QUERY, JobClass.EMBED


@pytest.fixture
def staffed(make_world: MakeWorld) -> World:
    """A world with a worker process, which has one job to do."""
    world = make_world(workers=1)
    world.kernel.jobs.submit(EMBED, 1, EmbedRequest(("heron",)))
    return world


@pytest.fixture
def worker(staffed: World) -> Iterator[Client]:
    """That process."""
    client = Client(staffed, Identity(ROOT, ROOT, staffed.workers.pids[0]))
    client.hello()
    yield client
    if staffed.workers.pids:
        staffed.workers.finish(staffed.workers.pids[0])


def test_a_worker_takes_and_returns_a_job(staffed: World, worker: Client) -> None:
    reply = worker.call(c.TakeJob())
    worker.call(c.FinishJob(reply.id, b"x"))
    assert worker.call(c.TakeJob()) == NOTHING
    (stat,) = staffed.root.call(c.Info()).workers
    assert (stat.pid, stat.state, stat.jobs) == (worker.identity.pid, "idle", 1)


@pytest.mark.parametrize("uid", [ROOT, USER])
def test_strangers_may_not_take_jobs(staffed: World, worker: Client, uid: int) -> None:
    stranger = staffed.client(uid)
    stranger.fails(c.TakeJob(), Errno.EPERM)
    stranger.fails(c.FinishJob(1), Errno.EPERM)
    (item,) = stranger.call(batch_of(c.FinishJob(1))).results
    assert item.errno == Errno.EPERM


def test_a_worker_that_is_gone_is_a_stranger(staffed: World, worker: Client) -> None:
    staffed.workers.finish(worker.identity.pid)
    worker.fails(c.TakeJob(), Errno.EPERM)


@pytest.mark.parametrize(
    "request_", [c.TakeJob(classes=()), c.TakeJob(timeout_ms=-1), c.TakeJob(timeout_ms=60_001)]
)
def test_a_senseless_request_is_refused(worker: Client, request_: c.TakeJob) -> None:
    worker.fails(request_, Errno.EINVAL)


def test_a_job_waits_for_no_commit(staffed: World, worker: Client) -> None:
    worker.call(c.TakeJob())
    waits = worker.start(c.TakeJob(timeout_ms=1000))
    user = staffed.client()
    written = user.start(c.MakeNamespace(name="/n"))
    staffed.kernel.jobs.submit(QUERY, 1, EmbedRequest(("heron",)))
    assert waits.is_answered
    assert not written.is_answered
    staffed.settle()


def test_the_daemons_end_waits_for_its_workers(staffed: World, worker: Client) -> None:
    waits = worker.start(c.TakeJob(classes=(QUERY,), timeout_ms=1000))
    done = staffed.stop()
    assert waits.result() == NOTHING
    assert not done.is_done
    staffed.workers.finish(worker.identity.pid, "killed by signal 15")
    staffed.settle()
    assert done.is_done
