"""The whole kernel under pressure and faults, shared out by limits that change all the time.

As `test_machine_scheduler.py`, with namespaces and nested folders that have `min`, `low`, `high`
and `max` of RAM and disk. After every step: what limits protect was taken by nobody else; nothing
is above its `max`; what a group is charged is the sum over what it holds; limits are as they were
set, over restarts, crashes and failed commits.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from libmem.abi import calls as c
from libmem.abi.control import Limits, TierLimits
from libmem.abi.errors import Errno
from libmem.abi.structs import Durability, Quota
from memosd.kernel.control import with_max
from tests.kernel.invariants import usage_of
from tests.kernel.limitsmodel import LimitedWorld, is_within
from tests.kernel.model import NAMES, NO_ROOM, SETTINGS, clients, durabilities, sizes
from tests.kernel.test_machine_hints import HintsMachine
from tests.kernel.test_machine_scheduler import BUDGETS, SchedulerMachine
from tests.kernel.world import KIB

MORE = ["/a/f/g/4", "/a/f/g/5", "/b/f/6"]
PATHS = ["/a", "/a/f", "/a/f/g", "/b", "/b/f"]
TIERS = ("ram", "disk")

all_names = st.sampled_from([*NAMES, *MORE])
paths = st.sampled_from(PATHS)
pages = st.sampled_from([0, 0, 1, 2, 3, 5, 8])
steps = st.tuples(pages, pages, pages, pages)
REFUSALS = frozenset({Errno.EINVAL, Errno.EDQUOT})


def tier_limits(sizes: tuple[int, ...], page_bytes: int) -> TierLimits:
    """In any other order they would be refused."""
    least, wanted, high, most = sorted(sizes)
    return TierLimits(*(each * page_bytes for each in (least, wanted, high, most)))


class LimitsMachine(SchedulerMachine, HintsMachine):
    """Rules are syscalls and accidents."""

    world: LimitedWorld

    def __init__(self) -> None:
        super().__init__()
        self.above: dict[str, int] = {}
        """Folders that held more on disk when they got their `max`, and how much."""

    def make_world(self) -> LimitedWorld:
        return LimitedWorld(**BUDGETS)

    @property
    def limits(self) -> dict[str, Limits]:
        return self.world.limits

    # -- limits ----------------------------------------------------------------------------------

    @rule(path=paths, ram=steps, disk=steps, weight=st.sampled_from([1, 100]))
    def set_limits(
        self, path: str, ram: tuple[int, ...], disk: tuple[int, ...], weight: int
    ) -> None:
        wanted = Limits(
            tier_limits(ram, 4 * KIB), disk=tier_limits(disk, 8 * KIB), io_weight=weight
        )
        self._set(path, wanted, REFUSALS)

    @rule(path=paths, ram=st.integers(1, 6), disk=st.integers(1, 8))
    def protect(self, path: str, ram: int, disk: int) -> None:
        """`min` alone, so that much is promised and nothing refused."""
        wanted = Limits(TierLimits(ram * 4 * KIB), disk=TierLimits(disk * 5 * KIB))
        self._set(path, wanted, REFUSALS)

    @rule(who=clients, path=paths, less=st.integers(0, 1), name=all_names)
    def protect_what_is_held(self, who: int, path: str, less: int, name: str) -> None:
        """All of it, or all but a page; then somebody needs much at once."""
        ram = max(0, self._in_ram(path) - less * 4 * KIB)
        disk = max(0, self._on_disk(path) - less * 4 * KIB)
        self._set(path, Limits(TierLimits(ram), disk=TierLimits(disk)), REFUSALS)
        self.settle_step()
        self.write(who, name, 32 * KIB, Durability.CACHE, "any")

    @rule(ram=pages)
    def limit_all(self, ram: int) -> None:
        self._set("/", Limits(TierLimits(0, 0, ram * 2 * KIB, ram * 4 * KIB)), REFUSALS)

    @rule(path=paths)
    def clear_limits(self, path: str) -> None:
        self._set(path, Limits(), frozenset())

    @rule(path=paths, sizes=steps, step=st.sampled_from(["stage", "commit"]))
    def setting_limits_fails(self, path: str, sizes: tuple[int, ...], step: str) -> None:
        """They stay what they were."""
        if tier_limits(sizes, 4 * KIB) == TierLimits() and path not in self.limits:
            return  # nothing to commit
        store = self.world.store
        (store.fail_stage if step == "stage" else store.fail_commit)(Errno.EIO)
        wanted = Limits(tier_limits(sizes, 4 * KIB))
        self.world.setting = path
        # Busy: what fails may be the commit before, of what gives way, and takes a new group along.
        refusals = REFUSALS | {Errno.EIO, Errno.EBUSY}
        if self.ask(self.world.root, c.SetLimits(path, wanted), refusals)[0] is None:
            self._note(path, wanted)  # another commit took the failure
        store.__dict__["_failures"].clear()

    def _set(self, path: str, wanted: Limits, refusals: frozenset[Errno]) -> None:
        self.world.setting = path
        # A folder is limited by its owner as well.
        client = self.clients[0] if path.count("/") > 1 else self.world.root
        errno, _ = self.ask(client, c.SetLimits(path, wanted), refusals)
        if errno is None:
            self._note(path, wanted)

    def _note(self, path: str, wanted: Limits) -> None:
        self.above.pop(path, None)
        if wanted == Limits() and path.count("/") > 1:
            self.limits.pop(path, None)
            return
        self.limits[path] = wanted
        if path != "/" and self._on_disk(path) > wanted.disk.max_bytes > 0:
            self.above[path] = self._on_disk(path)

    @rule(namespace=st.sampled_from(["/a", "/b"]), share=st.integers(0, 12))
    def quota(self, namespace: str, share: int) -> None:
        """It is the `max` of its group."""
        quota = Quota(disk_bytes=share * 8 * KIB, ram_bytes=share * 4 * KIB)
        self.world.setting = namespace
        errno, _ = self.ask(self.world.root, c.SetQuota(namespace, quota), REFUSALS)
        if errno is None:
            limits = with_max(self.limits[namespace], "ram", quota.ram_bytes)
            self._note(namespace, with_max(limits, "disk", quota.disk_bytes))

    # -- who competes ----------------------------------------------------------------------------

    @rule(who=clients, name=all_names, size=sizes, durability=durabilities)
    def write_below(self, who: int, name: str, size: int, durability: Durability) -> None:
        self.write(who, name, size, durability, "any")

    @rule(who=clients, of=paths, size=st.sampled_from([5 * KIB, 9 * KIB, 20 * KIB]))
    def flood(self, who: int, of: str, size: int) -> None:
        """All that lies there, one after the other, of what may give way."""
        for name in [*NAMES, *MORE]:
            if is_within(name, of):
                self.write(who, name, size, Durability.CACHE, "any")

    @rule(who=clients, of=paths)
    def read_through(self, who: int, of: str) -> None:
        """Everything there is in a folder is wanted in RAM."""
        for name in sorted(self.model.cubes):
            if is_within(name, of):
                self.ask(self.clients[who], c.ReadCube(name), NO_ROOM | {Errno.ENOENT, Errno.EIO})

    @rule(who=clients, name=all_names, kind=st.sampled_from(["map", "pin"]))
    def hold_below(self, who: int, name: str, kind: str) -> None:
        self.hold(who, name, kind, 0)

    @rule(who=clients, name=all_names, new_name=all_names)
    def move(self, who: int, name: str, new_name: str) -> None:
        self.rename(who, name, new_name)

    @rule(who=clients, name=all_names)
    def remove(self, who: int, name: str) -> None:
        self.unlink(who, name)

    @precondition(lambda self: not self.world.is_failing)
    @rule()
    def restart(self) -> None:
        """An orderly one loses nothing."""
        for client in self.clients:
            client.die()
            self.model.forget_client(client)
        self.world.settle()
        self.world.stop().result()
        self.world.crash()
        self.world.settle()
        self.clients = [self.world.client(), self.world.client()]
        self.compare_all()
        self.read_all()

    # -- what holds ------------------------------------------------------------------------------

    @invariant()
    def nobody_took_what_is_protected(self) -> None:
        self.settle_step()

    def settle_step(self) -> None:
        """Nothing was taken wrongly; who makes room from now on is noted anew."""
        assert self.world.wrongs == [], self.world.wrongs
        for chargers in self.world.chargers.values():
            chargers.clear()
        self.world.setting = ""

    @invariant()
    def groups_are_as_the_model_has_them(self) -> None:
        """Limits, and what is charged, by frames and rows."""
        if not self.clients:
            return
        groups = {each.path: each for each in self.world.root.call(c.StatLimits("/", True)).groups}
        assert {path: group.limits for path, group in groups.items()} == self.limits
        for path, group in groups.items():
            tiers = {each.tier: each for each in group.tiers}
            assert tiers["ram"].subtree_bytes == self._in_ram(path), path
            assert tiers["disk"].subtree_bytes == self._on_disk(path), path
            assert self._in_ram(path) <= (group.limits.ram.max_bytes or self._in_ram(path))
            most = group.limits.disk.max_bytes or self._on_disk(path)
            # It had more when it got its `max`; never more than that.
            self.above[path] = min(self.above.get(path, 0), self._on_disk(path))
            assert self._on_disk(path) <= max(most, self.above[path]), path

    def _in_ram(self, path: str) -> int:
        """By what each frame is for."""
        kernel, charge = self.world.kernel, self.world.ram.charge_bytes
        total = sum(
            charge(len(each.payload.content))
            for each in self.model.fills
            if is_within(each.name, path)
        )
        for resident in kernel.parts.residents:
            row = kernel.parts.table.cube_row(resident.cube_id)
            name = resident.group.path if resident.is_orphan or row is None else row.name
            total += charge(resident.frame.size_bytes) if is_within(name, path) else 0
        return total

    def _on_disk(self, path: str) -> int:
        kernel = self.world.kernel
        spaces = list(kernel.parts.namespaces)
        return sum(
            usage_of(kernel, space.id, "/" if is_within(space.row.name, path) else path + "/")[0]
            for space in spaces
            if is_within(space.row.name, path) or is_within(path, space.row.name)
        )

    # -- comparing -------------------------------------------------------------------------------

    @initialize()
    def set_up(self) -> None:
        super().set_up()
        self.limits.update({"/a": Limits(), "/b": Limits()})

    def compare_all(self) -> None:
        super().compare_all()
        for name in MORE:
            self._compare(name)

    def read_all(self) -> None:
        """What does not fit below a `max` is there, but cannot be read for now; and others may
        have to give way to what is read."""
        gone = []
        for name, cube in self.model.cubes.items():
            for version, (payload, _) in cube.versions.items():
                request = c.ReadCube(f"{name}@v{version}")
                errno, reply = self.ask(self.world.root, request, NO_ROOM | {Errno.ENOENT})
                assert errno or reply.payload == payload.content
                gone += [(cube, version)] if errno is Errno.ENOENT else []
        self.compare_all()
        assert not any(version in cube.versions for cube, version in gone)

    def leave(self) -> None:
        for path in reversed(list(self.limits)):
            self._set(path, Limits(), frozenset())
        super().leave()


TestLimits = LimitsMachine.TestCase
TestLimits.settings = settings(SETTINGS, max_examples=40)
