"""Cube names: `/namespace/path/of/segments`, with `@vN` to name one version.

Pure functions, used by clients and by the kernel alike. A name that passes here is safe as an
LMDB key, as a line of a listing and as an argument of a shell command once quoted.
"""

import re
from typing import NamedTuple

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import NAME_MAX_BYTES, SEGMENT_MAX_BYTES

__all__ = ["NameRef", "namespace_of", "parse_name", "parse_namespace", "parse_ref", "parse_subtree"]

_VERSION = re.compile(r"@v([1-9][0-9]{0,9})\Z")
# The common case in one match: plain segments, no dot segments. Everything else takes the slow
# road below, which says what is wrong.
_PLAIN = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9 _.,:+=%~#-]{1,255})+\Z")


class NameRef(NamedTuple):
    """A name and, where `@vN` was given, the version it means; 0 is the current one."""

    name: str
    version: int


def _segments(name: str) -> list[str]:
    if not name.startswith("/"):
        raise MemError(Errno.EINVAL, f"a name starts with '/': {_shown(name)}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise MemError(Errno.EINVAL, f"not valid Unicode: {_shown(name)}") from None
    if len(encoded) > NAME_MAX_BYTES:
        raise MemError(
            Errno.ENAMETOOLONG,
            f"a name has at most {NAME_MAX_BYTES} bytes, this one {len(encoded)}",
        )
    segments = name[1:].split("/")
    for segment in segments:
        if not segment:
            raise MemError(Errno.EINVAL, f"empty segment in {_shown(name)}")
        if segment in {".", ".."}:
            raise MemError(Errno.EINVAL, f"'.' and '..' are not names: {_shown(name)}")
        if not segment.isprintable():
            raise MemError(Errno.EINVAL, f"control or unprintable character in {_shown(name)}")
        if len(segment.encode()) > SEGMENT_MAX_BYTES:
            raise MemError(Errno.ENAMETOOLONG, f"a segment has at most {SEGMENT_MAX_BYTES} bytes")
    return segments


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def parse_name(name: str) -> str:
    """Check a full cube name to be created, such as `/notes/2026/today`, and return it.

    Errors: EINVAL, ENAMETOOLONG.
    """
    if len(name) <= NAME_MAX_BYTES and _PLAIN.match(name) and name.count("/") >= 2:
        return name  # the plain alphabet has no '@': no version suffix possible
    if len(_segments(name)) < 2:
        raise MemError(
            Errno.EINVAL, f"a cube lies in a namespace, '/namespace/name': {_shown(name)}"
        )
    if _VERSION.search(name):
        raise MemError(
            Errno.EINVAL, f"'@vN' names a version, a new name cannot end so: {_shown(name)}"
        )
    return name


def parse_ref(ref: str) -> NameRef:
    """Split `/ns/path@v3` into name and version; the version is 0 where none is given.

    Errors: EINVAL, ENAMETOOLONG.
    """
    match = _VERSION.search(ref) if "@" in ref else None
    if match is None:
        return NameRef(parse_name(ref), 0)
    return NameRef(parse_name(ref[: match.start()]), int(match[1]))


def parse_namespace(name: str) -> str:
    """Check `/namespace`, one segment, and return it. Errors: EINVAL, ENAMETOOLONG."""
    if len(_segments(name)) != 1:
        raise MemError(Errno.EINVAL, f"a namespace is one segment, '/namespace': {_shown(name)}")
    if "@" in name:
        raise MemError(Errno.EINVAL, f"a namespace has no '@': {_shown(name)}")
    return name


def parse_subtree(path: str) -> str:
    """Check `/`, `/namespace` or a folder below one; a trailing slash is dropped.

    Errors: EINVAL, ENAMETOOLONG.
    """
    if path == "/":
        return path
    path = path.removesuffix("/")
    _segments(path)
    return path


def namespace_of(name: str) -> str:
    """`/notes/a/b` -> `/notes`. The name was parsed before."""
    end = name.find("/", 1)
    return name if end < 0 else name[:end]
