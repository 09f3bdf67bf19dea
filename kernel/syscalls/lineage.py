"""The handler of `lineage`: a cube's derivations as a graph, both ways."""

from libmem.abi import calls as c
from libmem.abi.errors import MemError
from libmem.abi.limits import LINEAGE_MAX
from libmem.abi.lineage import LineageEdge, LineageNode, derivation_of
from libmem.abi.names import NameRef
from memosd.kernel.dispatch import Context
from memosd.kernel.pagetable import Cube

__all__ = ["sys_lineage"]

_Key = tuple[bytes, int]
"""A cube's id and the number of a version."""


def sys_lineage(context: Context, request: c.Lineage) -> c.LineageReply:
    cube, _ = context.kernel.cubes.open(context.who, request.name)
    graph = _Graph(context)
    graph.add((cube.id, cube.version.version))
    graph.grow_up()
    graph.grow_down(cube)
    return graph.reply()


class _Graph:
    """Versions and which were made from which, as far as the caller may read them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found: dict[_Key, Cube | None] = {}
        self._is_cut = False

    def add(self, key: _Key) -> None:
        if key in self._found:
            return
        if len(self._found) >= LINEAGE_MAX:
            self._is_cut = True
            return
        self._found[key] = self._cube(*key)

    def _cube(self, cube_id: bytes, version: int) -> Cube | None:
        kernel = self._context.kernel
        row = kernel.cubes.readable_row(self._context.who, cube_id)
        try:
            return kernel.parts.table.resolve(NameRef(row.name, version)) if row else None
        except MemError:
            return None

    def grow_up(self) -> None:
        """All that those found so far were made from."""
        waiting = list(self._found)
        for key in waiting:
            cube = self._found.get(key)
            for parent in cube.version.parents if cube is not None else ():
                if parent not in self._found:
                    self.add(parent)
                    waiting.append(parent)

    def grow_down(self, cube: Cube) -> None:
        """All that was made from a version's payload."""
        parts = self._context.kernel.parts
        for derived, cube_id in parts.lineage.derived_from(cube.key):
            row = self._context.kernel.cubes.readable_row(self._context.who, cube_id)
            if row is not None and row.current.payload_id == derived:
                self.add((cube_id, row.current.version))

    def reply(self) -> c.LineageReply:
        places = {key: place for place, key in enumerate(self._found)}
        edges = [
            LineageEdge(places[parent], places[key])
            for key, cube in self._found.items()
            for parent in (cube.version.parents if cube is not None else ())
            if parent in places
        ]
        nodes = tuple(self._node(key, cube) for key, cube in self._found.items())
        return c.LineageReply(nodes, tuple(edges), self._is_cut)

    def _node(self, key: _Key, cube: Cube | None) -> LineageNode:
        if cube is None:
            return LineageNode(*key)
        derivation = derivation_of(cube.version.attributes)
        return LineageNode(
            *key,
            name=cube.row.name,
            type=cube.row.type,
            recipe=derivation.recipe if derivation is not None else "",
            outdated=self._context.kernel.parts.table.outdated.get(cube.key, ""),
        )
