"""int8 for KV payloads below RAM: a byte for each element, a peak for each channel of 64 rows.

    token section   as in the payload (`libmem.abi.kv`)
    planes          in the payload's order; the rows in use, in blocks of 64, the last one shorter:
        peaks       [dim] float32 (float64 for a float64 cache), little endian: the largest
                    magnitude of each channel within the block
        steps       [rows, dim] int8: the element, in 127ths of its channel's peak

No padding anywhere. Decoded, an element is `steps / 127 * peak`, in the peaks' type and rounded to
the payload's: each of these is one IEEE operation, so every machine decodes the same. Rows not in
use come back as zeros. A plane is never in memory as a whole, but a few blocks of it.

`coding.py` imports it with the first such cube.
numpy lets others run while it computes. Source: per-channel symmetric quantisation, as of keys in
KIVI (arXiv 2402.02750); docs/design/0004-activation-memory.md, 6.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from libmem.abi.coding import UnfitError
from libmem.abi.digest import Hasher
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvDtype, KvForm, KvHeader, layout_of, planes_of
from memosd.drivers.tiers import payload

__all__ = ["BLOCK_ROWS", "Int8Encoding", "decode", "encoded_bytes"]

BLOCK_ROWS: Final = 64
"""Rows that share a channel's peak. Longer blocks save little and lose more (design 0004, 6)."""
_CHUNK_BYTES: Final = 1 << 20
"""Of payload at a time: it stays in the processor's cache."""
_STEPS: Final = 127
_STORED: Final = {
    KvDtype.FLOAT32: "<f4",
    KvDtype.FLOAT16: "<f2",
    KvDtype.BFLOAT16: "<u2",  # numpy knows no bfloat16: the upper half of a float32
    KvDtype.FLOAT64: "<f8",
}
_BFLOAT16_SHIFT: Final = 16

Array = NDArray[Any]


class Int8Encoding:
    """One payload on its way into int8: iterate once, then `error` and `content_digest` hold."""

    form: str = KvForm.INT8

    def __init__(self, fd: int, header: KvHeader, error_max: float) -> None:
        """Errors: UnfitError (it would not be smaller)."""
        if encoded_bytes(header) >= layout_of(header).size_bytes:
            raise UnfitError("so few tokens would take as much room")
        self.error = 0.0
        self.content_digest = b""
        self._fd = fd
        self._header = header
        self._error_max = error_max
        self._content = Hasher()

    def __iter__(self) -> Iterator[memoryview | bytes]:
        """The encoded payload. Errors: UnfitError (NaN, infinity, too large an error), EIO."""
        header, layout = self._header, layout_of(self._header)
        rows = header.tokens - header.start
        item_bytes = header.dtype.item_bytes
        for at in range(0, layout.planes_offset_bytes, _CHUNK_BYTES):
            tokens = _read(self._fd, min(_CHUNK_BYTES, layout.planes_offset_bytes - at), at)
            self._content.update(tokens)
            yield tokens
        for plane in planes_of(header):
            loss, at = _Loss(plane.dim), plane.offset_bytes
            for shape in _chunks(rows, plane.dim, item_bytes):
                size_bytes = int(np.prod(shape)) * item_bytes
                stored = np.frombuffer(_read(self._fd, size_bytes, at), _STORED[header.dtype])
                yield self._encode(stored.reshape(shape), loss)
                at += size_bytes
            self._pad((layout.capacity_tokens - rows) * plane.dim * item_bytes)
            self._account(loss.error)
        self.content_digest = self._content.manifest().digest

    def _encode(self, stored: Array, loss: "_Loss") -> memoryview:
        """Blocks [blocks, rows, dim] of a plane. Errors: UnfitError."""
        with np.errstate(all="ignore"):
            values = _widened(stored, self._header.dtype)
            peaks = np.abs(values).max(axis=1)
            if not np.isfinite(peaks).all():
                raise UnfitError("it holds NaN or infinity")
            # In peaks: whatever the values' magnitude, these neither overflow nor vanish.
            unit = np.where(peaks == 0, 1, peaks)[:, None]
            scaled = values / unit
            steps = np.rint(scaled * _STEPS).astype(np.int8)
            decoded = _decoded(peaks, steps, self._header.dtype)
            lost = (_widened(decoded, self._header.dtype) - values) / unit
            loss.add(peaks, scaled, lost)
        self._content.update(_bytes_of(decoded))
        parts = [peaks.view(np.uint8), steps.view(np.uint8).reshape(len(steps), -1)]
        return _bytes_of(np.concatenate(parts, axis=1))

    def _pad(self, size_bytes: int) -> None:
        """Rows that are not in use come back as zeros."""
        for at in range(0, size_bytes, _CHUNK_BYTES):
            self._content.update(bytes(min(_CHUNK_BYTES, size_bytes - at)))

    def _account(self, error: float) -> None:
        """Take a plane's error. Errors: UnfitError, also where it is no number."""
        if not error <= self._error_max:
            raise UnfitError(f"error {error:.4f} is above {self._error_max:g}")
        self.error = max(self.error, error)


class _Loss:
    """What one plane loses, channel by channel; sums of squares, in units of the channel's peak.

    Without the units the squares of large values would be infinite, and of small ones zero.
    """

    def __init__(self, dim: int) -> None:
        self._peaks = np.zeros(dim)
        self._values = np.zeros(dim)
        self._lost = np.zeros(dim)

    def add(self, peaks: Array, scaled: Array, lost: Array) -> None:
        """Blocks in units of `peaks`, [blocks, dim]."""
        highest = np.maximum(self._peaks, peaks.max(axis=0))
        unit = np.where(highest == 0, 1, highest)
        before, weights = (self._peaks / unit) ** 2, (peaks / unit) ** 2
        for name, terms in (("_values", scaled), ("_lost", lost)):
            squares = np.einsum("brd,brd->bd", terms, terms) * weights
            setattr(self, name, getattr(self, name) * before + squares.sum(axis=0))
        self._peaks = highest

    @property
    def error(self) -> float:
        """The RMS over the channels that are not zero of RMS(lost) / RMS(values)."""
        known = self._peaks > 0
        if not known.any():
            return 0.0
        return float(np.sqrt((self._lost[known] / self._values[known]).mean()))


def encoded_bytes(header: KvHeader) -> int:
    """The exact size of the encoded payload."""
    layout, rows = layout_of(header), header.tokens - header.start
    plane_bytes = layout.size_bytes - layout.planes_offset_bytes
    channels = plane_bytes // (layout.capacity_tokens * header.dtype.item_bytes)
    peaks = -(-rows // BLOCK_ROWS) * _peaks_type(header.dtype).itemsize
    return layout.planes_offset_bytes + channels * (rows + peaks)


def decode(header: KvHeader, blocks: Iterable[bytes], fd: int) -> None:
    """Decode into zeroed memory behind `fd`. Errors: ECORRUPT (another size), OSError."""
    source, layout = _Source(blocks), layout_of(header)
    rows, peaks_type = header.tokens - header.start, _peaks_type(header.dtype)
    for at in range(0, layout.planes_offset_bytes, _CHUNK_BYTES):
        payload.write(fd, source.take(min(_CHUNK_BYTES, layout.planes_offset_bytes - at)), at)
    for plane in planes_of(header):
        at, head = plane.offset_bytes, plane.dim * peaks_type.itemsize
        for shape in _chunks(rows, plane.dim, header.dtype.item_bytes):
            count, each = shape[0], head + shape[1] * plane.dim
            encoded = np.frombuffer(source.take(count * each), np.uint8).reshape(count, each)
            peaks = np.ascontiguousarray(encoded[:, :head]).view(peaks_type)
            steps = encoded[:, head:].view(np.int8).reshape(shape)
            with np.errstate(all="ignore"):
                at = payload.write(fd, _bytes_of(_decoded(peaks, steps, header.dtype)), at)
    source.finish()


def _decoded(peaks: Array, steps: Array, dtype: KvDtype) -> Array:
    """Elements as the payload has them: peaks [blocks, dim], steps [blocks, rows, dim]."""
    # By 127 first: the peak itself comes back exactly, and nothing overflows.
    values = steps.astype(peaks.dtype)
    values /= _STEPS
    values *= peaks[:, None]
    if dtype is not KvDtype.BFLOAT16:
        return values.astype(_STORED[dtype], copy=False)
    bits = values.view(np.uint32)
    # To the nearest, ties to even; the values are finite.
    bits += ((bits >> _BFLOAT16_SHIFT) & 1) + 0x7FFF
    return (bits >> _BFLOAT16_SHIFT).astype(np.uint16)


def _widened(stored: Array, dtype: KvDtype) -> Array:
    """What is computed with: float32, or float64."""
    if dtype is KvDtype.BFLOAT16:
        return (stored.astype(np.uint32) << _BFLOAT16_SHIFT).view(np.float32)
    return stored.astype(_peaks_type(dtype), copy=False)


def _peaks_type(dtype: KvDtype) -> np.dtype[Any]:
    return np.dtype("<f8" if dtype is KvDtype.FLOAT64 else "<f4")


def _chunks(rows: int, dim: int, item_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Shapes [blocks, rows, dim] that a plane is worked on in, from its first row on."""
    blocks, left = divmod(rows, BLOCK_ROWS)
    most = max(1, _CHUNK_BYTES // (BLOCK_ROWS * dim * item_bytes))
    for first in range(0, blocks, most):
        yield min(most, blocks - first), BLOCK_ROWS, dim
    if left:
        yield 1, left, dim


class _Source:
    """Blocks of any sizes, taken in other sizes."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._left = memoryview(b"")

    def take(self, size_bytes: int) -> memoryview:
        """Errors: ECORRUPT: they end before."""
        if len(self._left) >= size_bytes:
            taken, self._left = self._left[:size_bytes], self._left[size_bytes:]
            return taken
        gathered = bytearray(self._left)
        while len(gathered) < size_bytes:
            block = next(self._blocks, None)
            if block is None:
                raise MemError(Errno.ECORRUPT, "the stored form ends early")
            gathered += block
        self._left = memoryview(gathered)
        return self.take(size_bytes)

    def finish(self) -> None:
        """Errors: ECORRUPT: there is more."""
        if self._left or any(self._blocks):
            raise MemError(Errno.ECORRUPT, "the stored form is longer than its header says")


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _read(fd: int, size_bytes: int, at: int) -> bytes:
    """Errors: EIO: the payload ends early."""
    content = payload.read(fd, at, at + size_bytes)
    if len(content) != size_bytes:
        raise MemError(Errno.EIO, f"the payload ends at byte {at + len(content)}")
    return content
