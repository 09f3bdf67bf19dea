"""The crew: the worker processes, from their first start to the daemon's end.

Owns when one is started, started again or given up; `jobs.py` owns what they do. Each of a fixed
number of places has one process after another. Invariant: whoever is a member was started by this
daemon and has not been reaped, so that its process id is nobody else's. Kernel thread only.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Final

import psutil
import structlog

from libmem.abi.errors import MemError
from libmem.abi.state import WorkerStat
from memosd.kernel.param import Parameters
from memosd.kernel.ports import Workers
from memosd.kernel.session import Session
from memosd.kernel.timers import Timer, Timers
from memosd.kernel.wait import Completion

__all__ = ["Crew"]

_log = structlog.get_logger("memosd.kernel")
_PAUSE_FIRST_NS: Final = 500_000_000
_PAUSE_MAX_NS: Final = 60_000_000_000
_BEGIN_MAX_NS: Final = 600_000_000_000
"""To load a model, which may have to be fetched first."""
_GRACE_NS: Final = 2_000_000_000
"""Between the request to end and the kill."""
_KEEPS_DYING: Final = 3
"""Deaths in a row that are no accident any more; one bad job makes two."""


class _Place:
    """One worker, and those before it."""

    __slots__ = ("can_begin", "deaths", "held", "is_doomed", "jobs", "pid", "problem", "reason",
                 "session", "starts", "state", "timer", "turn")  # fmt: skip

    def __init__(self) -> None:
        self.pid = 0
        """0 while there is none."""
        self.state = "waiting"
        self.session = 0
        """The session that it last asked in."""
        self.held = 0
        self.is_doomed = False
        """It was killed, and is not reaped yet."""
        self.jobs = 0
        self.starts = 0
        self.turn = 0
        """Larger than that of all workers that were started before it."""
        self.can_begin = True
        """The last one came so far as to ask for work."""
        self.deaths = 0
        """Since the last good job."""
        self.problem = ""
        self.reason = ""
        """Why it is being killed, or gives up."""
        self.timer: Timer | None = None
        """To its next start, or to the end of the time that it may take to begin."""


class Crew:
    """All workers."""

    def __init__(self, workers: Workers, timers: Timers, parameters: Parameters) -> None:
        self._workers = workers
        workers.on_end = self._ended
        self._timers = timers
        self._count = parameters.workers
        self._no_workers = parameters.no_workers
        self._places: list[_Place] = []
        self._by_pid: dict[int, _Place] = {}
        self._turns = itertools.count(1)
        self._all_gone: Completion[None] | None = None
        self.on_lost: Callable[[int, str], None] = _nobody_listens
        """Process id and reason of a worker that is gone with what it had in hand."""

    def is_member(self, pid: int) -> bool:
        return pid in self._by_pid

    @property
    def problem(self) -> str:
        """Why no job can be done, for people; empty where one can."""
        if not self._count:
            return self._no_workers
        for place in self._places:
            if place.state not in ("waiting", "starting"):
                return ""
            if place.can_begin and place.deaths < _KEEPS_DYING:
                return ""
        if not self._places:
            return ""
        first = self._places[0]
        what = "the worker keeps dying" if first.can_begin else "no worker can begin"
        return f"{what}: {first.problem}"

    @property
    def is_possible(self) -> bool:
        """May there ever be a worker?"""
        return self._count > 0

    def call_up(self) -> None:
        """There is work: start the workers, unless they run or are about to."""
        if self._all_gone is None and not self._places:
            self._places = [_Place() for _ in range(self._count)]
            for place in self._places:
                self._start(place)

    def _start(self, place: _Place) -> None:
        place.timer = None
        place.starts += 1
        place.state, place.jobs, place.held = "starting", 0, 0
        place.session, place.reason, place.is_doomed = 0, "", False
        try:
            place.pid = self._workers.start()
        except MemError as error:
            self._start_later(place, str(error))
            return
        _log.info("a worker was started", pid=place.pid)
        self._by_pid[place.pid] = place
        place.turn = next(self._turns)
        late = partial(self.kill, place.pid, f"it did not begin in {_BEGIN_MAX_NS // 10**9} s")
        place.timer = self._timers.after(_BEGIN_MAX_NS, late)

    def _start_later(self, place: _Place, problem: str) -> None:
        place.deaths += 1
        place.can_begin = place.state != "starting"
        pause_ns = min(_PAUSE_FIRST_NS << min(place.deaths - 1, 16), _PAUSE_MAX_NS)
        place.pid, place.state, place.problem = 0, "waiting", problem
        _log.warning("a worker ended", reason=problem, pause_s=pause_ns / 1e9)
        place.timer = self._timers.after(pause_ns, partial(self._start, place))

    # -- what workers do -----------------------------------------------------------------------

    def arrived(self, session: Session) -> None:
        """A member asks for work, so it has begun; without this session it would be lost."""
        pid = session.identity.pid
        place = self._by_pid[pid]
        if place.session != session.number:
            place.session = session.number
            session.on_end.add(partial(self._session_ended, place, session.number))
        if place.state == "starting":
            place.state = "idle"
            self._stop_timer(place)

    def _session_ended(self, place: _Place, session: int) -> None:
        # Not of the one before in this place, nor of one that it has left for another.
        if place.session == session and place.pid:
            self.kill(place.pid)

    def can_work(self, pid: int) -> bool:
        """Is it a member that lives? What is handed to one that has ended would die with it."""
        place = self._by_pid.get(pid)
        return place is not None and not place.is_doomed and self._workers.is_alive(pid)

    def took(self, pid: int) -> int:
        """A member has one more job in hand; the member's turn among all that were started."""
        place = self._by_pid[pid]
        place.held += 1
        place.state = "busy"
        return place.turn

    def gave_back(self, pid: int, *, is_good: bool) -> None:
        """A member is done with a job; `is_good`: it brought a result."""
        place = self._by_pid[pid]
        place.held -= 1
        place.jobs += 1
        if not place.held:
            place.state = "idle"
        if is_good:
            place.deaths, place.problem = 0, ""

    def gives_up(self, pid: int, reason: str) -> None:
        """A member says why it ends."""
        self._by_pid[pid].reason = reason

    def kill(self, pid: int, reason: str = "") -> None:
        """End a member at once; `reason` instead of how its process ended. Nothing for others."""
        place = self._by_pid.get(pid)
        if place is not None:
            place.reason = place.reason or reason
            place.is_doomed = True
            self._workers.kill(pid)

    def _ended(self, pid: int, how: str) -> None:
        place = self._by_pid.pop(pid)
        self._stop_timer(place)
        reason = place.reason or how
        if self._all_gone is None:
            self._start_later(place, reason)
        else:
            place.pid, place.state = 0, "waiting"
            self._look_whether_all_are_gone()
        self.on_lost(pid, reason)

    @staticmethod
    def _stop_timer(place: _Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None

    # -- the end, and what there is to see -----------------------------------------------------

    def close(self) -> Completion[None]:
        """End all, start none any more; done when the last one is reaped."""
        self._all_gone = Completion()
        for place in self._places:
            self._stop_timer(place)
        for pid in list(self._by_pid):
            self._workers.end(pid)
        self._timers.after(_GRACE_NS, self._kill_all)
        self._look_whether_all_are_gone()
        return self._all_gone

    def _kill_all(self) -> None:
        for pid in list(self._by_pid):
            self.kill(pid)

    def _look_whether_all_are_gone(self) -> None:
        if self._all_gone is not None and not self._by_pid and not self._all_gone.is_done:
            self._all_gone.resolve(None)

    def stats(self) -> tuple[WorkerStat, ...]:
        """One for each place, once any was needed."""
        return tuple(
            WorkerStat(
                pid=place.pid,
                state=place.state,
                jobs=place.jobs,
                rss_bytes=_rss_bytes(place.pid),
                restarts=max(0, place.starts - 1),
                problem=place.problem,
            )
            for place in self._places
        )


def _rss_bytes(pid: int) -> int:
    if not pid:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it is gone, and not reaped yet


def _nobody_listens(_pid: int, _reason: str) -> None:
    """Until `Jobs` is made."""
