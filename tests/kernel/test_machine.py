"""The whole kernel against a dict: syscalls, deaths, failures and crashes in any order.

After every step the kernel is brought to rest and compared: every acknowledged version is there
with equal bytes, but for cache payloads after a crash or under a failing disk; every byte and
frame has its owner (`invariants.py`); what is mapped has not changed; what is held is in RAM.
"""

import gc
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Advice, CubeType, Durability, Quota, Stat, TierName, Usage
from tests.kernel.invariants import check_at_rest
from tests.kernel.model import (
    NAMES,
    NO_ROOM,
    PAGE_KIB,
    SETTINGS,
    Filling,
    Held,
    Model,
    Payload,
    check_held,
    clients,
    durabilities,
    expectations,
    names,
    sizes,
)
from tests.kernel.world import KIB, Client, World

BUDGETS: dict[str, Any] = {
    "ram_budget_bytes": 48 * KIB,
    "disk_budget_bytes": 256 * KIB,
    "ram_high": 0.9,
}


class KernelMachine(RuleBasedStateMachine):
    """Rules are syscalls and accidents."""

    def __init__(self) -> None:
        super().__init__()
        self._fds = set(os.listdir("/proc/self/fd"))
        self.world = self.make_world()
        self.model = Model(self.world)
        self.clients: list[Client] = []
        self.may_lose = False

    def make_world(self) -> World:
        return World(Path("unused"), **BUDGETS)

    @initialize()
    def set_up(self) -> None:
        if not self.clients:
            self.clients = [self.world.client(), self.world.client()]
            for name in ("/a", "/b"):
                self.clients[0].make(name)

    # -- asking ----------------------------------------------------------------------------

    def ask(
        self, client: Client, request: c.Call[Any], allowed: Iterable[Errno] = ()
    ) -> tuple[Errno | None, Any]:
        """(None, result) or (error, None), which must be one of `allowed`."""
        pending = client.start(request)
        self.world.settle()
        errno = pending.errno()
        if errno == 0:
            return None, pending.result()
        error = pending.failure(Errno(errno))
        assert error.errno in allowed, f"{request}: {error}"
        return error.errno, None

    def disk_errors(self) -> frozenset[Errno]:
        """What a write-back may fail with just now."""
        return frozenset({Errno.EIO}) if self.may_lose else frozenset()

    # -- writing ---------------------------------------------------------------------------

    @rule(who=clients, name=names, size=sizes, durability=durabilities, expectation=expectations)
    def write(
        self, who: int, name: str, size: int, durability: Durability, expectation: str
    ) -> None:
        payload = self.payload(size, durability)
        request = c.WriteCube(
            name=name, payload=payload.content, type=CubeType.BLOB, durability=durability,
            expected_version=self.model.expected(name, expectation),
        )  # fmt: skip
        if expectation == "wrong":
            self.clients[who].fails(request, Errno.EVERSION)
            return
        errno, reply = self.ask(self.clients[who], request, NO_ROOM | self.disk_errors())
        if errno is None:
            assert self.model.write(name, reply.id, payload) == reply.version

    def payload(self, size: int, durability: Durability) -> Payload:
        is_paged = size > self.world.parameters.inline_limit_bytes
        return self.model.fresh(size, is_cache=is_paged and durability is Durability.CACHE)

    @rule(who=clients, name=names, size=sizes, durability=durabilities, expectation=expectations)
    def create(
        self, who: int, name: str, size: int, durability: Durability, expectation: str
    ) -> None:
        client, payload = self.clients[who], self.payload(size, durability)
        expected = self.model.expected(name, expectation)
        request = c.CreateCube(
            name=name, size_bytes=size, durability=durability, expected_version=expected
        )
        if expectation == "wrong":
            client.fails(request, Errno.EVERSION)
            return
        errno, reply = self.ask(client, request, NO_ROOM)
        if errno is None:
            client.fill(reply.handle, payload.content)
            self.model.fills.append(Filling(client, reply.handle, name, payload, expected))

    @precondition(lambda self: self.model.fills)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        filling = data.draw(st.sampled_from(self.model.fills))
        self.model.fills.remove(filling)
        request = c.SealCube(handle=filling.handle)
        if filling.expected not in (None, self.model.version(filling.name)):
            filling.client.fails(request, Errno.EVERSION)
            return
        errno, reply = self.ask(filling.client, request, NO_ROOM | self.disk_errors())
        if errno is None:
            version = self.model.write(filling.name, reply.id, filling.payload)
            assert version == reply.version

    @precondition(lambda self: self.model.fills)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        filling = self.model.fills.pop(data.draw(st.integers(0, len(self.model.fills) - 1)))
        self.ask(filling.client, c.AbortCube(handle=filling.handle))

    @rule(who=clients, name=names, value=st.integers(0, 9))
    def set_header(self, who: int, name: str, value: int) -> None:
        request = c.SetHeader(name=name, attributes={"k": value})
        if name not in self.model.cubes:
            self.clients[who].fails(request, Errno.ENOENT)
            return
        errno, reply = self.ask(self.clients[who], request, NO_ROOM)
        if errno is None:
            cube = self.model.cubes[name]
            payload = cube.versions[cube.current][0]
            assert cube.add(payload, {"k": value}) == reply.version

    @rule(who=clients, name=names, new_name=names)
    def rename(self, who: int, name: str, new_name: str) -> None:
        request = c.RenameCube(name=name, new_name=new_name)
        if name not in self.model.cubes:
            self.clients[who].fails(request, Errno.ENOENT)
        elif new_name in self.model.cubes:
            self.clients[who].fails(request, Errno.EEXIST)
        elif self.ask(self.clients[who], request, {Errno.EDQUOT})[0] is None:
            self.model.cubes[new_name] = self.model.cubes.pop(name)

    @rule(who=clients, name=names)
    def unlink(self, who: int, name: str) -> None:
        request = c.UnlinkCube(name=name)
        if name not in self.model.cubes:
            self.clients[who].fails(request, Errno.ENOENT)
            return
        _, reply = self.ask(self.clients[who], request)
        assert reply.versions == len(self.model.cubes.pop(name).versions)

    @rule(who=clients, name=names, version=st.integers(1, 6))
    def unlink_version(self, who: int, name: str, version: int) -> None:
        request = c.UnlinkCube(name=f"{name}@v{version}")
        cube = self.model.cubes.get(name)
        if cube is None or version not in cube.versions:
            self.clients[who].fails(request, Errno.ENOENT)
        elif version == cube.current:
            self.clients[who].fails(request, Errno.EBUSY)
        else:
            self.ask(self.clients[who], request)
            del cube.versions[version]

    # -- holding ---------------------------------------------------------------------------

    @rule(who=clients, name=names, kind=st.sampled_from(["map", "pin"]), back=st.integers(0, 2))
    def hold(self, who: int, name: str, kind: str, back: int) -> None:
        version = self.model.version(name) - back
        ref = f"{name}@v{version}" if back and version > 0 else name
        request: c.Call[Any] = c.MmapCube(name=ref) if kind == "map" else c.PinCube(name=ref)
        cube = self.model.cubes.get(name)
        if cube is None or (ref != name and version not in cube.versions):
            self.clients[who].fails(request, Errno.ENOENT)
            return
        errno, reply = self.ask(self.clients[who], request, NO_ROOM)
        if errno is None:
            payload = cube.versions[version if ref != name else cube.current][0]
            self.model.held.append(Held(self.clients[who], reply.handle, kind, payload))

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.model.held))
        self.model.held.remove(held)
        if held.kind == "pin":
            self.ask(held.client, c.UnpinCube(handle=held.handle))
            return
        self.world.gate.close(held.client.session.number, held.handle)
        self.ask(held.client, c.MunmapCube(handle=held.handle))

    @rule(name=names, tier=st.sampled_from(["evict", TierName.RAM, TierName.DISK]))
    def place(self, name: str, tier: str) -> None:
        request: c.Call[Any] = c.Evict(name=name)
        if tier != "evict":
            request = c.MigrateCube(name=name, tier=TierName(tier))
        cube = self.model.cubes.get(name)
        if cube is None:
            self.clients[0].fails(request, Errno.ENOENT)
        elif tier == TierName.RAM:
            self.ask(self.clients[0], request, NO_ROOM)
        elif self.model.is_held(cube.versions[cube.current][0]):
            self.clients[0].fails(request, Errno.EBUSY)
        else:
            self.ask(self.clients[0], request, self.disk_errors())

    @rule(name=names, advice=st.sampled_from(Advice))
    def advise(self, name: str, advice: Advice) -> None:
        self.ask(self.clients[0], c.AdviseCube(name=name, advice=advice), {Errno.ENOENT})

    # -- what else happens -----------------------------------------------------------------

    @rule(namespace=st.sampled_from(["/a", "/b"]), share=st.integers(0, 12))
    def quota(self, namespace: str, share: int) -> None:
        quota = Quota(
            disk_bytes=share * 6 * KIB, ram_bytes=share * PAGE_KIB * KIB, cubes=share // 2
        )
        request = c.SetQuota(namespace=namespace, quota=quota)
        self.ask(self.world.root, request, {Errno.EDQUOT})

    @rule(by_ns=st.sampled_from([1_000_000, 1_000_000_000, 30_000_000_000]))
    def time_passes(self, by_ns: int) -> None:
        self.world.pass_time(by_ns)

    @rule()
    def sync(self) -> None:
        if self.ask(self.clients[0], c.Sync(), self.disk_errors())[0] is None:
            for cube in self.model.cubes.values():
                for payload, _ in cube.versions.values():
                    payload.is_volatile = False

    @rule(who=clients)
    def die(self, who: int) -> None:
        self.clients[who].die()
        self.world.settle()
        self.model.forget_client(self.clients[who])
        self.clients[who] = self.world.client()

    @rule(count=st.integers(1, 3))
    def page_files_fail(self, count: int) -> None:
        for nth in range(1, count + 1):
            self.world.plan.fail("store", Errno.EIO, nth)
        self.may_lose = True

    @precondition(lambda self: not self.world.is_real)
    @rule(name=names, step=st.sampled_from(["stage", "commit"]), kind=st.integers(0, 3))
    def commit_fails(self, name: str, step: str, kind: int) -> None:
        """A mutation whose commit fails changes nothing."""
        if name not in self.model.cubes:
            return
        requests: list[c.Call[Any]] = [
            c.WriteCube(name=name, payload=b"never", type=CubeType.BLOB),
            c.SetHeader(name=name, attributes={"k": 99}),
            c.UnlinkCube(name=name),
            c.RenameCube(name=name, new_name="/b/never"),
        ]
        store = self.world.store
        (store.fail_stage if step == "stage" else store.fail_commit)(Errno.EIO)
        errno, _ = self.ask(self.clients[0], requests[kind], NO_ROOM | {Errno.EIO})
        assert errno is not None
        store.__dict__["_failures"].clear()  # it may have failed before it came to a commit

    @rule(name=names, size=sizes, durability=durabilities, steps=st.integers(0, 8))
    def crash(self, name: str, size: int, durability: Durability, steps: int) -> None:
        """kill -9 somewhere in the middle of a write."""
        payload = self.payload(size, durability)
        request = c.WriteCube(
            name=name, payload=payload.content, type=CubeType.BLOB, durability=durability
        )
        pending = self.clients[0].start(request)
        for _ in range(steps):
            self.world.kernel.turn()
            if self.world.io.jobs:
                self.world.io.finish_at(0)
        told = pending.result() if pending.is_answered and pending.errno() == 0 else None
        self.model.held.clear()
        self.model.fills.clear()
        self.world.crash()
        self.world.settle()
        self.clients = [self.world.client(), self.world.client()]
        self.may_lose = True
        self.judge_interrupted(name, payload, told)
        self.compare_all()
        self.read_all()

    def judge_interrupted(self, name: str, payload: Payload, told: c.WriteReply | None) -> None:
        """The write is there whole, or not at all; there, where it was acknowledged."""
        history = self.history(name)
        known = self.model.cubes.get(name)
        new = [stat for stat in history if stat.version > (known.last_version if known else 0)]
        if told is not None and not payload.is_volatile:
            assert [stat.version for stat in new] == [told.version]
        if new:
            assert len(new) == 1
            assert self.model.write(name, new[0].id, payload) == new[0].version
        elif told is not None:
            self.model.write(name, told.id, payload)

    # -- comparing -------------------------------------------------------------------------

    def history(self, name: str) -> tuple[Stat, ...]:
        errno, reply = self.ask(self.world.root, c.HistoryCube(name=name), {Errno.ENOENT})
        return () if errno else reply.versions

    @precondition(lambda self: self.clients)
    @invariant()
    def all_is_well(self) -> None:
        check_at_rest(self.world.kernel, self.world.ram, self.world.disk)
        self.compare_all()
        for held in self.model.held:
            check_held(self.world.kernel, held)
        # A disk that failed in a row is bypassed until it takes a payload again.
        self.may_lose &= self.world.is_failing or self.world.kernel.parts.disk_health.is_failing
        self.model.losses.settle()

    def compare_all(self) -> None:
        for name in [*NAMES, "/b/never"]:
            self._compare(name)

    def _compare(self, name: str) -> None:
        history = {stat.version: stat for stat in self.history(name)}
        cube = self.model.cubes.get(name)
        if cube is None:
            assert history == {}
            return
        lost = cube.versions.keys() - history.keys()
        assert self.may_lose or self.model.losses.have_come or not lost
        cube.lose(lost, self.model.losses)
        if not cube.versions:
            del self.model.cubes[name]
        assert history.keys() == cube.versions.keys()
        for version, (payload, attributes) in cube.versions.items():
            stat = history[version]
            assert (stat.id, stat.attributes) == (cube.id, attributes)
            assert (stat.size_bytes, stat.latest_version) == (len(payload.content), cube.current)
            payload.is_volatile &= "disk" not in stat.tiers

    @rule(name=names, version=st.integers(1, 6))
    def read(self, name: str, version: int) -> None:
        cube = self.model.cubes.get(name)
        request = c.ReadCube(name=f"{name}@v{version}")
        if cube is None or version not in cube.versions:
            self.clients[0].fails(request, Errno.ENOENT)
            return
        errno, reply = self.ask(self.clients[0], request, NO_ROOM)
        assert errno or reply.payload == cube.versions[version][0].content

    def read_all(self) -> None:
        for name, cube in self.model.cubes.items():
            for version, (payload, _) in cube.versions.items():
                assert self.world.root.read(f"{name}@v{version}") == payload.content

    def teardown(self) -> None:
        if self.clients:
            self.leave()
        self.world.close()
        gc.collect()
        assert set(os.listdir("/proc/self/fd")) <= self._fds

    def leave(self) -> None:
        """Everybody goes, everything is unlinked, nothing is left."""
        for client in self.clients:
            client.die()
        self.world.settle()
        self.world.forget_failures()
        for namespace in ("/a", "/b"):
            self.ask(self.world.root, c.SetQuota(namespace=namespace, quota=Quota()))
        self.compare_all()
        self.read_all()
        for name in list(self.model.cubes):
            self.world.root.unlink(name)
        for namespace in ("/a", "/b"):
            assert self.world.root.usage(namespace).usage == Usage()


TestKernel = KernelMachine.TestCase
TestKernel.settings = SETTINGS
