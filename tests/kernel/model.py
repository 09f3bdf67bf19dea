"""What the whole kernel is compared with: cubes in a dict, and who holds which payload."""

import os
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from libmem.abi.errors import Errno
from libmem.abi.structs import Durability
from memosd.kernel.kernel import Kernel
from tests.kernel.world import KIB, Client, World

__all__ = [
    "NAMES",
    "NO_ROOM",
    "PAGE_KIB",
    "SETTINGS",
    "Filling",
    "Held",
    "Losses",
    "Model",
    "ModelCube",
    "Payload",
    "check_held",
    "clients",
    "durabilities",
    "expectations",
    "names",
    "sizes",
]

NAMES = ["/a/1", "/a/2", "/a/f/3", "/b/1", "/b/2"]
NO_ROOM = frozenset({Errno.ENOMEM, Errno.EDQUOT, Errno.ENOSPC})
PAGE_KIB = 4

names = st.sampled_from(NAMES)
sizes = st.sampled_from([1, 300, 1 * KIB, 1 * KIB + 1, 5 * KIB, 9 * KIB])
durabilities = st.sampled_from([Durability.DURABLE, Durability.DURABLE, Durability.CACHE])
expectations = st.sampled_from(["any", "any", "right", "wrong"])
clients = st.integers(0, 1)


@dataclass(eq=False)
class Payload:
    """Bytes that one or more versions of a cube share."""

    content: bytes
    is_volatile: bool = False
    """A cache payload that may be in RAM only: it may be lost, never wrong."""
    is_cache: bool = False
    """It may give way where room is short on disk."""


@dataclass
class ModelCube:
    """A cube: version number -> (payload, attributes)."""

    id: bytes
    versions: dict[int, tuple[Payload, dict[str, int]]] = field(default_factory=dict)
    last_version: int = 0

    @property
    def current(self) -> int:
        return max(self.versions)

    def add(self, payload: Payload, attributes: dict[str, int]) -> int:
        """A new version; its number."""
        self.last_version += 1
        self.versions[self.last_version] = payload, attributes
        return self.last_version

    def lose(self, versions: set[int], losses: "Losses") -> None:
        """Versions that were nowhere but in RAM, or gave way to others."""
        for version in versions:
            payload = self.versions[version][0]
            may_go = payload.is_volatile or (losses.have_come and payload.is_cache)
            assert may_go, "only cache payloads may be lost"
            assert losses.is_recorded(self.id), "a loss has its reason"
            del self.versions[version]


@dataclass(eq=False)
class Held:
    """A mapping or a pin."""

    client: Client
    handle: int
    kind: str
    payload: Payload


class Losses:
    """Cache payloads that go for want of room on disk, step by step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kernel = world.kernel
        self._before = 0

    @property
    def have_come(self) -> bool:
        """In this step; where a boot is in it, before that or since."""
        kernel = self._world.kernel
        is_booted = kernel is not self._kernel
        lost = self._kernel.disk_space.lost + (kernel.disk_space.lost if is_booted else 0)
        return lost > self._before

    def settle(self) -> None:
        """The step is over."""
        self._kernel = self._world.kernel
        self._before = self._kernel.disk_space.lost

    def is_recorded(self, cube_id: bytes) -> bool:
        """Is there a decision to lose some of the cube, unless a crash took the latest along?"""
        if self._world.kernel is not self._kernel:
            return True
        recent = self._world.kernel.parts.heat.recent
        return any(cube == cube_id and made.action == "lost" for cube, made in recent)


@dataclass(eq=False)
class Filling:
    """Memory of a `create_cube` not sealed yet."""

    client: Client
    handle: int
    name: str
    payload: Payload
    expected: int | None


class Model:
    """All that was acknowledged."""

    def __init__(self, world: World) -> None:
        self.losses = Losses(world)
        self.cubes: dict[str, ModelCube] = {}
        self.held: list[Held] = []
        self.fills: list[Filling] = []
        self._written = 0

    def fresh(self, size_bytes: int, *, is_cache: bool) -> Payload:
        """A payload like no other."""
        self._written += 1
        stamp = self._written.to_bytes(4, "big")
        return Payload((stamp * (size_bytes // 4 + 1))[:size_bytes], is_cache, is_cache)

    def version(self, name: str) -> int:
        """The current version's number, 0 for no cube."""
        cube = self.cubes.get(name)
        return cube.current if cube else 0

    def expected(self, name: str, expectation: str) -> int | None:
        """The version that a caller expects."""
        version = self.version(name)
        return {"any": None, "right": version, "wrong": version + 7}[expectation]

    def write(self, name: str, cube_id: bytes, payload: Payload) -> int:
        """An acknowledged write; the version it must have been told."""
        cube = self.cubes.setdefault(name, ModelCube(cube_id))
        if cube.id != cube_id:  # the old one was lost while room was made for this write
            cube.lose(set(cube.versions), self.losses)
            cube = self.cubes[name] = ModelCube(cube_id)
        return cube.add(payload, {})

    def is_held(self, payload: Payload) -> bool:
        return any(held.payload is payload for held in self.held)

    def forget_client(self, client: Client) -> None:
        """It died."""
        self.held = [held for held in self.held if held.client is not client]
        self.fills = [filling for filling in self.fills if filling.client is not client]


def check_held(kernel: Kernel, held: Held) -> None:
    """What a session holds is in RAM; what it has mapped has not changed."""
    resident = held.client.session.handles[held.handle].subject
    assert resident in list(kernel.parts.residents)
    if held.kind == "map":
        fd = held.client.fd_of(held.handle)
        assert os.pread(fd, len(held.payload.content) + 1, 0) == held.payload.content


SETTINGS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
