"""The page file: one payload on disk, with all that is needed to recognise and check it.

    offset 0                payload, then zeros up to a multiple of 4096
    then the trailer        "MEMOSPG1", format u32, page_bytes u32, payload id 16 bytes,
                            size u64, then 16 bytes of xxh3-128 for each page of the payload
    at the very end         the trailer's length u64, its xxh3-128 16 bytes, "MEMOSEND"

Integers are little-endian. The payload comes first so that it is aligned for mapping and direct
I/O; the footer comes last so that the trailer is found without any table: `fsck` can tell from
the file alone which payload it is. Owns the format and nothing else; `disk.py` decides where files
lie and when they count. docs/format.md, "Page files".
"""

import os
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import xxhash

from libmem.abi import failpoints
from libmem.abi.digest import DIGEST_BYTES, Hasher, Manifest
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import PAGE_BYTES
from memosd.drivers.tiers import payload
from memosd.drivers.tiers.payload import PayloadKey

__all__ = [
    "ALIGNMENT_BYTES",
    "FORMAT_VERSION",
    "Trailer",
    "file_bytes",
    "read_trailer",
    "write",
    "write_blocks",
]

FORMAT_VERSION: Final = 1
ALIGNMENT_BYTES: Final = 4096

_MAGIC: Final = b"MEMOSPG1"
_END_MAGIC: Final = b"MEMOSEND"
_TRAILER: Final = struct.Struct("<8sII16sQ")
_FOOTER: Final = struct.Struct("<Q16s8s")


class Trailer(NamedTuple):
    """What a page file says of itself."""

    key: PayloadKey
    manifest: Manifest


def file_bytes(size_bytes: int) -> int:
    """The exact size of the file for a payload of `size_bytes`."""
    return _padded(size_bytes) + _trailer_bytes(size_bytes) + _FOOTER.size


def write(fd: int, source: int, key: PayloadKey, manifest: Manifest) -> None:
    """Fill the empty file `fd` with the first `manifest.size_bytes` bytes behind `source`.

    Errors: OSError, also where the source is shorter.
    """
    size_bytes = manifest.size_bytes
    if os.fstat(source).st_size < size_bytes:  # a missing end would pass for a hole
        raise MemError(Errno.EINVAL, f"the source has fewer than {size_bytes} bytes")
    failpoints.hit("page.write.before")
    half = _padded(size_bytes // 2)
    payload.copy(source, fd, 0, min(half, size_bytes))
    failpoints.hit("page.write.half")
    payload.copy(source, fd, half, size_bytes)
    payload.write(fd, _trailer(key, manifest), _padded(size_bytes))


def write_blocks(fd: int, key: PayloadKey, blocks: Iterable[memoryview | bytes]) -> Manifest:
    """Fill the empty file `fd` with what comes block by block; returns its manifest.

    Errors: OSError, and whatever `blocks` raises.
    """
    failpoints.hit("page.blocks.before")
    hasher, at = Hasher(), 0
    for block in blocks:
        hasher.update(block)
        at = payload.write(fd, block, at)
        failpoints.hit("page.blocks.between")
    manifest = hasher.manifest()
    payload.write(fd, _trailer(key, manifest), _padded(at))
    return manifest


def read_trailer(fd: int) -> Trailer:
    """Read and check what the file says of itself; the payload is not looked at.

    Errors: OSError, ECORRUPT.
    """
    total_bytes = os.fstat(fd).st_size
    footer_at = total_bytes - _FOOTER.size
    if footer_at < _TRAILER.size:
        raise _corrupt(f"{total_bytes} bytes are too few for a page file")
    trailer_bytes, digest, end_magic = _FOOTER.unpack(os.pread(fd, _FOOTER.size, footer_at))
    if end_magic != _END_MAGIC or not _TRAILER.size <= trailer_bytes <= footer_at:
        raise _corrupt("no footer at the end: cut off or overwritten")
    block = os.pread(fd, trailer_bytes, footer_at - trailer_bytes)
    if xxhash.xxh3_128_digest(block) != digest:
        raise _corrupt("the trailer differs from its digest")
    return _parse(block, total_bytes)


def _parse(block: bytes, total_bytes: int) -> Trailer:
    magic, version, page_bytes, key, size_bytes = _TRAILER.unpack_from(block)
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise _corrupt(f"page file format {version}; this build reads {FORMAT_VERSION}")
    if page_bytes != PAGE_BYTES:
        raise _corrupt(f"pages of {page_bytes} bytes; this build reads {PAGE_BYTES}")
    if len(block) != _trailer_bytes(size_bytes) or total_bytes != file_bytes(size_bytes):
        raise _corrupt(f"{total_bytes} bytes long, {file_bytes(size_bytes)} by its trailer")
    return Trailer(key, Manifest(size_bytes, block[_TRAILER.size :]))


def _trailer(key: PayloadKey, manifest: Manifest) -> bytes:
    """Trailer and footer."""
    head = _TRAILER.pack(_MAGIC, FORMAT_VERSION, PAGE_BYTES, key, manifest.size_bytes)
    block = head + manifest.page_digests
    return block + _FOOTER.pack(len(block), xxhash.xxh3_128_digest(block), _END_MAGIC)


def _trailer_bytes(size_bytes: int) -> int:
    return _TRAILER.size + -(-size_bytes // PAGE_BYTES) * DIGEST_BYTES


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _corrupt(problem: str) -> MemError:
    return MemError(Errno.ECORRUPT, problem)
