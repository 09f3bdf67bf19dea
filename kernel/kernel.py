"""The kernel, put together: every subsystem once, in the order they need each other.

`Kernel` owns no mechanism of its own; it makes the parts, starts what runs by itself (timers,
indexing, clearing up after a crash) and ends in order. The server calls `serve`, `bind`, `gone`,
`turn` and `stop`, all on one thread.
"""

from collections.abc import Callable, Sequence

import psutil
import structlog

from libmem.abi.calls import InfoReply
from libmem.abi.errors import MemError
from libmem.abi.state import TierStat
from memosd.kernel.access import Identity
from memosd.kernel.assembly import Gate, Outside, make_device, make_parts, make_transitions
from memosd.kernel.boot import clear_leftovers, open_format
from memosd.kernel.cubes import Cubes
from memosd.kernel.diskspace import DiskSpace
from memosd.kernel.dispatch import Dispatch, Peer
from memosd.kernel.embedding import Embedding
from memosd.kernel.events import Events
from memosd.kernel.fills import Fills
from memosd.kernel.governor import Governor
from memosd.kernel.grants import Grants
from memosd.kernel.headers import Headers
from memosd.kernel.holdings import Holdings
from memosd.kernel.incumbent import Incumbent
from memosd.kernel.indexer import Indexer
from memosd.kernel.jobs import Jobs
from memosd.kernel.pager import Pager
from memosd.kernel.pagetable import Cube
from memosd.kernel.param import Parameters
from memosd.kernel.policies.policy import Entry
from memosd.kernel.ports import (
    PayloadKey,
)
from memosd.kernel.prefetch import Prefetch
from memosd.kernel.pricing import Repricing, worth_prefetch
from memosd.kernel.recall import Recall
from memosd.kernel.reclaim import Reclaim
from memosd.kernel.removal import Removal
from memosd.kernel.salvage import Salvage
from memosd.kernel.session import Session, Sessions
from memosd.kernel.syscalls.table import HANDLERS
from memosd.kernel.trace import Trace
from memosd.kernel.wait import Completion, detach
from memosd.kernel.writeback import WriteBack

__all__ = ["Gate", "Kernel", "Outside"]

_log = structlog.get_logger("memosd.kernel")


class Kernel:
    """See the head of this file."""

    def __init__(self, parameters: Parameters, outside: Outside, server: str) -> None:
        self.server = server
        self.is_stopping = False
        self._store = outside.store
        self._gate = outside.gate
        self.epoch = open_format(outside.store)
        self.parts = parts = make_parts(parameters, outside)
        self.sessions = Sessions(parameters)
        self.disk_space = DiskSpace(parts)
        self.reclaim = Reclaim(parts, WriteBack(parts, self.disk_space), self.disk_space)
        self.pager = Pager(parts, self.reclaim)
        self.repricing = Repricing(parts)
        self.governor = Governor(parts, self.reclaim, outside.machine)
        self.prefetch = Prefetch(parts, self.pager)
        self.prefetch.object_to = self._objection
        self.pager.on_idle = self.prefetch.pump
        self.holdings = Holdings(parameters, parts.residents, parts.clock)
        self.incumbent = Incumbent(parts)
        self.trace = Trace(parts, outside.traces)
        self.trace.on_switch = self._record_accesses
        self.cubes = Cubes(parts)
        self.removal = Removal(parts, self.cubes, self.pager)
        self.salvage = Salvage(parts, self.cubes, self.removal, self.next_turn)
        self.grants = Grants(parts, self.cubes, self.pager, self.next_turn)
        self.grants.watch(self.disk_space.start_anew, self.disk_space.may_regroup)
        self.reclaim.on_lose = self.disk_space.on_lose = self.removal.lose
        self.removal.on_move, self.removal.on_free = self.disk_space.move, self.disk_space.forget
        self.removal.serve(self.cubes)
        self.headers = Headers(parts, self.cubes, self.pager, self.disk_space)
        self.fills = Fills(parts, self.cubes, self.pager, self.removal, self.disk_space)
        self.events = Events(parts)
        self.jobs = Jobs(outside.workers, parts.clock, parts.timers, parameters)
        self.device = make_device(parts, self.pager, outside)
        self.transitions = make_transitions(parts, self.cubes, outside)
        self.indexer = Indexer(parts, self.pager, outside.recall_index, outside.index_io)
        self.embedding = Embedding(self.indexer, self.jobs, parts.timers)
        self.recall = Recall(parts, self.cubes, self.indexer, self.embedding)
        self.dispatch = Dispatch(self, HANDLERS)
        self._booted_ns = parts.clock.monotonic_ns()

    def start(self) -> None:
        """Clear up after a crash, start what runs by itself."""
        parts = self.parts
        parts.table.log.retain_events = parts.parameters.log_retain_events
        parts.table.log.floor = lambda: self.indexer.indexed_seq
        for key in list(parts.table.volatile):
            self._lose(key)
        parts.table.ledger.commit()
        detach(clear_leftovers(parts, self.reclaim.writeback.storing))
        self.grants.start()
        self.indexer.kick()
        self.device.jobs.call_up()  # to load a framework takes seconds
        self.governor.start()
        parts.timers.every(parts.parameters.heat_flush_ns, self._flush_heat)
        parts.timers.every(parts.parameters.expiry_sweep_ns, self._sweep)

    def _lose(self, key: PayloadKey) -> None:
        try:
            self.removal.lose(key, "the daemon stopped before it was written back")
        except MemError as error:
            # fsck reports it; the daemon must boot with a damaged row as with any other.
            _log.warning("a lost payload keeps its rows", payload=key.hex(), error=str(error))

    def _objection(self, cube: Cube, _need_bytes: int) -> str:
        """Why a hint for it is not followed, or empty."""
        space = self.parts.namespaces.by_id(cube.row.namespace)
        if self.pager.is_refused(cube, space):
            return "RAM thrashes: others are needed sooner"
        if not worth_prefetch(self.parts, cube):
            return "it is computed in less time than it takes to load"
        return ""

    def _record_accesses(self, record: Callable[[str, Entry], None] | None) -> None:
        self.pager.on_access = record

    def _flush_heat(self) -> None:
        self.parts.costs.write_back()
        if self.parts.heat.write_back():
            self.parts.timers.after(0, self._flush_heat)

    def _sweep(self, start: bytes = b"") -> None:
        """Remove what expired, a stretch per commit, so that nobody waits for the whole."""
        following = self.removal.expire(start)
        if following is not None:
            durable = self.parts.table.ledger.durable()
            durable.on_done(lambda: self._sweep_on(following))

    def _sweep_on(self, start: bytes) -> None:
        self.parts.timers.after(0, lambda: self._sweep(start))

    def next_turn(self) -> Completion[None]:
        """Done at the next loop turn: for long work that lets others go first."""
        done = Completion[None]()
        self.parts.timers.after(0, lambda: done.resolve(None))
        return done

    # -- the server's side ---------------------------------------------------------------------

    def serve(self, peer: Peer, identity: Identity, frame: bytes) -> None:
        """Run one request to its first wait. Never raises."""
        pressure = self.parts.pressure
        if not pressure.stalled:
            self.dispatch.serve(peer, identity, frame)
            return
        pressure.begin_run()
        self.dispatch.serve(peer, identity, frame)
        pressure.end_run()

    def turn(self) -> float | None:
        """At the end of every loop turn: what is due, and the group commit.

        Returns the seconds until something is due again, None without any.
        """
        timers = self.parts.timers
        timers.run_due()
        self.disk_space.balance()
        self.parts.table.ledger.commit()
        return timers.next_delay_s()

    def identify(self, identity: Identity) -> Identity:
        """The same process, with what this daemon grants to it."""
        return identity._replace(is_admin=identity.uid in self.parts.parameters.admin_uids)

    def open_session(self, process: Identity, program: str, transition: int = 0) -> Session:
        """Errors: EMFILE; EPERM (no worker that has this transition in hand). Ends by itself when
        its token is not shown in time."""
        transitions = self.transitions
        acts_for = transitions.acts_for(process.pid, transition) if transition else None
        session = self.sessions.open(process, program, self.parts.clock.wall_ns(), acts_for)
        if transition:
            transitions.on_over(transition, lambda: self.sessions.end(session))

        def expire() -> None:
            if not session.is_bound:
                self.sessions.end(session)

        self.parts.timers.after(self.parts.parameters.bind_timeout_ns, expire)
        return session

    def bind(self, token: bytes, identity: Identity) -> Session | None:
        """The fd road showed a token: bind its session. None when there is no such session."""
        session = self.sessions.find_unbound(token, identity)
        if session is not None:
            if session.identity is session.process:
                session.identity = session.process._replace(groups=identity.groups)
            session.is_bound = True
        return session

    def gone(self, session: Session) -> None:
        """The fd road closed: the client is gone, and everything it held is free."""
        self.sessions.end(session)

    def send_fds(self, session: Session, number: int, fds: Sequence[int]) -> None:
        """Send a granted handle's descriptors; on failure the handle is taken back."""
        try:
            self._gate.send_fds(session, number, fds)
        except MemError:
            handle = session.handles.pop(number, None)
            if handle is not None:
                handle.release()
            raise

    def jobs_of(self, pid: int) -> Jobs | None:
        """The jobs that this worker process is for; None for any other process."""
        return next((jobs for jobs in self._all_jobs() if jobs.crew.is_member(pid)), None)

    def _all_jobs(self) -> tuple[Jobs, ...]:
        return self.jobs, self.device.jobs, self.transitions.jobs

    # -- the end -------------------------------------------------------------------------------

    def request_stop(self) -> None:
        self._gate.stop()

    async def stop(self) -> None:
        """Refuse new calls, write back, commit, close the index. The server stops afterwards."""
        self.is_stopping = True
        self.events.close()
        self.prefetch.close()
        workers_gone = [jobs.close() for jobs in self._all_jobs()]
        await self.dispatch.idle()
        await self.trace.stop()
        try:
            await self.reclaim.writeback.store_all()
        except MemError as error:
            _log.warning("cache payloads were not written back", error=str(error))
        while self.parts.heat.write_back():
            await self.next_turn()
        self.parts.costs.write_back()
        self.parts.table.ledger.commit()
        try:
            await self.parts.table.ledger.durable()
        except MemError as error:
            # What was acknowledged is durable already; this is uses and costs of late.
            _log.warning("what was counted last was not written back", error=str(error))
        await self.indexer.close()
        for gone in workers_gone:
            await gone

    # -- about itself --------------------------------------------------------------------------

    def info(self) -> InfoReply:
        parts = self.parts
        return InfoReply(
            server=self.server,
            epoch=self.epoch,
            pid=psutil.Process().pid,
            uptime_ns=parts.clock.monotonic_ns() - self._booted_ns,
            sessions=len(self.sessions),
            namespaces=len(parts.namespaces),
            cubes=parts.table.count(),
            tiers=self._tiers(),
            log_seq=parts.table.log.durable_seq,
            indexed_seq=self.indexer.indexed_seq,
            calls=self.dispatch.calls,
            faults=parts.heat.faults,
            evictions=parts.heat.evictions,
            rss_bytes=psutil.Process().memory_info().rss,
            table_bytes=self._store.used_bytes(),
            data_dir=parts.parameters.data_dir,
            policy=parts.residents.policy.name,
            indexer=self.indexer.index.name,
            notices=tuple(self._notices()),
            recall=self.embedding.stat(),
            workers=tuple(stat for jobs in self._all_jobs() for stat in jobs.stats()),
            machine=self.governor.stat(),
            reclaim=self.incumbent.stat(),
        )

    def _tiers(self) -> tuple[TierStat, ...]:
        parts = self.parts
        account = parts.residents.account
        stalls = parts.pressure.stat
        some, full = stalls("ram")
        ram = TierStat(
            name="ram",
            budget_bytes=account.budget_bytes,
            used_bytes=account.used_bytes,
            cubes=len(parts.residents),
            pinned_bytes=parts.residents.held_bytes(),
            dirty_bytes=parts.residents.dirty_bytes(),
            configured_bytes=account.budget.configured_bytes,
            some=some,
            full=full,
        )
        some, full = stalls("disk")
        disk = TierStat(
            name="disk",
            budget_bytes=parts.namespaces.budget_bytes,
            used_bytes=parts.namespaces.used_bytes,
            cubes=parts.table.count(),
            configured_bytes=parts.namespaces.budget_bytes,
            some=some,
            full=full,
        )
        return (ram, disk, self.device.stat()) if self.device.name else (ram, disk)

    def _notices(self) -> list[str]:
        notices = [self.indexer.problem] if self.indexer.problem else []
        if self.parts.parameters.workers and self.jobs.problem:
            notices.append(self.jobs.problem)
        if self.device.name and self.device.jobs.problem:
            notices.append(f"device {self.device.name}: {self.device.jobs.problem}")
        if self.parts.parameters.transition_workers and self.transitions.jobs.problem:
            notices.append(f"transitions: {self.transitions.jobs.problem}")
        notices += self.reclaim.notices()
        if notice := self.governor.notice():
            notices.append(notice)
        notices.extend(self.parts.policy_faults.values())
        if self.trace.problem:
            notices.append(self.trace.problem)
        quarantined = len(self.parts.table.quarantined)
        if quarantined:
            notices.append(f"{quarantined} payloads are quarantined; `memctl fsck` names them")
        damaged = len(self.parts.namespaces.damaged)
        if damaged:
            notices.append(f"{damaged} namespaces cannot be read; their cubes are out of reach")
        lost = sorted(self.parts.namespaces.control.damaged)
        if lost:
            notices.append(f"limits that cannot be read are not in force: {', '.join(lost)}")
        return notices
