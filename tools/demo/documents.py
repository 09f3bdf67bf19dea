"""The texts that the demo remembers: this repository's documents, and what Debian ships.

Pure reading. Invariant: every document is valid UTF-8, is met once, and gets a valid cube name,
so that what is stored can be compared with the file it came from.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["LIBRARY", "Document", "gather"]

LIBRARY: Final = "/library"
_ROOT: Final = Path(__file__).resolve().parents[2]
_COPYRIGHTS: Final = 60
"""Of the hundreds in /usr/share/doc: enough to search in, quickly written and embedded."""
_LARGEST_BYTES: Final = 256 << 10


class Document(NamedTuple):
    """One file and the cube it becomes."""

    name: str
    path: Path
    text: bytes


def gather() -> list[Document]:
    """All documents that this machine has; files that are no text, or very long, are left out."""
    documents: dict[Path, Document] = {}
    for name, path in _candidates():
        real = path.resolve()  # common-licenses/GPL is a link to GPL-3
        if real in documents or not real.is_file() or real.stat().st_size > _LARGEST_BYTES:
            continue
        text = real.read_bytes()
        if text and _is_text(text):
            documents[real] = Document(f"{LIBRARY}/{name}", path, text)
    return list(documents.values())


def _candidates() -> Iterator[tuple[str, Path]]:
    for path in [*sorted(_ROOT.glob("*.md")), *sorted(_ROOT.glob("docs/**/*.md"))]:
        yield f"memosd/{path.relative_to(_ROOT)}", path
    for path in sorted(Path("/usr/share/common-licenses").glob("*")):
        yield f"licenses/{path.name}", path
    for path in sorted(Path("/usr/share/doc").glob("*/copyright"))[:_COPYRIGHTS]:
        yield f"copyright/{path.parent.name}", path


def _is_text(text: bytes) -> bool:
    try:
        return "\0" not in text.decode()
    except UnicodeDecodeError:
        return False
