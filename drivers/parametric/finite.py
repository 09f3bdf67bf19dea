"""Is every number of a tensor finite? `top.py` imports it with the first adapter.

A NaN in one adapter makes NaN of all that a model computes with it, of other requests in its batch
too, where an engine mixes them.
"""

from typing import Final

import numpy as np

from libmem.abi.tensors import Tensor

__all__ = ["is_finite"]

_CHUNK_BYTES: Final = 1 << 20
_FLOATS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_BFLOAT16_EXPONENT: Final = np.uint16(0x7F80)
"""All of it set: Inf or NaN. numpy knows no bfloat16."""


def is_finite(payload: memoryview | bytes, tensor: Tensor) -> bool:
    """`tensor`: of dtype F64, F32, F16 or BF16, within the payload."""
    end = tensor.offset_bytes + tensor.size_bytes
    dtype = np.dtype(_FLOATS.get(tensor.dtype, "<u2"))
    for start in range(tensor.offset_bytes, end, _CHUNK_BYTES):
        chunk = memoryview(payload)[start : min(start + _CHUNK_BYTES, end)]
        numbers = np.frombuffer(chunk, dtype)
        if tensor.dtype == "BF16":
            is_good = ((numbers & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT).all()
        else:
            is_good = np.isfinite(numbers).all()
        if not is_good:
            return False
    return True
