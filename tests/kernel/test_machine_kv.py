"""The whole kernel against a dict, with KV cubes among the others.

Beside the rules of `test_machine`: whole caches and parts are written, found, mapped as one,
overwritten and moved; what stands on something goes when that goes. After every step each
cache of the model is there with all that it stands on; what `find_prefix` finds is what a
comparison with all of them finds.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.kv import KV_CHAIN_MAX, pack_tokens
from libmem.abi.structs import Durability
from tests.kernel.kv import GRAIN, MODEL, fields_of, kv, loaded, shared, state_of
from tests.kernel.model import NO_ROOM, SETTINGS, clients
from tests.kernel.test_machine import BUDGETS, KernelMachine
from tests.kernel.world import KIB, Client, World

KV_NAMES = ["/a/kv/1", "/a/kv/2", "/b/kv/3", "/b/kv/4"]
kv_names = st.sampled_from(KV_NAMES)
tails = st.lists(st.integers(1, 2), min_size=1, max_size=2 * GRAIN)
orders = st.permutations(KV_NAMES)


@dataclass(eq=False)
class Cache:
    """The payload of a version."""

    tokens: list[int]
    base: "Cache | None" = None
    start: int = 0
    is_volatile: bool = True
    """It may be lost, with all that stands on it; never wrong."""
    is_cache: bool = False
    """It may give way where room is short on disk."""

    def __post_init__(self) -> None:
        self.is_cache = self.is_volatile

    @property
    def chain(self) -> "list[Cache]":
        """What it is made of, the root last."""
        return [self, *(self.base.chain if self.base is not None else [])]

    @property
    def payload(self) -> bytes:
        return kv(self.tokens, self.start)[1]


@dataclass
class KvCube:
    """version number -> cache"""

    versions: dict[int, Cache] = field(default_factory=dict)

    @property
    def current(self) -> int:
        return max(self.versions)


class KvMachine(KernelMachine):
    """Rules are syscalls and accidents."""

    def __init__(self) -> None:
        super().__init__()
        self.caches: dict[str, KvCube] = {}
        self.wholes: list[tuple[Client, int, list[Cache]]] = []
        """(client, handle, parts, nearest first)"""

    def make_world(self) -> World:
        return World(Path("unused"), **{**BUDGETS, "disk_budget_bytes": 1024 * KIB})

    @initialize(order=orders, durable=st.booleans())
    def begin(self, order: list[str], durable: bool) -> None:
        """Something to take apart."""
        if not self.clients:
            self.set_up()
        self.write_chain(0, order, [1, 2], durable)

    def _living(self) -> list[Cache]:
        return [cache for cube in self.caches.values() for cache in cube.versions.values()]

    def _forget(self, gone: set[int]) -> None:
        """Caches (by id()) went, with all that stood on them."""
        for name, cube in list(self.caches.items()):
            cube.versions = {
                number: cache
                for number, cache in cube.versions.items()
                if not any(id(each) in gone for each in cache.chain)
            }
            if not cube.versions:
                del self.caches[name]

    # -- writing ---------------------------------------------------------------------------------

    @rule(who=clients, order=orders, tail=tails, durable=st.booleans())
    def write_chain(self, who: int, order: list[str], tail: list[int], durable: bool) -> None:
        """A root of two grains, a part behind each of them, and one on top: overwriting."""
        root, *parts, top = order
        self.write_whole(who, root, [*[1] * GRAIN, *[2] * GRAIN], durable)
        for grains, name in zip((1, 2), parts, strict=True):
            self._write_part(who, name, tail, root, grains)
        self._write_part(who, top, tail, parts[1], 2)
        if top in self.caches:
            self._map_whole(who, top, self.caches[top].current)

    @rule(who=clients, name=kv_names, tail=tails, durable=st.booleans())
    def write_whole(self, who: int, name: str, tail: list[int], durable: bool) -> None:
        durability = Durability.DURABLE if durable else Durability.CACHE
        self._write(who, name, Cache(tail, is_volatile=not durable), durability)

    @precondition(lambda self: self.caches)
    @rule(who=clients, name=kv_names, tail=tails, grains=st.integers(1, 6), data=st.data())
    def write_part(
        self, who: int, name: str, tail: list[int], grains: int, data: st.DataObject
    ) -> None:
        parent = data.draw(st.sampled_from(sorted(self.caches)))
        self._write_part(who, name, tail, parent, grains)

    def _write_part(self, who: int, name: str, tail: list[int], parent: str, grains: int) -> None:
        """Behind so many grains of the parent's newest version, or all that it has."""
        if parent not in self.caches:
            return  # there was no room for it
        version = self.caches[parent].current
        base = self.caches[parent].versions[version]
        start = min(grains, len(base.tokens) // GRAIN) * GRAIN
        if start:
            cache = Cache([*base.tokens[:start], *tail], base, start)
            self._write(who, name, cache, Durability.CACHE, f"{parent}@v{version}")

    def _write(
        self, who: int, name: str, cache: Cache, durability: Durability, *parents: str
    ) -> None:
        header, payload = kv(cache.tokens, cache.start)
        request = c.WriteCube(
            name=name, payload=payload, durability=durability, parents=parents, **fields_of(header)
        )
        is_wrong = f"{name}@v" in "".join(parents) or len(cache.chain) > KV_CHAIN_MAX
        # Making room may lose what it is to stand on.
        lost = {Errno.ENOENT} if parents else set()
        wrong = {Errno.EINVAL} if is_wrong else set()
        errno, reply = self.ask(
            self.clients[who], request, NO_ROOM | self.disk_errors() | wrong | lost
        )
        assert errno is not None or not is_wrong
        assert errno is not Errno.ENOENT or self.may_lose or self.model.losses.have_come
        if errno is None:
            self.caches.setdefault(name, KvCube()).versions[reply.version] = cache

    @rule(who=clients, name=kv_names, version=st.integers(0, 3))
    def unlink_cache(self, who: int, name: str, version: int) -> None:
        cube = self.caches.get(name)
        request = c.UnlinkCube(f"{name}@v{version}" if version else name)
        if cube is None or (version and version not in cube.versions):
            self.clients[who].fails(request, Errno.ENOENT)
            return
        if version == cube.current:
            self.clients[who].fails(request, Errno.EBUSY)
            return
        _, reply = self.ask(self.clients[who], request)
        own = [cube.versions[version]] if version else list(cube.versions.values())
        gone = {id(cache) for cache in own}
        fallen = {
            each
            for each, other in self.caches.items()
            for cache in other.versions.values()
            if id(cache) not in gone and any(id(below) in gone for below in cache.chain)
        }
        assert reply.versions == len(own)
        assert reply.dependents == len(fallen)
        self._forget(gone)

    @rule(who=clients, name=kv_names, new_name=kv_names)
    def rename_cache(self, who: int, name: str, new_name: str) -> None:
        request = c.RenameCube(name, new_name)
        if name not in self.caches:
            self.clients[who].fails(request, Errno.ENOENT)
        elif new_name in self.caches:
            self.clients[who].fails(request, Errno.EEXIST)
        elif self.ask(self.clients[who], request, {Errno.EDQUOT})[0] is None:
            self.caches[new_name] = self.caches.pop(name)

    @precondition(lambda self: not self.world.is_real and self.caches)
    @rule(step=st.sampled_from(["stage", "commit"]), kind=st.integers(0, 2), data=st.data())
    def cache_commit_fails(self, step: str, kind: int, data: st.DataObject) -> None:
        """A change whose commit fails changes nothing of what is found and mapped."""
        name = data.draw(st.sampled_from(sorted(self.caches)))
        header, payload = kv([1, 1, 1])
        requests: list[c.Call[Any]] = [
            c.WriteCube(name=name, payload=payload, **fields_of(header)),
            c.UnlinkCube(name),
            c.RenameCube(name, "/b/never"),
        ]
        if self.ask(self.clients[0], c.Sync(), {Errno.EIO})[0] is not None:
            return
        # All is clean now: making room needs no commit that could fail in the place of this one.
        store = self.world.store
        (store.fail_stage if step == "stage" else store.fail_commit)(Errno.EIO)
        errno, _ = self.ask(self.clients[0], requests[kind], NO_ROOM | {Errno.EIO})
        assert errno is not None
        store.__dict__["_failures"].clear()
        assert state_of(self.world.kernel.parts.prefixes) == state_of(loaded(self.world))

    # -- holding ---------------------------------------------------------------------------------

    @precondition(lambda self: self.caches)
    @rule(who=clients, data=st.data())
    def map_whole(self, who: int, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.caches)))
        version = data.draw(st.sampled_from(sorted(self.caches[name].versions)))
        self._map_whole(who, name, version)

    def _map_whole(self, who: int, name: str, version: int) -> None:
        request = c.MmapCube(f"{name}@v{version}", MODEL, is_whole=True)
        errno, reply = self.ask(self.clients[who], request, NO_ROOM | {Errno.ENOENT})
        if errno is None:
            chain = self.caches[name].versions[version].chain
            assert len(reply.bases) == len(chain) - 1
            self.wholes.append((self.clients[who], reply.handle, chain))
        else:
            assert errno is not Errno.ENOENT or self.may_lose or self.model.losses.have_come

    @precondition(lambda self: self.wholes)
    @rule(data=st.data())
    def unmap_whole(self, data: st.DataObject) -> None:
        client, handle, _ = self.wholes.pop(data.draw(st.integers(0, len(self.wholes) - 1)))
        self.world.gate.close(client.session.number, handle)
        self.ask(client, c.MunmapCube(handle))

    @rule(name=kv_names)
    def evict_cache(self, name: str) -> None:
        errors = {Errno.EBUSY, Errno.ENOENT} | self.disk_errors()
        self.ask(self.clients[0], c.Evict(name), errors)

    @rule(prompt=st.lists(st.integers(1, 2), max_size=5 * GRAIN))
    def find_prefix(self, prompt: list[int]) -> None:
        self._settle_losses()
        reply = self.clients[0].call(c.FindPrefix(MODEL, pack_tokens(prompt)))
        longest = max((shared(cache.tokens, prompt) for cache in self._living()), default=0)
        assert reply.tokens == longest
        if longest:
            name, _, version = reply.name.rpartition("@v")
            cache = self.caches[name].versions[int(version)]
            assert shared(cache.tokens, prompt) == longest
            assert reply.cube_tokens == len(cache.tokens)

    # -- comparing -------------------------------------------------------------------------------

    @invariant()
    def what_is_mapped_whole_has_not_changed(self) -> None:
        self.wholes = [each for each in self.wholes if each[0] in self.clients]
        for client, handle, chain in self.wholes:
            number = client.session.number
            fds = [self.world.gate.fds[number, handle], *self.world.gate.bases[number, handle]]
            for fd, cache in zip(fds, chain, strict=True):
                with open(fd, "rb", closefd=False) as memory:
                    memory.seek(0)
                    assert memory.read() == cache.payload

    def compare_all(self) -> None:
        super().compare_all()
        self._settle_losses()

    def _settle_losses(self) -> None:
        """Compare the caches, and forget those that were lost where they may be."""
        found = {name: {s.version: s for s in self.history(name)} for name in KV_NAMES}
        lost = set()
        for name, cube in self.caches.items():
            for number, cache in cube.versions.items():
                stat = found[name].get(number)
                if stat is None:
                    assert self.may_lose or self.model.losses.have_come
                    assert any(
                        each.is_volatile or (self.model.losses.have_come and each.is_cache)
                        for each in cache.chain
                    )
                    lost.add(id(cache))
                else:
                    assert stat.attributes["kv"]["tokens"] == len(cache.tokens)
                    cache.is_volatile &= "disk" not in stat.tiers
        before = self._living()
        self._forget(lost)
        assert len(before) - len(lost) == len(self._living()), "what stands on a lost one is lost"
        assert {name: found[name].keys() for name in self.caches} == {
            name: cube.versions.keys() for name, cube in self.caches.items()
        }
        assert all(not found[name] for name in KV_NAMES if name not in self.caches)

    def read_all(self) -> None:
        super().read_all()
        for name, cube in self.caches.items():
            quota_bytes = self.world.root.usage(name[:2]).quota.ram_bytes
            for number, cache in cube.versions.items():
                # A quota below one payload keeps it out of RAM.
                is_out = 0 < quota_bytes < len(cache.payload)
                request = c.ReadCube(f"{name}@v{number}")
                errno, reply = self.ask(
                    self.world.root, request, {Errno.EDQUOT} if is_out else set()
                )
                assert is_out if errno else reply.payload == cache.payload

    def leave(self) -> None:
        for name in KV_NAMES:
            self.ask(self.world.root, c.UnlinkCube(name), {Errno.ENOENT})
        self.caches.clear()
        super().leave()


TestKv = KvMachine.TestCase
TestKv.settings = settings(SETTINGS, max_examples=80)
