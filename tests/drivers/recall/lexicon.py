"""What the tests of the index share: short ways to write and to ask."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from libmem.abi.index import IndexDocument, IndexFacets, IndexHit, IndexQuestion, IndexVectors
from libmem.abi.structs import SearchMode
from memosd.drivers.recall.index import RecallIndex

__all__ = [
    "MODEL",
    "ask",
    "document",
    "embed_all",
    "found",
    "ids",
    "search",
    "stored",
    "vectors",
    "write",
]

MODEL = "a" * 64
EVERYWHERE: Mapping[int, str] = {1: "", 2: "", 3: ""}


def document(
    cube: str, text: str, *, namespace: int = 1, name: str = "", version: int = 1, **facets: Any
) -> IndexDocument:
    """A document whose id is `cube`, by default named after it."""
    name = name or f"/ns{namespace}/{cube}"
    return IndexDocument(namespace, cube.encode(), version, name, text, IndexFacets(**facets))


def write(index: RecallIndex, **texts: str) -> None:
    """Keep texts in namespace 1; each keyword is a cube."""
    index.apply(1, [document(cube, text) for cube, text in texts.items()], [])


def ask(
    index: RecallIndex, question: IndexQuestion, vector: IndexVectors | None = None
) -> list[IndexHit]:
    """All steps of a search."""
    plan = index.plan(question)
    index.match(plan)
    return index.rank(plan, vector)


def found(
    index: RecallIndex, query: str, where: Mapping[int, str] = EVERYWHERE, limit: int = 100
) -> list[IndexHit]:
    """The hits by words alone, best first."""
    return ask(index, IndexQuestion(query, where, limit, mode=SearchMode.WORDS))


def ids(
    index: RecallIndex, query: str, where: Mapping[int, str] = EVERYWHERE, limit: int = 100
) -> list[str]:
    """The cubes found by words alone, best first."""
    return [hit.id.decode() for hit in found(index, query, where, limit)]


def search(
    index: RecallIndex, query: str, vector: IndexVectors | None = None, **more: Any
) -> dict[str, IndexHit]:
    """Hits by cube, best first."""
    wanted: dict[str, Any] = {"spaces": {1: ""}, "limit": 10} | more
    hits = ask(index, IndexQuestion(query, **wanted), vector)
    return {hit.id.decode(): hit for hit in hits}


def vectors(text: str, index: RecallIndex, dimensions: int = 8) -> IndexVectors:
    """Of a text and its two halves, as some model might make them: the same for the same text."""
    parts = (text, text[: len(text) // 2], text[len(text) // 2 :])
    rows = [
        np.random.default_rng(zlib.crc32(part.encode())).standard_normal(dimensions)
        for part in parts
    ]
    values = np.array([row / np.linalg.norm(row) for row in rows], "<f4")
    return IndexVectors(index.counts.model, dimensions, values.tobytes())


def embed_all(index: RecallIndex) -> None:
    """Give all passages some vector of their text."""
    index.use_model(MODEL)
    while waiting := index.waiting(100, 1 << 30, set()):
        index.keep({each.number: vectors(each.text, index) for each in waiting})


def stored(path: Path) -> bytes:
    """Every byte of the index's files, the log included."""
    files = sorted(path.parent.glob(path.name + "*"))
    return b"".join(file.read_bytes() for file in files)
