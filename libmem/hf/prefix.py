"""A stored prefix as a process maps it: its parts, checked, and where each plane comes from.

Owns the descriptors of the parts. Invariant: whatever a header claims, nothing outside the part's
own memory is ever read, and no place is served by two parts: all is checked here, before the
first `mmap`, because a wrong MAP_FIXED would destroy memory of somebody else.

The descriptors stay open as long as rows may have to be mapped again (a cache that grows, more
rows of a batch): one for each part, at most KV_CHAIN_MAX.

No model framework. Made by `libmem.hf.cache`; read by `libmem.hf.region`.
"""

import os
import stat
from functools import lru_cache
from typing import Any, NamedTuple

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import (
    KV_CHAIN_MAX,
    TOKEN_BYTES,
    KvDtype,
    KvHeader,
    kv_header,
    layout_of,
    planes_of,
    unpack_tokens,
)
from libmem.abi.names import parse_ref
from libmem.parts import Part, Parts

__all__ = ["LayerShape", "Prefix", "Run"]


class LayerShape(NamedTuple):
    """One layer's planes."""

    heads: int
    key_dim: int
    value_dim: int
    item_bytes: int


class Run(NamedTuple):
    """Consecutive tokens of one layer in one part."""

    fd: int
    first_token: int
    """The part's own first token: a multiple of the grain."""
    tokens: int
    """Up to the next part, or to the last wanted token rounded up to the grain."""
    capacity_tokens: int
    keys_offset_bytes: int
    values_offset_bytes: int


class _Piece(NamedTuple):
    """A part with the tokens that it serves."""

    fd: int
    start_token: int
    end_token: int
    capacity_tokens: int
    offsets: tuple[tuple[int, int], ...]
    """For each layer where its keys and its values begin, in bytes."""


class Prefix:
    """The first `tokens` tokens of a cube, in one or several parts."""

    def __init__(self, parts: Parts, tokens: int | None = None) -> None:
        """Check the parts, and take them over: they are given back with this.

        Units:  tokens of those stored, from position 0; None: all.
        Errors: EINVAL (not a KV header, or not that many tokens), EMODEL, EILSEQ (the parts do not
        fit together, or a memory is not as large as its header says).
        """
        self._parts = parts
        headers = [_checked(part) for part in parts.parts]
        if not headers or len(headers) > KV_CHAIN_MAX:
            raise MemError(Errno.EILSEQ, f"{parts.name}: a prefix has 1 to {KV_CHAIN_MAX} parts")
        last = headers[-1]
        for header in headers:
            _require_same_kind(parts.name, header, last)
        self.header = last
        self.parts_count = len(headers)
        self.tokens = last.tokens if tokens is None else tokens
        if not 1 <= self.tokens <= last.tokens:
            raise MemError(
                Errno.EINVAL, f"{parts.name} has {last.tokens} tokens, not {self.tokens}"
            )
        self.grain_tokens = layout_of(last).grain_tokens
        self.shapes = _shapes(last)
        self._pieces = _pieces(parts, headers, self.tokens)

    def __del__(self) -> None:
        # The lease follows with the client's next call: collection does no I/O.
        if hasattr(self, "_parts"):
            self._parts.close_descriptors()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prefix":
        return self  # sealed memory; a copy of a cache maps it once more

    @property
    def name(self) -> str:
        """The cube's name with its version, as a child names its parent."""
        return f"{parse_ref(self._parts.name).name}@v{self._parts.version}"

    @property
    def dtype(self) -> KvDtype:
        return self.header.dtype

    def token_ids(self) -> list[int]:
        """The ids of the tokens, as they are stored in the payload. Errors: EILSEQ, EIO."""
        found: list[int] = []
        for piece in self._pieces:
            size_bytes = (piece.end_token - piece.start_token) * TOKEN_BYTES
            packed = os.pread(piece.fd, size_bytes, 0)
            if len(packed) != size_bytes:
                raise MemError(Errno.EILSEQ, f"{self.name}: its memory ends early")
            found += unpack_tokens(packed)
        return found

    def runs(self, layer: int, tokens: int) -> list[Run]:
        """Where the first `tokens` tokens of a layer lie, in order, in whole grains."""
        grain, found = self.grain_tokens, []
        for fd, start, end_token, capacity, offsets in self._pieces:
            if start >= tokens:
                break
            ends = -(-min(end_token, tokens) // grain) * grain
            found.append(Run(fd, start, ends - start, capacity, *offsets[layer]))
        return found


def _checked(part: Part) -> KvHeader:
    header = kv_header(part.attributes)
    held = os.fstat(part.fd)
    size_bytes = layout_of(header).size_bytes
    if not (stat.S_ISREG(held.st_mode) and held.st_size == part.size_bytes == size_bytes):
        raise MemError(
            Errno.EILSEQ,
            f"a part has {held.st_size} bytes, its header describes {size_bytes}",
        )
    return header


def _require_same_kind(name: str, header: KvHeader, last: KvHeader) -> None:
    if header.model != last.model:
        raise MemError(Errno.EMODEL, f"{name}: its parts are of different models")
    if header.dtype != last.dtype or header.layers != last.layers:
        raise MemError(Errno.EILSEQ, f"{name}: its parts have different layers")


def _pieces(parts: Parts, headers: list[KvHeader], tokens: int) -> list[_Piece]:
    """From the last part back to position 0: each serves what no later one has."""
    end, found = tokens, []
    for part, header in zip(reversed(parts.parts), reversed(headers), strict=True):
        if header.start >= end:
            continue
        if header.tokens < end:
            break
        capacity_tokens = layout_of(header).capacity_tokens
        found.append(_Piece(part.fd, header.start, end, capacity_tokens, _offsets(header)))
        end = header.start
    if end:
        raise MemError(Errno.EILSEQ, f"{parts.name}: its parts leave a gap before token {end}")
    return found[::-1]


@lru_cache
def _shapes(header: KvHeader) -> tuple[LayerShape, ...]:
    size = header.dtype.item_bytes
    return tuple(
        LayerShape(run.heads, run.key_dim, run.value_dim, size)
        for run in header.layers
        for _ in range(run.count)
    )


@lru_cache
def _offsets(header: KvHeader) -> tuple[tuple[int, int], ...]:
    firsts = [plane.offset_bytes for plane in planes_of(header) if plane.head == 0]
    return tuple(zip(firsts[::2], firsts[1::2], strict=True))
