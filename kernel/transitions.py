"""Transitions: memories that change type, made by workers for the users who asked.

A transition is one job for a worker that has a model. The worker opens a session that acts for the
user (`acts_for`), reads the sources and commits the result with it: so every right, quota and check
of lineage is that of any other call, and whatever it held is free when the transition is over.
Invariant: each transition is over exactly once, whatever becomes of its worker. They are known
until the daemon's next start, of those that are over the latest. Kernel thread only.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import msgspec

from libmem.abi.calls import ReportJob, Transmute
from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import JobClass, TransmuteRequest, TransmuteResult
from libmem.abi.limits import PARENTS_MAX
from libmem.abi.names import namespace_of, parse_ref
from libmem.abi.transitions import TransitionStat, TransitionState, recipe_name
from libmem.abi.wire import args_decoder
from memosd.kernel.access import EXECUTE, WRITE, Identity
from memosd.kernel.cubes import Cubes
from memosd.kernel.jobs import Job, Jobs
from memosd.kernel.parts import Parts
from memosd.kernel.session import Session
from memosd.kernel.wait import Completion

__all__ = ["Transitions"]

_OVER_OF_USER_MAX: Final = 64
"""Of those that are over."""
_LIVE_OF_USER_MAX: Final = 64
_NOTE_MAX: Final = 200
_QUALITY_MAX: Final = 32
_result: Final = args_decoder(TransmuteResult)


class _Transition:
    """One of them."""

    def __init__(self, who: Identity, job: Job, stat: TransitionStat) -> None:
        self.who = who
        self.job = job
        self.stat = stat
        self.waiters: set[Callable[[], None]] = set()
        self.on_over: list[Callable[[], None]] = []

    def change(self, **fields: object) -> None:
        """Note what is so now, and wake those who wait for it."""
        self.stat = msgspec.structs.replace(self.stat, changes=self.stat.changes + 1, **fields)
        for wake in list(self.waiters):
            wake()


class Transitions:
    """See the head of this file."""

    def __init__(self, parts: Parts, cubes: Cubes, jobs: Jobs) -> None:
        self._parts = parts
        self._cubes = cubes
        self.jobs = jobs
        self._numbers = itertools.count(1)
        self._known: dict[int, _Transition] = {}
        """By number, oldest first."""
        self._over: dict[int, list[int]] = {}
        """The numbers of those that are over, by user, oldest first."""
        jobs.on_hand_out.append(self._handed_out)
        jobs.on_worker_lost.append(self._worker_lost)

    # -- for users -----------------------------------------------------------------------------

    def submit(self, who: Identity, request: Transmute) -> TransitionStat:
        """Queue one.

        Errors: those of opening the sources; EOUTDATED, EINVAL, EACCES (of the name to be made),
        EOPNOTSUPP (there is no model), EAGAIN (this user has too many under way).
        """
        if not 1 <= len(request.sources) <= PARENTS_MAX:
            raise MemError(Errno.EINVAL, f"a transition has 1 to {PARENTS_MAX} sources")
        target = parse_ref(request.name)
        if target.version:
            raise MemError(Errno.EINVAL, f"{request.name}: a version is not for the caller to say")
        self._parts.namespaces.find(namespace_of(target.name)).require(who, WRITE | EXECUTE)
        sources = tuple(self._source(who, name, target.name) for name in request.sources)
        live = sum(not each.stat.is_over and each.who.uid == who.uid for each in self._all())
        if live >= _LIVE_OF_USER_MAX:
            raise MemError(Errno.EAGAIN, f"uid {who.uid} has {live} transitions under way")
        number = next(self._numbers)
        body = TransmuteRequest(number, target.name, sources, request.recipe)
        stat = TransitionStat(
            number=number,
            recipe=recipe_name(request.recipe),
            name=target.name,
            sources=sources,
            state=TransitionState.WAITING,
            uid=who.uid,
            submitted_ns=self._parts.clock.wall_ns(),
        )
        job = self.jobs.submit(JobClass.TRANSMUTE, who.uid, body)
        transition = self._known[number] = _Transition(who, job, stat)
        if job.hand_outs:  # a worker was waiting for it
            self._handed_out(job)
        job.done.on_done(partial(self._ended, transition))
        return transition.stat

    def _source(self, who: Identity, name: str, target: str) -> str:
        cube, _ = self._cubes.open(who, name)
        if cube.row.name == target:
            raise MemError(Errno.EINVAL, f"{target} cannot be made of itself")
        self._parts.lineage.check(cube)
        return f"{cube.row.name}@v{cube.version.version}"

    def seen_by(self, who: Identity, after: int) -> Iterator[TransitionStat]:
        """Those that the caller may see, from a number on."""
        for each in self._all():
            if each.stat.number > after and (who.is_admin or each.who.uid == who.uid):
                yield each.stat

    async def wait(
        self, session: Session, number: int, seen: int, timeout_ms: int
    ) -> TransitionStat:
        """As soon as there are more changes than `seen`, it is over, or the time is.

        Errors: ENOENT, EPERM.
        """
        transition = self._get(session.identity, number)
        if transition.stat.changes > seen or transition.stat.is_over or not timeout_ms:
            return transition.stat
        woken = Completion[None]()

        def wake() -> None:
            if not woken.is_done:
                woken.resolve(None)

        timer = self._parts.timers.after(timeout_ms * 1_000_000, wake)
        transition.waiters.add(wake)
        session.on_end.add(wake)
        try:
            await woken
        finally:
            timer.cancel()
            transition.waiters.discard(wake)
            session.on_end.discard(wake)
        return transition.stat

    def cancel(self, who: Identity, number: int) -> None:
        """Idempotent. Errors: ENOENT, EPERM."""
        self._get(who, number).job.cancel()

    def _get(self, who: Identity, number: int) -> _Transition:
        transition = self._known.get(number)
        if transition is None:
            raise MemError(Errno.ENOENT, f"no transition has the number {number}")
        if not who.is_admin and transition.who.uid != who.uid:
            raise MemError(Errno.EPERM, f"transition {number} is another user's")
        return transition

    def _all(self) -> list[_Transition]:
        return list(self._known.values())

    # -- for workers ---------------------------------------------------------------------------

    def acts_for(self, pid: int, number: int) -> Identity:
        """Whom this worker acts for while it has the transition in hand. Errors: EPERM."""
        return self._in_hand(pid, number).who._replace(pid=pid)

    def on_over(self, number: int, action: Callable[[], None]) -> None:
        """Call this when a transition is over that is not yet."""
        self._known[number].on_over.append(action)

    def report(self, pid: int, report: ReportJob) -> bool:
        """How far it is; is it wanted still? Errors: EPERM."""
        known = self._known.get(report.number)
        if known is not None and known.stat.is_over:
            return False
        transition = self._in_hand(pid, report.number)
        quality = dict(itertools.islice(report.quality.items(), _QUALITY_MAX))
        transition.change(
            done=report.done,
            total=report.total,
            note=report.note[:_NOTE_MAX],
            quality=transition.stat.quality | quality,
        )
        return True

    def _in_hand(self, pid: int, number: int) -> _Transition:
        transition = self._known.get(number)
        if transition is None or transition.job.pid != pid or transition.stat.is_over:
            raise MemError(Errno.EPERM, f"this process has no transition {number} in hand")
        return transition

    def _handed_out(self, job: Job) -> None:
        for transition in self._all():
            if transition.job is job and not transition.stat.is_over:
                now = self._parts.clock.wall_ns()
                transition.change(state=TransitionState.RUNNING, began_ns=now)

    def _worker_lost(self, _pid: int) -> None:
        """Where no worker can begin nobody is to wait for one."""
        if not self.jobs.problem:
            return
        for transition in self._all():
            if transition.job.is_waiting:
                transition.job.fail(MemError(Errno.EOPNOTSUPP, self.jobs.problem))

    def _ended(self, transition: _Transition) -> None:
        try:
            version = _result.decode(transition.job.done.result()).version
        except MemError as error:
            is_canceled = error.errno is Errno.ECANCELED
            state = TransitionState.CANCELED if is_canceled else TransitionState.FAILED
            self._close(transition, state, errno=int(error.errno), message=error.message)
        except msgspec.DecodeError:
            text = "its worker returned what is no result"
            self._close(transition, TransitionState.FAILED, errno=int(Errno.EIO), message=text)
        else:
            self._close(transition, TransitionState.DONE, version=version)

    def _close(self, transition: _Transition, state: TransitionState, **fields: object) -> None:
        transition.change(state=state, ended_ns=self._parts.clock.wall_ns(), **fields)
        for action in transition.on_over:
            action()
        transition.on_over.clear()
        over = self._over.setdefault(transition.who.uid, [])
        over.append(transition.stat.number)
        if len(over) > _OVER_OF_USER_MAX:
            del self._known[over.pop(0)]
