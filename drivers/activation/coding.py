"""Which form a KV payload has below RAM, and who makes it.

Owns the choice: what the cube's header asks for, else what the daemon is configured to. The codecs
need numpy, which is no part of a daemon that never meets such a cube: they are imported with the
first one, and where they cannot be, cubes stay as they are. Any thread.
"""

from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Final

from libmem.abi.coding import UnfitError
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
        try:
            int8 = _int8()
        except ImportError:
            raise UnfitError("numpy is not installed where the daemon runs") from None
        encoding: Int8Encoding = int8.Int8Encoding(fd, self._header, self._wish.error_max)
        return encoding

    def decode(self, form: str, blocks: Iterable[bytes], fd: int) -> None:
        """The reverse, into zeroed memory behind `fd`.

        Errors: ECORRUPT, EOPNOTSUPP (an unknown form, or numpy is not installed), EIO, ENOMEM.
        """
        if form != KvForm.INT8:
            raise MemError(Errno.EOPNOTSUPP, f"this daemon cannot decode {form!r}")
        try:
            int8 = _int8()
        except ImportError:
            raise MemError(
                Errno.EOPNOTSUPP, "stored as int8; to decode that, the daemon needs numpy"
            ) from None
        with os_errors("memory of a cube"):
            int8.decode(self._header, blocks, fd)


def _int8() -> ModuleType:
    from memosd.drivers.activation import int8

    return int8
