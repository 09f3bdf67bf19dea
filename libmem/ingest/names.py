"""Where pieces are kept: `/namespace/.../session/piece`, from whatever a source is called.

Pure functions. Invariant: different labels give different folders, and the same always the same.
A session's name is its folder's within the namespace: unique there, as neighbours need it to be.
"""

from typing import Final

from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.names import namespace_of, parse_subtree

__all__ = ["folder_of", "numbered", "session_of", "telling"]

_SEGMENT_MAX_BYTES: Final = 120
"""Longer ones are shortened: a name holds a few of them."""


def folder_of(under: str, label: str) -> str:
    """The folder for what is called `label` (`a/b.md`), below a namespace or a folder in one.

    Errors: EINVAL, ENAMETOOLONG.
    """
    base = parse_subtree(under)
    if base == "/":
        raise MemError(Errno.EINVAL, "memories are kept in a namespace, not in '/'")
    return "/".join((base, *map(_segment, label.split("/"))))


def session_of(folder: str) -> str:
    """`/chats/alice/monday` -> `alice/monday`."""
    return folder.removeprefix(namespace_of(folder)).removeprefix("/")


def numbered(folder: str, position: int) -> str:
    """The name of a piece that is known by its place."""
    return f"{folder}/{position:06}"


def telling(folder: str, digest: bytes, nth: int = 1) -> str:
    """The name of a piece that is known by its text, or of its nth repetition."""
    return f"{folder}/{digest.hex()[:16]}" + (f"-{nth}" if nth > 1 else "")


def _segment(text: str) -> str:
    """`text` as part of a name; where it cannot be that, its digest tells it from its likes."""
    segment = "".join(char if char.isprintable() else "_" for char in text)
    encoded = segment.encode("utf-8", "replace")
    segment = encoded[:_SEGMENT_MAX_BYTES].decode("utf-8", "ignore")
    if segment == text and text not in {"", ".", ".."}:
        return text
    digest = digest_of(text.encode("utf-8", "surrogatepass"))
    return f"{segment}~{digest.hex()[:8]}"
