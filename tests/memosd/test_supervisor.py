"""The supervisor: real processes, and a loop that a test turns."""

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.supervisor import Supervisor

PATIENCE_S = 30.0


class Loop:
    """The server's part: descriptors, and what is to be done when they are readable."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        self.watched[fd] = action

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def turn(self) -> None:
        """Wait until something is readable, and act."""
        ready, _, _ = select.select(list(self.watched), [], [], PATIENCE_S)
        assert ready, "nothing happened"
        for fd in ready:
            self.watched[fd]()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def make(loop: Loop) -> Iterator[Callable[[str], Supervisor]]:
    """A supervisor of processes that run a program; the ends are in its `ends`."""
    made = []

    def new(program: str) -> Supervisor:
        made.append(Supervisor(loop, [sys.executable, "-c", program]))
        return made[-1]

    yield new
    for supervisor in made:
        supervisor.close()


def ends_of(supervisor: Supervisor) -> list[tuple[int, str]]:
    """Where the ends of its children are told."""
    ends: list[tuple[int, str]] = []
    supervisor.on_end = lambda pid, how: ends.append((pid, how))
    return ends


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("import sys; sys.exit(3)", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 11)", "killed by signal 11"),
    ],
)
def test_how_a_worker_ended_is_told(
    loop: Loop, make: Callable[[str], Supervisor], program: str, how: str
) -> None:
    supervisor = make(program)
    ends = ends_of(supervisor)
    pid = supervisor.start()
    loop.turn()
    assert ends == [(pid, how)]
    assert loop.watched == {}
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reaped


def test_a_pid_is_nobody_elses_until_its_end_is_told(
    loop: Loop, make: Callable[[str], Supervisor]
) -> None:
    supervisor = make("")
    ends_of(supervisor)
    pid = supervisor.start()
    select.select(list(loop.watched), [], [], PATIENCE_S)  # it has ended, nobody looked
    os.kill(pid, 0)
    supervisor.kill(pid)
    supervisor.end(pid)
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) is not None, "to signal it reaps it"
    loop.turn()
    supervisor.kill(pid)  # it may be somebody else by now: nothing happens


def test_who_has_ended_is_not_alive_though_not_reaped(
    loop: Loop, make: Callable[[str], Supervisor]
) -> None:
    supervisor = make("import time; time.sleep(3600)")
    ends = ends_of(supervisor)
    pid = supervisor.start()
    assert supervisor.is_alive(pid)
    os.kill(pid, signal.SIGKILL)
    select.select(list(loop.watched), [], [], PATIENCE_S)
    assert not supervisor.is_alive(pid)
    assert ends == []
    loop.turn()
    assert not supervisor.is_alive(pid)


@pytest.mark.parametrize(("ask", "number"), [("end", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_a_worker_is_ended_and_killed(
    loop: Loop, make: Callable[[str], Supervisor], ask: str, number: int
) -> None:
    supervisor = make("import time; time.sleep(3600)")
    ends = ends_of(supervisor)
    pid = supervisor.start()
    getattr(supervisor, ask)(pid)
    loop.turn()
    assert ends == [(pid, f"killed by signal {number}")]


def test_a_worker_is_told_who_started_it_and_nothing_of_the_service_manager(
    loop: Loop, make: Callable[[str], Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    supervisor = make(
        "import os, sys\n"
        "assert sys.argv[1] == f'--parent={os.getppid()}'\n"
        "assert 'NOTIFY_SOCKET' not in os.environ\n"
        "assert os.getpgid(0) == os.getpid()\n"
    )
    ends = ends_of(supervisor)
    pid = supervisor.start()
    loop.turn()
    assert ends == [(pid, "ended with status 0")]


def test_what_cannot_be_started_is_an_error(loop: Loop) -> None:
    with pytest.raises(MemError) as caught:
        Supervisor(loop, ["/nonexistent"]).start()
    assert caught.value.errno is Errno.EIO
    assert loop.watched == {}


def test_none_is_left_at_the_end(loop: Loop, make: Callable[[str], Supervisor]) -> None:
    supervisor = make("import time; time.sleep(3600)")
    pid = supervisor.start()
    supervisor.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
