"""Payload digests: how every copy of a payload, in any tier, is recognised.

A payload is cut into pages of PAGE_BYTES; each page has an xxh3-128 digest, and the payload's own
digest is xxh3-128 over its size and its page digests. One pass over the bytes therefore gives
both what is needed to verify a page and the cube's fingerprint. docs/format.md, "Digests".
"""

from typing import Final

import msgspec
import xxhash

from libmem.abi.limits import PAGE_BYTES

__all__ = ["DIGEST_BYTES", "Hasher", "Manifest", "digest_of", "manifest_of", "root_digest"]

DIGEST_BYTES: Final = 16


class Manifest(msgspec.Struct, frozen=True):
    """What is needed to verify a payload page by page."""

    size_bytes: int
    page_digests: bytes
    """DIGEST_BYTES for each page, in order."""

    @property
    def digest(self) -> bytes:
        return root_digest(self.size_bytes, self.page_digests)


class Hasher:
    """The manifest of a payload that comes piece by piece, of whatever sizes."""

    def __init__(self) -> None:
        self._size_bytes = 0
        self._pages: list[bytes] = []
        self._page = xxhash.xxh3_128()

    def update(self, piece: memoryview | bytes) -> None:
        """The next bytes."""
        view = memoryview(piece)
        while view:
            part = view[: PAGE_BYTES - self._size_bytes % PAGE_BYTES]
            self._page.update(part)
            self._size_bytes += len(part)
            view = view[len(part) :]
            if self._size_bytes % PAGE_BYTES == 0:
                self._pages.append(self._page.digest())
                self._page.reset()

    def manifest(self) -> Manifest:
        """Of all that came so far."""
        last = [self._page.digest()] if self._size_bytes % PAGE_BYTES else []
        return Manifest(self._size_bytes, b"".join([*self._pages, *last]))


def root_digest(size_bytes: int, page_digests: bytes) -> bytes:
    """The payload's digest from its page digests."""
    return xxhash.xxh3_128_digest(size_bytes.to_bytes(8, "little") + page_digests)


def manifest_of(payload: memoryview | bytes) -> Manifest:
    """Hash a payload (one contiguous buffer of bytes); about 20 GB/s, outside the GIL."""
    view = memoryview(payload)
    hash_page = xxhash.xxh3_128_digest
    pages = [hash_page(view[at : at + PAGE_BYTES]) for at in range(0, len(view), PAGE_BYTES)]
    return Manifest(len(view), b"".join(pages))


def digest_of(payload: memoryview | bytes) -> bytes:
    """The payload's digest alone."""
    if 0 < len(payload) <= PAGE_BYTES:  # nearly every plaintext cube
        return root_digest(len(payload), xxhash.xxh3_128_digest(payload))
    return manifest_of(payload).digest
