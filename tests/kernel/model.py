"""What the whole kernel is compared with: cubes in a dict, and who holds which payload."""

from dataclasses import dataclass, field

from tests.kernel.world import Client

__all__ = ["Filling", "Held", "Model", "ModelCube", "Payload"]


@dataclass(eq=False)
class Payload:
    """Bytes that one or more versions of a cube share."""

    content: bytes
    is_volatile: bool = False
    """A cache payload that may be in RAM only: it may be lost, never wrong."""


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

    def lose(self, versions: set[int]) -> None:
        """Versions that were nowhere but in RAM."""
        for version in versions:
            assert self.versions[version][0].is_volatile, "only cache payloads may be lost"
            del self.versions[version]


@dataclass(eq=False)
class Held:
    """A mapping or a pin."""

    client: Client
    handle: int
    kind: str
    payload: Payload


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

    def __init__(self) -> None:
        self.cubes: dict[str, ModelCube] = {}
        self.held: list[Held] = []
        self.fills: list[Filling] = []
        self._written = 0

    def fresh(self, size_bytes: int, *, is_cache: bool) -> Payload:
        """A payload like no other."""
        self._written += 1
        stamp = self._written.to_bytes(4, "big")
        return Payload((stamp * (size_bytes // 4 + 1))[:size_bytes], is_cache)

    def version(self, name: str) -> int:
        """The current version's number, 0 for no cube."""
        cube = self.cubes.get(name)
        return cube.current if cube else 0

    def write(self, name: str, cube_id: bytes, payload: Payload) -> int:
        """An acknowledged write; the version it must have been told."""
        cube = self.cubes.setdefault(name, ModelCube(cube_id))
        assert cube.id == cube_id
        return cube.add(payload, {})

    def is_held(self, payload: Payload) -> bool:
        return any(held.payload is payload for held in self.held)

    def forget_client(self, client: Client) -> None:
        """It died."""
        self.held = [held for held in self.held if held.client is not client]
        self.fills = [filling for filling in self.fills if filling.client is not client]
