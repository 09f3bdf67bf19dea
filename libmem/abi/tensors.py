"""The safetensors format: which tensors a payload holds, and where each one lies.

    u64         length of the header, little endian
    header      JSON: name -> {"dtype", "shape", "data_offsets"}; under "__metadata__" text only
    data        the tensors, one behind the other

Owns the reading of headers by those who have no model framework, or want no copy: the kernel's
driver and `libmem.peft`. Invariant of what is returned: the tensors cover all that is behind the
header, without a hole and without an overlap, each of exactly as many bytes as its shape and dtype
take. Source: the format of github.com/huggingface/safetensors; what that library refuses is
refused here too.
"""

from typing import Final, NamedTuple

import msgspec

from libmem.abi.errors import Errno, MemError

__all__ = ["HEADER_MAX_BYTES", "Tensor", "tensors_of"]

HEADER_MAX_BYTES: Final = 16 << 20
"""Of JSON: some hundred thousand tensors. The library itself takes up to 100 MB."""
_LENGTH_BYTES: Final = 8
_ELEMENTS_MAX: Final = (1 << 63) - 1
_METADATA: Final = "__metadata__"
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class Tensor(NamedTuple):
    """One tensor, row-major, little endian."""

    name: str
    dtype: str
    """As the format names it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]
    offset_bytes: int
    """From the payload's start."""
    size_bytes: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_header: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry: Final = msgspec.json.Decoder(_Entry)
_metadata: Final = msgspec.json.Decoder(dict[str, str])


def tensors_of(payload: memoryview | bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors payload by name, in the order in which they lie.

    Reads the header only. Errors: EILSEQ.
    """
    data_offset, header = _header_of(payload)
    try:
        entries = _header.decode(header)
        if (text := entries.pop(_METADATA, None)) is not None:
            _metadata.decode(text)
        found = [_tensor(name, _entry.decode(raw), data_offset) for name, raw in entries.items()]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _unfit(f"its header cannot be read: {error}") from None
    found.sort(key=lambda tensor: (tensor.offset_bytes, tensor.size_bytes))
    end = data_offset
    for tensor in found:
        if tensor.offset_bytes != end:
            raise _unfit(f"{tensor.name!r} does not begin where the one before it ends")
        end += tensor.size_bytes
    if end != len(payload):
        raise _unfit(f"its tensors end at byte {end} of {len(payload)}")
    return {tensor.name: tensor for tensor in found}


def _header_of(payload: memoryview | bytes) -> tuple[int, bytes]:
    """Where the data begins, and the JSON before it."""
    length = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    if len(payload) < _LENGTH_BYTES or length > len(payload) - _LENGTH_BYTES:
        raise _unfit(f"a header of {length} bytes in {len(payload)}")
    if length > HEADER_MAX_BYTES:
        raise _unfit(f"a header of {length} bytes; at most {HEADER_MAX_BYTES} are read")
    data_offset = _LENGTH_BYTES + length
    header = bytes(payload[_LENGTH_BYTES:data_offset])
    if not header.startswith(b"{"):
        raise _unfit("its header is not a JSON object")
    return data_offset, header


def _tensor(name: str, entry: _Entry, data_offset: int) -> Tensor:
    start, end = entry.data_offsets
    bits = _BITS.get(entry.dtype)
    if bits is None:
        raise _unfit(f"{name!r} has the unknown dtype {entry.dtype!r}")
    if min(start, *entry.shape, 0) < 0:
        raise _unfit(f"{name!r} has a negative offset or dimension")
    if (end - start) * 8 != _elements(name, entry.shape) * bits:
        raise _unfit(f"{name!r} has {end - start} bytes, which is not what its shape takes")
    return Tensor(name, entry.dtype, entry.shape, data_offset + start, end - start)


def _elements(name: str, shape: tuple[int, ...]) -> int:
    """How many; step by step, for a product of a million large numbers takes minutes."""
    count = 1
    for size in shape:
        count *= size
        if count > _ELEMENTS_MAX:
            raise _unfit(f"{name!r} has more elements than there are bytes")
    return count


def _unfit(problem: str) -> MemError:
    return MemError(Errno.EILSEQ, f"not a safetensors payload: {problem}")
