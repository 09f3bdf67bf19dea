"""The kernel's part of booting: the format, the epoch, what a crash left behind."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from libmem.abi.errors import Errno, MemError
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey, Store
from memosd.kernel.rows import FORMAT_VERSION

__all__ = ["clear_leftovers", "open_format"]

_FORMAT_KEY: Final = b"format"
_EPOCH_KEY: Final = b"epoch"
_CHUNK: Final = 1024


def open_format(store: Store) -> int:
    """Refuse a store of another format before anything else is read; return this boot's epoch.

    The epoch is one more than the last boot's, and durable on return, so that no two boots ever
    share one. Errors: EPROTONOSUPPORT naming both formats, ECORRUPT, ENOSPC, EIO.
    """
    value = store.get("meta", _FORMAT_KEY)
    if value is None and (store.count("cubes") or store.count("namespaces")):
        raise MemError(Errno.ECORRUPT, "the store has rows but no format version")
    found = FORMAT_VERSION if value is None else int.from_bytes(value, "big")
    if found != FORMAT_VERSION:
        raise MemError(
            Errno.EPROTONOSUPPORT,
            f"the store has format {found}; this memosd reads format {FORMAT_VERSION}",
        )
    epoch = int.from_bytes(store.get("meta", _EPOCH_KEY) or b"", "big") + 1
    commit = store.stage(
        {
            "meta": {
                _FORMAT_KEY: FORMAT_VERSION.to_bytes(4, "big"),
                _EPOCH_KEY: epoch.to_bytes(8, "big"),
            }
        }
    )
    commit()
    store.settle()
    return epoch


async def clear_leftovers(parts: Parts, storing: set[PayloadKey]) -> None:
    """Remove page files that no row names: a crash came between the file and the commit."""
    keys = parts.disk.keys()
    while chunk := await parts.io.run(_take, keys):
        for key in chunk:
            if key not in storing and not parts.table.has_page_file(key):
                await parts.io.run(parts.disk.free, key)


def _take(keys: Iterator[PayloadKey]) -> list[PayloadKey]:
    return list(islice(keys, _CHUNK))
