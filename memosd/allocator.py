"""The C library's allocator, set for a process that runs for months."""

import ctypes
from typing import Final

__all__ = ["return_large_buffers"]

_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 128 * 1024


def return_large_buffers() -> bool:
    """Give buffers of 128 KiB and more back to the system as soon as they are freed.

    They lie in mappings of their own from that size on, which is where glibc begins. Left alone
    it raises the limit to the largest buffer freed (`mallopt(3)`, `M_MMAP_THRESHOLD`): replies of
    1 MiB then lie in the heap below whatever small object came after them, and hundreds of MiB
    that nobody uses stay with the daemon. False where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES) == 1
