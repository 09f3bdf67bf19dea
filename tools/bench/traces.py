"""Traces of accesses to a cache: read from files, told apart by their fields, or made.

A trace is a list of requests. A request is a chain of blocks, each of which stands on the one
before: what leads it and is there is a hit, and then all of it is in the cache.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.policy import Entry
from memosd.kernel.ports import PayloadKey

__all__ = ["Request", "block_key", "read_trace"]


class Request(NamedTuple):
    """One request: when it came, in seconds, and its blocks, each standing on the one before."""

    at_s: float
    blocks: tuple[Entry, ...]
    is_removal: bool = False


def block_key(name: object) -> PayloadKey:
    """A payload id for a block's name."""
    return hashlib.blake2b(str(name).encode(), digest_size=16).digest()


def read_trace(path: Path) -> list[Request]:
    """Lines of `{timestamp, hash_ids}` (Mooncake) or `{t, op, key, size, parent, ...}` (memosd).

    Errors: ENOENT, EINVAL with the line.
    """
    requests: list[Request] = []
    known: dict[PayloadKey, Entry] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise MemError(Errno.ENOENT, f"no trace {path}") from error
    except UnicodeDecodeError as error:
        raise MemError(Errno.EINVAL, f"{path}: no text: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            requests.extend(_requests(json.loads(line), known) if line.strip() else ())
        except (ValueError, KeyError, TypeError) as error:
            raise MemError(Errno.EINVAL, f"{path}:{number}: no access: {error!r}") from error
    if not requests:
        raise MemError(Errno.EINVAL, f"{path}: no accesses")
    return requests


def _requests(line: dict[str, Any], known: dict[PayloadKey, Entry]) -> Iterator[Request]:
    if "hash_ids" in line:
        blocks: list[Entry] = []
        for number in line["hash_ids"]:
            key = block_key(number)
            if key not in known:
                known[key] = Entry(key, 1, parent=blocks[-1].key if blocks else b"")
            blocks.append(known[key])
        yield Request(float(line["timestamp"]) / 1e3, tuple(blocks))
        return
    if line["op"] not in ("use", "insert", "remove"):
        raise ValueError(f"no operation {line['op']!r}")
    entry = Entry(
        bytes.fromhex(line["key"]),
        int(line["size"]),
        group=int(line["group"]),
        priority=int(line["priority"]),
        parent=bytes.fromhex(line["parent"]),
        restore_s=float(line["cost"]),
    )
    yield Request(float(line["t"]), (entry,), line["op"] == "remove")
