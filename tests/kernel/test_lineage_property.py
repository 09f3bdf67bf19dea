"""Over random graphs of derivations: nothing derived outlives a source, and nothing else falls."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.names import parse_ref
from libmem.abi.structs import CubeType, Descriptive, Durability
from tests.kernel.world import World

SOURCES = ["/n/a", "/n/b", "/n/c"]
places = st.integers(0, 30)
"""Of a cube among all that are there, counted back from the latest, round and round."""


@dataclass(eq=False)
class Node:
    """A payload, and what it was made from."""

    parents: list["Node"] = field(default_factory=list)
    is_cache: bool = False
    is_withdrawn: bool = False
    """Changed, removed or ended by somebody."""

    def holds(self) -> bool:
        return not self.is_withdrawn and all(parent.holds() for parent in self.parents)


class Model:
    """What should be there, without a thought of rows."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.user = world.client()
        self.user.make("/n")
        self.nodes: dict[str, Node] = {}
        self.made = 0
        for place in range(len(SOURCES)):
            self.write(place)

    def pick(self, place: int) -> str:
        """The latest first: what is made from it is often chosen again."""
        return list(self.nodes)[-1 - place % len(self.nodes)] if self.nodes else "/n/none"

    def refused(self, request: c.Call[Any]) -> Errno | None:
        try:
            self.user.call(request)
        except MemError as error:
            return error.errno
        return None

    def write(self, place: int) -> None:
        name = SOURCES[place % len(SOURCES)]
        draft = c.WriteCube(name=name, payload=name.encode(), type=CubeType.BLOB)
        self.user.call(draft)
        if name in self.nodes:
            self.nodes[name].is_withdrawn = True
        self.nodes[name] = Node()

    def derive(self, chosen: list[int], is_cache: bool, size: int) -> None:
        self.made += 1
        name, parents = f"/n/made{self.made}", [self.pick(place) for place in chosen]
        draft = c.WriteCube(
            name=name,
            payload=bytes(size),
            type=CubeType.BLOB,
            parents=tuple(parents),
            attributes={"derivation": {"recipe": "any"}},
            durability=Durability.CACHE if is_cache else Durability.DURABLE,
        )
        refused = self.refused(draft)
        if "/n/none" in parents:
            assert refused is Errno.ENOENT
        elif not all(self.nodes[parent].holds() for parent in parents):
            assert refused is Errno.EOUTDATED
        else:
            assert refused is None
            self.nodes[name] = Node([self.nodes[parent] for parent in parents], is_cache)

    def unlink(self, place: int) -> None:
        if self.refused(c.UnlinkCube(self.pick(place))) is None:
            self.nodes.pop(self.pick(place)).is_withdrawn = True

    def retitle(self, place: int) -> None:
        """Changes nothing that anything was made from."""
        name = self.pick(place)
        if name in self.nodes:
            kept = self.user.stat(name).descriptive.valid_to_ns
            described = Descriptive(title=str(self.made), valid_to_ns=kept)
            self.user.call(c.SetHeader(name, descriptive=described))

    def end(self, place: int) -> None:
        ended = Descriptive(valid_to_ns=self.world.clock.wall_ns())
        if self.refused(c.SetHeader(self.pick(place), descriptive=ended)) is None:
            self.nodes[self.pick(place)].is_withdrawn = True

    def supersede(self, place: int) -> None:
        self.made += 1
        name, ended = f"/n/after{self.made}", self.pick(place)
        draft = c.WriteCube(name=name, payload=b"y", type=CubeType.BLOB, supersedes=(ended,))
        if self.refused(draft) is None:
            self.nodes[ended].is_withdrawn = True
            self.nodes[name] = Node()

    def lose(self, place: int) -> None:
        """For want of room: nobody withdrew it, so what was made from it stays."""
        name = self.pick(place)
        if name in self.nodes and self.nodes[name].is_cache:
            kernel = self.world.kernel
            kernel.removal.lose(kernel.parts.table.resolve(parse_ref(name)).key, "a test")
            self.world.settle()
            self.forget_lost()

    def crash(self) -> None:
        """Takes what was in memory only."""
        self.world.crash()
        self.user = self.world.client()
        self.forget_lost()

    def forget_lost(self) -> None:
        """Small ones are part of the table, which is on disk."""
        there = self.listed()
        for name in [name for name, node in self.nodes.items() if node.is_cache]:
            if name not in there:
                del self.nodes[name]

    def listed(self) -> dict[str, Any]:
        listing = self.user.call(c.Readdir("/n", limit=1000))
        return {stat.name: stat for stat in listing.entries}

    def check(self) -> None:
        for name, node in list(self.nodes.items()):
            if node.is_cache and not all(parent.holds() for parent in node.parents):
                del self.nodes[name]
                event("a cache fell")
        listed = self.listed()
        assert listed.keys() == self.nodes.keys()
        for name, node in self.nodes.items():
            is_outdated = not all(parent.holds() for parent in node.parents)
            assert bool(listed[name].outdated) is is_outdated, name
            read = self.refused(c.ReadCube(name=name))
            assert read is (Errno.EOUTDATED if is_outdated else None)

    def end_all(self) -> None:
        """With the last cube the last row of lineage goes."""
        for name in sorted(self.nodes):
            self.refused(c.UnlinkCube(name))
        self.world.settle()
        ledger = self.world.kernel.parts.table.ledger
        for table in ("derived", "edges", "outdated"):
            assert list(ledger.scan(table, b"")) == []


KINDS = [
    *["derive"] * 8,
    "write",
    "write",
    "unlink",
    "retitle",
    "end",
    "supersede",
    "lose",
    "crash",
]


@st.composite
def steps(draw: st.DrawFn) -> tuple[Any, ...]:
    """A method of the model, with its arguments."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "derive":
        parents = draw(st.lists(places, min_size=1, max_size=2))
        return kind, parents, draw(st.booleans()), draw(st.sampled_from([10, 3000]))
    return (kind,) if kind == "crash" else (kind, draw(places))


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(steps(), min_size=10, max_size=30))
def test_no_derived_cube_survives_its_source(
    no_descriptor_is_left: None, script: list[tuple[Any, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory))
        model = Model(world)
        for name, *arguments in script:
            step: Callable[..., None] = getattr(model, name)
            step(*arguments)
            model.check()
        model.end_all()
        world.close()
