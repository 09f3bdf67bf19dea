"""Which form a KV payload has below RAM, and who makes it.

Owns the choice: what the cube's header asks for, else what the daemon is configured to. The codecs
need numpy, which takes longer to import than a daemon to start: they come with the first such cube.
Any thread.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvForm, KvHeader, KvStored
from memosd.drivers.tiers.payload import os_errors

if TYPE_CHECKING:
    from memosd.drivers.activation.int8 import Int8Encoding

__all__ = ["EXACT", "KvCoding"]

EXACT: Final = KvStored(KvForm.EXACT)


class KvCoding:
    """The form of one payload, by its header."""

    def __init__(self, header: KvHeader, default: KvStored) -> None:
        self._header = header
        self._wish = header.stored or default

    @property
    def is_wanted(self) -> bool:
        """Is the payload to be stored in another form than its own?"""
        return self._wish.form is not KvForm.EXACT

    def encode(self, fd: int) -> "Int8Encoding":
        """The payload behind `fd` on its way into that form. Errors: UnfitError."""
        from memosd.drivers.activation.int8 import Int8Encoding

        return Int8Encoding(fd, self._header, self._wish.error_max)

    def decode(self, form: str, blocks: Iterable[bytes], fd: int) -> None:
        """The reverse, into zeroed memory behind `fd`.

        Errors: ECORRUPT, EOPNOTSUPP (an unknown form), EIO, ENOMEM.
        """
        if form != KvForm.INT8:
            raise MemError(Errno.EOPNOTSUPP, f"this daemon cannot decode {form!r}")
        from memosd.drivers.activation import int8

        with os_errors("memory of a cube"):
            int8.decode(self._header, blocks, fd)
