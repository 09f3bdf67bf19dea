"""Worker processes of a real daemon: they die, hang and fail, and the daemon does not mind.

The worker is the real one with a table of jobs of its own (`standin.py`); a test writes into a pipe
what is to be done (`jobdaemon.py`).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from libmem.abi.calls import Call, FinishJob, TakeJob
from libmem.abi.errors import Errno, MemError
from libmem.abi.state import WorkerStat
from tests.e2e.actor import Actor, require_other_users
from tests.e2e.daemon import Daemon, eventually

TABLE = '[models]\nembedder = "{}"\n[workers]\njob_timeout_s = 2\nmemory_bytes = "4 GiB"\n'
STRANGER = """
from libmem.abi.calls import TakeJob, FinishJob
say(errno_of(client.call, TakeJob(timeout_ms=1000)))
say(errno_of(client.call, FinishJob(1)))
hear()
"""


class JobDaemon(Daemon):
    """A daemon that has whatever a test asks for done by stand-in workers."""

    def __init__(self, embedder: str = "stand-in") -> None:
        super().__init__()
        self.module = "tests.e2e.jobdaemon"
        self.config = TABLE.format(embedder)
        self._pipe = self.folder / "pipe"
        os.mkfifo(self._pipe)
        self.environment = {"JOBS_PIPE": str(self._pipe)}

    def submit(self, name: str, job_class: str, *texts: str) -> None:
        """One job; a text is a command to the stand-in."""
        with self._pipe.open("w") as pipe:
            pipe.write("\t".join((name, job_class, *texts)) + "\n")

    def outcome(self, name: str) -> str:
        """What became of a job, once it is done: its body, or the error."""
        eventually(lambda: name in self.outcomes(), f"{name} is done")
        return self.outcomes()[name]

    def outcomes(self) -> dict[str, str]:
        """Of all jobs that are done, in the order in which they were."""
        path = self._pipe.with_name("outcomes")
        # The last line may be half there.
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return dict(line.split("\t", 1) for line in lines)

    def worker(self) -> WorkerStat:
        with self.connect() as client:
            (stat,) = client.info().workers
        return stat

    def await_state(self, state: str) -> WorkerStat:
        """Wait until the one worker is so far."""
        eventually(lambda: self.worker().state == state, f"a worker is {state}")
        return self.worker()

    def employ(self) -> int:
        """Have a worker that waits for work; its process id."""
        self.submit("first", "query")
        self.outcome("first")
        return self.await_state("idle").pid


@pytest.fixture
def daemon() -> Iterator[JobDaemon]:
    """A running daemon without a worker yet."""
    daemon = JobDaemon()
    try:
        daemon.start()
    except BaseException:
        daemon.destroy()
        raise
    try:
        yield daemon
        daemon.finish()
    finally:
        daemon.destroy()


def is_gone(pid: int) -> bool:
    """No such process any more, or one that is but to be reaped."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_a_worker_is_started_with_the_first_job_and_kept(daemon: JobDaemon) -> None:
    with daemon.connect() as client:
        assert client.info().workers == ()
    pid = daemon.employ()
    daemon.submit("second", "embed", "heron")
    assert daemon.outcome("second").startswith(f"{pid} ")
    stat = daemon.await_state("idle")
    assert (stat.pid, stat.jobs, stat.restarts, stat.problem) == (pid, 2, 0, "")
    assert stat.rss_bytes > 0
    adjusted = Path(f"/proc/{pid}/oom_score_adj").read_text()
    assert int(adjusted) == 500


def test_only_background_work_is_nice(daemon: JobDaemon) -> None:
    daemon.submit("query", "query", "heron")
    daemon.submit("embed", "embed", "heron")
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert daemon.outcome("query").split()[1] == str(ours)
    assert daemon.outcome("embed").split()[1] == str(min(19, ours + 5))


def test_a_query_waits_for_a_slice_and_not_for_a_batch(daemon: JobDaemon) -> None:
    daemon.employ()
    daemon.submit("batch", "embed", "slices 100")
    daemon.await_state("busy")
    daemon.submit("query", "query", "heron")
    daemon.outcome("batch")
    assert list(daemon.outcomes()) == ["first", "query", "batch"]


def test_a_worker_that_is_killed_in_the_middle_is_replaced(daemon: JobDaemon) -> None:
    before = daemon.employ()
    daemon.submit("job", "embed", f"die-once {daemon.folder / 'mark'}", "heron")
    assert daemon.outcome("job").endswith("heron")
    stat = daemon.await_state("idle")
    assert (stat.pid == before, stat.restarts) == (False, 1)


def test_a_job_that_kills_is_given_up(daemon: JobDaemon) -> None:
    daemon.submit("job", "embed", "die")
    assert daemon.outcome("job") == "EIO: its worker died twice: killed by signal 9"
    daemon.submit("other", "embed", "heron")
    assert daemon.outcome("other").endswith("heron")


def test_a_worker_that_hangs_is_killed(daemon: JobDaemon) -> None:
    pid = daemon.employ()
    daemon.submit("job", "embed", "hang")
    assert daemon.outcome("job") == "ETIMEDOUT: the job was not done within 2 s"
    eventually(lambda: is_gone(pid), "it is killed")
    daemon.submit("other", "query", "heron")
    assert daemon.outcome("other").endswith("heron")


@pytest.mark.parametrize(
    ("text", "errno"),
    [
        ("memory", Errno.ENOMEM),
        ("torch-memory", Errno.ENOMEM),
        ("hog", Errno.ENOMEM),
        ("value", Errno.EINVAL),
    ],
)
@pytest.mark.parametrize("job_class", ["query", "embed"])
def test_a_job_that_fails_leaves_its_worker_alive(
    daemon: JobDaemon, text: str, errno: Errno, job_class: str
) -> None:
    pid = daemon.employ()
    daemon.submit("job", job_class, text)
    assert daemon.outcome("job").startswith(f"{errno.name}: ")
    daemon.submit("other", job_class, "heron")
    assert daemon.outcome("other").startswith(f"{pid} ")


def test_a_surprise_is_told_and_logged(daemon: JobDaemon) -> None:
    daemon.submit("job", "query", "bug")
    assert daemon.outcome("job") == "EIO: KeyError: 'a surprise'"
    assert "Traceback" in daemon.log()
    daemon.await_rest()
    daemon.stop()
    daemon.destroy()  # its log is not without surprises


def test_a_result_that_is_too_large_is_an_error(daemon: JobDaemon) -> None:
    daemon.employ()
    daemon.submit("job", "embed", f"large {5 << 20}")
    assert daemon.outcome("job") == "EMSGSIZE: the result is too large"


@pytest.mark.parametrize(
    ("embedder", "why"),
    [("broken", "FileNotFoundError: no such model"), ("exits", "ended with status 3")],
)
def test_a_worker_that_cannot_begin_is_tried_again_with_pauses(embedder: str, why: str) -> None:
    daemon = JobDaemon(embedder)
    daemon.start()
    try:
        daemon.submit("job", "embed", "heron")
        with daemon.connect() as client:
            eventually(lambda: bool(client.info().notices), "the administrator is told")
            assert client.info().notices == (f"no worker can begin: {why}",)
            eventually(lambda: client.info().workers[0].restarts >= 2, "it is tried again")
        daemon.submit("next", "query", "heron")
        assert daemon.outcome("next") == f"EOPNOTSUPP: no worker can begin: {why}"
    finally:
        daemon.stop()
        daemon.destroy()
    # Not waited for: the job that no worker ever took.


def test_strangers_get_no_work(daemon: JobDaemon) -> None:
    daemon.employ()
    with daemon.connect() as client:  # the daemon's own user, another process
        requests: tuple[Call[Any], ...] = (TakeJob(timeout_ms=1000), FinishJob(1))
        for request in requests:
            with pytest.raises(MemError) as caught:
                client.call(request)
            assert caught.value.errno is Errno.EPERM


def test_strangers_of_another_user_get_no_work() -> None:
    require_other_users()
    daemon = JobDaemon()
    assert daemon.config is not None
    daemon.config += '[listen]\nmode = "0666"\n'
    daemon.folder.chmod(0o755)
    daemon.start()
    daemon.employ()
    with Actor(daemon, STRANGER, 1234, (1234,)) as stranger:
        assert [stranger.hear(), stranger.hear()] == ["EPERM", "EPERM"]
    daemon.finish()


def test_no_worker_outlives_a_daemon_that_is_killed(daemon: JobDaemon) -> None:
    idle = daemon.employ()
    daemon.kill()
    eventually(lambda: is_gone(idle), "the worker is gone")
    daemon.start()
    daemon.employ()
    daemon.submit("burn", "query", "burn 60")
    busy = daemon.await_state("busy").pid
    daemon.kill()
    eventually(lambda: is_gone(busy), "the busy worker is gone")
    daemon.start()


def test_the_orderly_end_ends_the_workers(daemon: JobDaemon) -> None:
    idle = daemon.employ()
    daemon.stop()
    assert is_gone(idle)
    daemon.start()
    daemon.submit("burn", "embed", "burn 60")
    busy = daemon.await_state("busy").pid
    daemon.stop()
    assert is_gone(busy)
    assert daemon.outcome("burn") == "ESHUTDOWN: the daemon is shutting down"


def test_a_stopped_worker_does_not_hold_up_the_end(daemon: JobDaemon) -> None:
    pid = daemon.employ()
    os.kill(pid, signal.SIGSTOP)
    daemon.stop()
    assert is_gone(pid)


def test_the_daemon_answers_while_a_worker_computes(daemon: JobDaemon) -> None:
    daemon.employ()
    daemon.submit("burn", "embed", "burn 1")
    daemon.await_state("busy")
    with daemon.connect() as client:
        client.make_namespace("/n")
        calls = 0
        while client.info().workers[0].state == "busy":
            client.write(f"/n/{calls}", b"heron")
            calls += 1
            assert client.search("heron", under="/n")[0].name.startswith("/n/")
    assert calls, "it answered while the worker was busy"
    daemon.outcome("burn")


def test_a_worker_has_a_ceiling_of_memory(daemon: JobDaemon) -> None:
    pid = daemon.employ()
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_DATA) == (4 << 30, 4 << 30)


def test_a_worker_that_somebody_ends_is_replaced(daemon: JobDaemon) -> None:
    pid = daemon.employ()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: daemon.worker().pid not in (0, pid), "another one is there")
    assert daemon.await_state("idle").problem == "killed by signal 15"
