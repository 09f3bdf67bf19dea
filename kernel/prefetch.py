"""Prefetch: loads what somebody said will be needed, while nobody waits for the disk.

One hint is carried out at a time, those with the earliest deadline first, and none is begun while
a fault is under way. It gets what room there is below the low watermark; beyond that only payloads
go that are worth no more: of no higher priority, and unused for longer than it is until this one is
needed (what was not used for so long is not expected back sooner). Hints are bounded in number for
each session and in all, and in bytes by the low watermark. They end with their session and with
their deadline. Kernel thread only.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Final

from libmem.abi.calls import AdviceOutcome, AdviseReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import HINT_PATIENCE_NS
from libmem.abi.structs import CubeType
from memosd.kernel.namespace import Namespace
from memosd.kernel.pager import Pager
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.residents import Resident
from memosd.kernel.session import Session
from memosd.kernel.wait import Completion, detach

__all__ = ["DEADLINE_MAX_NS", "Prefetch"]

DEADLINE_MAX_NS: Final = 86_400_000_000_000
_SOON_NS: Final = 10_000_000_000
"""When such a one is taken to be needed."""
_HINTS_MAX: Final = 4096
_DEAD_MAX: Final = 64
_VICTIMS_MAX: Final = 256
"""How many of those that would go are looked at."""
_NO_ROOM: Final = frozenset({Errno.ENOMEM, Errno.EDQUOT, Errno.EMFILE})


class _Hint:
    """Somebody's wish, until it is answered."""

    __slots__ = (
        "asked_ns",
        "cube",
        "done",
        "due_ns",
        "give_up",
        "need_bytes",
        "needed_ns",
        "session",
    )

    def __init__(self, session: Session, cube: Cube, asked_ns: int, deadline_ns: int) -> None:
        self.session = session
        self.cube = cube
        self.asked_ns = asked_ns
        self.due_ns = asked_ns + (deadline_ns or HINT_PATIENCE_NS)
        self.needed_ns = asked_ns + (deadline_ns or _SOON_NS)
        self.need_bytes = 0
        self.done: Completion[AdviseReply] = Completion()
        self.give_up: Callable[[], None] = lambda: None


class Prefetch:
    """See the head of this file."""

    def __init__(self, parts: Parts, pager: Pager) -> None:
        self._parts = parts
        self._pager = pager
        self._clock = parts.clock
        self._queue: list[tuple[int, int, _Hint]] = []
        self._order = itertools.count()
        self._hints: dict[_Hint, None] = {}
        """Those not answered yet, the one that is carried out included."""
        self._running: _Hint | None = None
        self._is_pumping = False
        self.object_to: Callable[[Cube, int], str] = _no_objection
        """Why a cube with so many bytes to load is not worth it, or empty; may be set at
        assembly."""

    def __len__(self) -> int:
        return len(self._hints)

    def is_wanted(self, key: PayloadKey) -> bool:
        """Does a hint for this payload wait?"""
        return any(hint.cube.key == key for hint in self._hints)

    def want(self, session: Session, cube: Cube, deadline_ns: int) -> Completion[AdviseReply]:
        """Load a cube, with what it stands on. Never fails; done at once where nothing waits.

        Units: deadline_ns from now, 0 for none.
        """
        hint = _Hint(session, cube, self._clock.monotonic_ns(), deadline_ns)
        try:
            absent = self._absent(cube)
            hint.need_bytes = sum(self._charge_of(part) for part in absent)
            if not absent:
                self._answer(hint, AdviceOutcome.RESIDENT, "already in RAM")
            elif refusal := self._crowd(session) or self._objection(hint):
                self._answer(hint, AdviceOutcome.REFUSED, refusal)
            else:
                self._enqueue(hint)
        except MemError as error:
            self._answer(hint, AdviceOutcome.FAILED, str(error), errno=error.errno)
        return hint.done

    def _absent(self, cube: Cube) -> list[Cube]:
        """What of it is not in RAM. Errors: ECORRUPT, ENOENT of what it stands on."""
        parts = [cube]
        if cube.row.type is CubeType.ACTIVATION:
            parts += self._parts.prefixes.bases(cube.key)
        find = self._parts.residents.find
        return [part for part in parts if part.version.size_bytes and find(part.key) is None]

    def _charge_of(self, part: Cube) -> int:
        return self._parts.ram.charge_bytes(part.version.size_bytes)

    def _enqueue(self, hint: _Hint) -> None:
        self._hints[hint] = None
        timer = self._parts.timers.after(
            hint.due_ns - hint.asked_ns,
            lambda: self._answer(hint, AdviceOutcome.LATE, "not done in time"),
        )
        hint.session.on_end.add(give_up := lambda: self._answer(hint, AdviceOutcome.LATE, "gone"))

        def forget() -> None:
            timer.cancel()
            hint.session.on_end.discard(give_up)

        hint.give_up = forget
        heapq.heappush(self._queue, (hint.due_ns, next(self._order), hint))
        if len(self._queue) > 2 * len(self._hints) + _DEAD_MAX:
            # Answered ones would stay for as long as the disk is busy.
            self._queue = [each for each in self._queue if not each[2].done.is_done]
            heapq.heapify(self._queue)
        self.pump()

    def close(self) -> None:
        """The daemon stops: nobody is kept waiting."""
        for hint in list(self._hints):
            self._answer(hint, AdviceOutcome.LATE, "the daemon stops")

    # -- what there is room for ------------------------------------------------------------------

    def _crowd(self, session: Session) -> str:
        """Why no more hints are taken, or empty."""
        most = self._parts.parameters.prefetches_per_session
        if sum(hint.session is session for hint in self._hints) >= most:
            return f"the session has {most} hints waiting already"
        if len(self._hints) >= _HINTS_MAX:
            return f"{_HINTS_MAX} hints wait already"
        return ""

    def _objection(self, hint: _Hint) -> str:
        """Why it should not be loaded, or empty."""
        cube, need_bytes = hint.cube, hint.need_bytes
        space = self._parts.namespaces.by_id(cube.row.namespace)
        return self._lack(hint, space) or self.object_to(cube, need_bytes)

    def _lack(self, hint: _Hint, space: Namespace) -> str:
        account = self._parts.residents.account
        group = self._parts.namespaces.control.group_of(space, hint.cube.row.name)
        if not account.can_ever_fit(group, hint.need_bytes):
            return f"{hint.need_bytes} bytes are more than its control group or RAM may ever hold"
        low_bytes = int(self._parts.parameters.ram_low * account.budget.target_bytes)
        is_due = hint is self._running
        promised = 0 if is_due else sum(each.need_bytes for each in self._hints)
        used_bytes = account.used_bytes - self._pager.reclaim.freeing_bytes(None)
        short_bytes = used_bytes + promised + hint.need_bytes - low_bytes
        if promised + hint.need_bytes > low_bytes:
            return f"no room: {promised + hint.need_bytes} bytes wait, {low_bytes} is the low mark"
        taken: list[Resident] = []
        victims = self._parts.residents.victims_by_level(None, None, taken)
        for victim in itertools.islice(victims, _VICTIMS_MAX):
            if short_bytes <= 0:
                break
            if self._is_worth_more(victim, hint):
                return f"no room: {short_bytes} bytes that are of more use would have to go"
            taken.append(victim)
            short_bytes -= victim.charged_bytes
        if short_bytes > 0:
            return f"no room: {short_bytes} bytes short, and too little can go"
        return ""

    def _is_worth_more(self, victim: Resident, hint: _Hint) -> bool:
        if victim.weight.priority != hint.cube.row.priority:
            return victim.weight.priority > hint.cube.row.priority
        used_ns = self._parts.heat.behaviour(victim.cube_id).last_access_ns
        idle_ns = self._clock.wall_ns() - max(used_ns, victim.since_ns)
        return idle_ns < hint.needed_ns - self._clock.monotonic_ns()

    # -- carrying out ----------------------------------------------------------------------------

    def pump(self) -> None:
        """Begin the next one where nothing is in its way."""
        if self._is_pumping:
            return  # one ended at once; the loop below goes on
        self._is_pumping = True
        try:
            while self._queue and self._running is None and not self._pager.is_filling:
                hint = heapq.heappop(self._queue)[2]
                if not hint.done.is_done:
                    self._running = hint
                    detach(self._carry_out(hint))
        finally:
            self._is_pumping = False

    async def _carry_out(self, hint: _Hint) -> None:
        try:
            await self._load(hint)
        except MemError as error:
            outcome = AdviceOutcome.REFUSED if error.errno in _NO_ROOM else AdviceOutcome.FAILED
            self._answer(hint, outcome, str(error), errno=error.errno)
        finally:
            self._running = None
            self.pump()

    async def _load(self, hint: _Hint) -> None:
        row = self._parts.table.cube_row(hint.cube.id)
        if row is None or not self._parts.table.has_payload(hint.cube.key):
            raise MemError(Errno.ENOENT, "unlinked meanwhile")
        cube = hint.cube = hint.cube._replace(row=row)
        absent = self._absent(cube)
        hint.need_bytes = sum(self._charge_of(part) for part in absent)
        # The room may have gone to others since it was asked for.
        if absent and (refusal := self._objection(hint)):
            self._answer(hint, AdviceOutcome.REFUSED, refusal)
            return
        loaded_bytes = 0
        for part in absent:
            space = self._parts.namespaces.by_id(part.row.namespace)
            hint.need_bytes -= self._charge_of(part)  # in the tier's account from now on
            loaded_bytes += (await self._pager.bring_in(part, space)).charged_bytes
        took_ms = (self._clock.monotonic_ns() - hint.asked_ns) / 1e6
        self._parts.heat.decide(
            cube.id, "prefetch", "a hint asked for it", loaded_bytes=loaded_bytes, took_ms=took_ms
        )
        done = AdviceOutcome.DONE if loaded_bytes else AdviceOutcome.RESIDENT
        self._answer(hint, done, f"loaded in {took_ms:.1f} ms", loaded_bytes=loaded_bytes)

    def _answer(
        self,
        hint: _Hint,
        outcome: AdviceOutcome,
        reason: str,
        *,
        loaded_bytes: int = 0,
        errno: int = 0,
    ) -> None:
        """The first answer counts."""
        if hint.done.is_done:
            return
        hint.give_up()
        self._hints.pop(hint, None)
        if outcome in {AdviceOutcome.REFUSED, AdviceOutcome.FAILED}:
            self._tell(hint.cube, f"prefetch {outcome}", reason)
        took_ns = self._clock.monotonic_ns() - hint.asked_ns
        hint.done.resolve(AdviseReply(outcome, reason, loaded_bytes, took_ns=took_ns, errno=errno))

    def _tell(self, cube: Cube, action: str, reason: str) -> None:
        """Among the decisions; the same again is none: whoever repeats it drowns nothing else."""
        decisions = self._parts.heat.row(cube.id).decisions
        if not decisions or decisions[-1].action != action:
            self._parts.heat.decide(cube.id, action, reason)


def _no_objection(_cube: Cube, _need_bytes: int) -> str:
    return ""
