"""Random workloads under pressure, with a disk that is slow, full or broken, against a dict.

The rules are those of `test_machine.py`; here RAM and disk are small beside what is written,
watermarks are on, calls overlap, budgets move, and the disk fails in every way it can. After
every step: no budget is exceeded, by the account and by the frames themselves; what is pinned or
mapped is in RAM, unchanged; nothing durable is lost; a cache payload is lost only with a recorded
reason; the policy's order is exactly what may be evicted.
"""

import gc
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Durability, TierName
from tests.kernel.fakes import SECOND_NS
from tests.kernel.model import NO_ROOM, SETTINGS, clients, names
from tests.kernel.test_machine import KernelMachine
from tests.kernel.world import KIB, Pending, World

BUDGETS: dict[str, Any] = {
    "ram_budget_bytes": 48 * KIB,
    "disk_budget_bytes": 96 * KIB,
    "ram_high": 0.8,
    "ram_low": 0.6,
    "disk_high": 0.9,
    "disk_low": 0.8,
    "writeback_delay_ns": SECOND_NS,
    "free_at_once_bytes": 4 * KIB,
    "policy": "default",
}
LOSSES = {
    "could not be written back while RAM was short",
    "room was needed on disk",
    "the disk tier is above its high watermark",
    "the daemon stopped before it was written back",
}
FAULTS = st.sampled_from([Errno.EIO, Errno.ENOSPC])
HUNG_NS = 7 * SECOND_NS
"""Beyond what any operation should take."""


class SchedulerMachine(KernelMachine):
    """Rules are syscalls and accidents."""

    def make_world(self) -> World:
        return World(Path("unused"), **BUDGETS)

    def disk_errors(self) -> frozenset[Errno]:
        """Also that the cube which was to be overwritten has just been lost."""
        lost = frozenset({Errno.EVERSION})
        return lost | {Errno.EIO, Errno.ENOSPC} if self.may_lose else lost

    # -- a disk that is not well -----------------------------------------------------------------

    @rule(errno=FAULTS, count=st.integers(1, 8))
    def stores_fail(self, errno: Errno, count: int) -> None:
        for nth in range(1, count + 1):
            self.world.plan.fail("store", errno, nth)
        self.may_lose = True

    @rule(errno=st.just(Errno.EIO), name=names)
    def a_load_fails(self, errno: Errno, name: str) -> None:
        """It is told to who waits for it; the payload is as good as before."""
        if name not in self.model.cubes:
            return
        self.world.plan.fail("load", errno, 1)
        self.ask(self.clients[0], c.MigrateCube(name=name, tier=TierName.RAM), NO_ROOM | {errno})
        self._forget_loads()

    def _forget_loads(self) -> None:
        """Who planned a failure that nobody met takes it back."""
        planned = self.world.plan.__dict__["_before"]
        for operation, number in list(planned):
            if operation == "load":
                del planned[operation, number]

    @precondition(lambda self: self.model.cubes)
    @rule(data=st.data(), count=st.integers(2, 5))
    def a_store_hangs(self, data: st.DataObject, count: int) -> None:
        """Writers and readers come while a write-back does not end; then it does."""
        world = self.world
        world.clock.advance(world.parameters.writeback_delay_ns)
        world.kernel.turn()
        stores = [job for job in world.io.jobs if job.name == "store"]
        for job in stores:
            world.io.jobs.remove(job)
        chosen = data.draw(
            st.lists(st.sampled_from(sorted(self.model.cubes)), min_size=1, max_size=count)
        )
        started = [self.clients[0].start(c.ReadCube(name=name)) for name in chosen]
        self._go_on(HUNG_NS)
        world.io.jobs += stores
        world.settle()
        for pending in started:
            self._answered(pending, NO_ROOM | {Errno.ENOENT} | self.disk_errors())
        # Somebody may have been told to give up a cache payload meanwhile.
        self.may_lose = True

    def _go_on(self, by_ns: int) -> None:
        """Time passes and all that can be done is."""
        world = self.world
        for _ in range(8):
            world.clock.advance(by_ns // 8)
            for _ in range(200):
                world.kernel.turn()
                if not world.io.jobs:
                    break
                world.io.finish_at(0)

    @staticmethod
    def _answered(pending: Pending, allowed: frozenset[Errno]) -> None:
        assert pending.is_answered, "nobody waits for ever"
        errno = pending.errno()
        assert errno == 0 or errno in allowed, pending.failure(Errno(errno))

    # -- overlapping calls, moving budgets -------------------------------------------------------

    @rule(who=clients, chosen=st.lists(names, min_size=2, max_size=6), pin=st.booleans())
    def many_at_once(self, who: int, chosen: list[str], pin: bool) -> None:
        """Faults compete for room; each is served, or told why not."""
        client = self.clients[who]
        build = c.PinCube if pin else c.ReadCube
        started = [client.start(build(name=name)) for name in chosen]
        self.world.settle()
        for pending in started:
            self._answered(pending, NO_ROOM | {Errno.ENOENT} | self.disk_errors())
            if pin and pending.errno() == 0:
                client.call(c.UnpinCube(handle=pending.result().handle))

    @rule(share=st.integers(2, 12))
    def the_budget_moves(self, share: int) -> None:
        """Down to what is used at once, and further as reclaim gives back; or up."""
        account = self.world.kernel.parts.residents.account
        account.budget.aim(share * 8 * KIB, account.used_bytes)
        self.world.kernel.reclaim.balance()
        self.world.settle()

    @rule(who=clients, name=names, size=st.sampled_from([5 * KIB, 20 * KIB]))
    def write_and_forget(self, who: int, name: str, size: int) -> None:
        """Cache payloads beyond what the disk holds."""
        self.write(who, name, size, Durability.CACHE, "any")

    @rule(who=clients)
    def pins_everything(self, who: int) -> None:
        """Nothing is left for others, who are told; once it is dead all is well."""
        hog = self.world.client()
        pins = [hog.start(c.PinCube(name=name)) for name in sorted(self.model.cubes)]
        self.world.settle()
        request = c.WriteCube(name="/a/hog", payload=bytes(20 * KIB), type=CubeType.BLOB)
        pending = self.clients[who].start(request)
        self.world.settle()
        for each in (*pins, pending):
            self._answered(each, NO_ROOM | {Errno.ENOENT, Errno.EACCES} | self.disk_errors())
        hog.die()
        if pending.errno() == 0:
            self.clients[who].unlink("/a/hog")
        self.world.settle()

    # A place for what else holds once it is there: `min` of a control group is never reclaimed for
    # another, whatever the rules above do.

    # -- what holds ------------------------------------------------------------------------------

    @invariant()
    def the_frames_are_within_the_budget(self) -> None:
        """By the memory itself, not by its account."""
        if not self.clients:
            return
        account = self.world.kernel.parts.residents.account
        charges = [self.world.ram.charge_bytes(f.size_bytes) for f in self.world.ram.live()]
        assert sum(charges) <= account.budget_bytes
        assert sum(charges) == account.used_bytes

    @invariant()
    def losses_have_their_reasons(self) -> None:
        recent = self.world.kernel.parts.heat.recent
        reasons = Counter(made.reason for _, made in recent if made.action == "lost")
        assert reasons.keys() <= LOSSES

    def teardown(self) -> None:
        # What a crash cut short ends in two rounds: calls that are collected give frames back,
        # which keeps the rest for the next one.
        gc.collect()
        super().teardown()

    def leave(self) -> None:
        account = self.world.kernel.parts.residents.account
        account.budget.aim(account.budget.configured_bytes, account.used_bytes)
        super().leave()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(SETTINGS, max_examples=60)
