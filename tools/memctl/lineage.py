"""The command that draws what was made from what: lineage."""

from typing import Final

import typer
from rich.text import Text
from rich.tree import Tree

from libmem.abi.calls import Lineage, LineageReply
from libmem.abi.lineage import LineageNode
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.cubes import Name
from memosd.tools.memctl.units import printable

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Cubes")
_DRAWN_MAX: Final = 2000
"""Lines; a cube that is reached on several ways is drawn on each."""


@command(app, "lineage")
def lineage(session: Session, name: Name) -> None:
    """Draw what a cube was derived from, and what was derived from it.

    What is outdated says so: a source of it was changed, superseded or removed.
    """
    reply = session.call(Lineage(name=name))
    if session.out.is_json:
        session.out.record(reply, "")
        return
    drawing = _Drawing(reply)
    session.out.render(drawing.tree("made from", drawing.parents))
    session.out.render(drawing.tree("made into", drawing.children))
    if reply.is_cut or drawing.is_cut:
        session.note("there is more, which is not drawn")


class _Drawing:
    """The graph as two trees, from the cube up and down."""

    def __init__(self, reply: LineageReply) -> None:
        self._nodes = reply.nodes
        self.parents: dict[int, list[int]] = {}
        self.children: dict[int, list[int]] = {}
        for edge in reply.edges:
            self.parents.setdefault(edge.child, []).append(edge.parent)
            self.children.setdefault(edge.parent, []).append(edge.child)
        self._left = _DRAWN_MAX

    @property
    def is_cut(self) -> bool:
        return self._left <= 0

    def tree(self, title: str, edges: dict[int, list[int]]) -> Tree:
        """What is reached from the cube along these edges."""
        root = Tree(_line(self._nodes[0]).append(f"  {title}", "dim"))
        waiting = [(root, 0)]
        while waiting and not self.is_cut:
            branch, place = waiting.pop(0)
            for each in edges.get(place, ()):
                self._left -= 1
                waiting.append((branch.add(_line(self._nodes[each])), each))
        if not root.children:
            root.add(Text("nothing", "dim"))
        return root


def _line(node: LineageNode) -> Text:
    name = (
        f"{printable(node.name)}@v{node.version}" if node.name else f"{node.id.hex()} (not there)"
    )
    line = Text(name, "bold" if node.name else "dim")
    if node.type is not None:
        line.append(f"  {node.type}")
    if node.recipe:
        line.append(f", {printable(node.recipe)}")
    if node.outdated:
        line.append(f"  outdated: {printable(node.outdated)}", "red")
    return line
