"""lineage: the graph of derivations, drawn from a cube up and down."""

from libmem.abi.calls import Lineage, LineageReply, StatCube, UnlinkCube, UnlinkReply
from libmem.abi.lineage import Fallen, LineageEdge, LineageNode, Receipt
from libmem.abi.structs import CubeType
from tests.tools.memctl.fake import Memctl, make_stat


def node(name: str, version: int = 1, **fields: str) -> LineageNode:
    return LineageNode(name.encode(), version, name, CubeType.PLAINTEXT, **fields)


REPLY = LineageReply(
    nodes=(
        node("/n/summary", 2, recipe="summary"),
        node("/n/fact"),
        LineageNode(b"\xab" * 16, 4),
        node("/n/adapter", recipe="train", outdated="it was changed"),
    ),
    edges=(LineageEdge(1, 0), LineageEdge(2, 1), LineageEdge(0, 3)),
)


def test_it_is_drawn_up_and_down(memctl: Memctl) -> None:
    lines = memctl("lineage", "/n/summary", answers={Lineage: REPLY}).out.splitlines()
    assert [line.strip("│├└─ ") for line in lines] == [
        "/n/summary@v2  plaintext, summary  made from",
        "/n/fact@v1  plaintext",
        f"{'ab' * 16} (not there)",
        "/n/summary@v2  plaintext, summary  made into",
        "/n/adapter@v1  plaintext, train  outdated: it was changed",
    ]


def test_json_is_the_reply(memctl: Memctl) -> None:
    (row,) = memctl("lineage", "/n/summary", "--json", answers={Lineage: REPLY}).lines
    assert row["edges"][0] == {"parent": 1, "child": 0}


def test_what_has_no_lineage_says_so(memctl: Memctl) -> None:
    reply = LineageReply(nodes=(node("/n/a"),))
    lines = memctl("lineage", "/n/a", answers={Lineage: reply}).out.splitlines()
    assert [line.strip("└─ ") for line in lines] == [
        "/n/a@v1  plaintext  made from",
        "nothing",
        "/n/a@v1  plaintext  made into",
        "nothing",
    ]


def test_a_graph_with_very_many_ways_is_cut(memctl: Memctl) -> None:
    layers = 40  # two nodes each, all joined: 2 ** 40 ways
    nodes = tuple(node(f"/n/{number}") for number in range(2 * layers))
    edges = tuple(
        LineageEdge(2 * layer + above, 2 * layer - 2 + below)
        for layer in range(1, layers)
        for above in (0, 1)
        for below in (0, 1)
    )
    found = memctl("lineage", "/n/0", answers={Lineage: LineageReply(nodes, edges)})
    assert 100 < len(found.out.splitlines()) < 2100
    assert "not drawn" in found.err


def test_a_removal_tells_what_fell(memctl: Memctl) -> None:
    fallen = tuple(
        Fallen(f"/n/{number}", b"", 1, CubeType.BLOB, is_removed=number > 0) for number in range(3)
    )
    reply = UnlinkReply(freed_bytes=0, versions=1, receipt=Receipt(5, fallen))
    out = memctl("rm", "/n/a", answers={UnlinkCube: reply}).out
    assert "derived from it: 2 removed, 1 outdated, 2 more" in out


def test_stat_shows_that_it_is_outdated(memctl: Memctl) -> None:
    stat = make_stat(outdated="a source is no more: it was removed")
    assert "a source is no more" in memctl("stat", "/n/a", answers={StatCube: stat}).out
