"""What the tests of the index share: short ways to write and to ask."""

from collections.abc import Mapping
from pathlib import Path

from libmem.abi.index import IndexDocument
from memosd.drivers.recall.index import LexicalIndex

__all__ = ["document", "ids", "stored", "write"]

EVERYWHERE: Mapping[int, str] = {1: "", 2: "", 3: ""}


def document(
    cube: str, text: str, *, namespace: int = 1, name: str = "", version: int = 1
) -> IndexDocument:
    """A document whose id is `cube`, by default named after it."""
    return IndexDocument(namespace, cube.encode(), version, name or f"/ns{namespace}/{cube}", text)


def write(index: LexicalIndex, **texts: str) -> None:
    """Keep texts in namespace 1; each keyword is a cube."""
    index.apply(1, [document(cube, text) for cube, text in texts.items()], [])


def ids(
    index: LexicalIndex, query: str, where: Mapping[int, str] = EVERYWHERE, limit: int = 100
) -> list[str]:
    """The cubes found, best first."""
    return [hit.id.decode() for hit in index.search(query, where, limit)]


def stored(path: Path) -> bytes:
    """Every byte of the index's files, the log included."""
    files = sorted(path.parent.glob(path.name + "*"))
    return b"".join(file.read_bytes() for file in files)
