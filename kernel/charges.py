"""What versions are charged for their rows in the table. Pure functions."""

from typing import Any, Final

from libmem.abi.structs import Descriptive
from libmem.abi.wire import encode
from memosd.kernel.groups import PLAIN_DESCRIPTIVE
from memosd.kernel.rows import VersionRow

__all__ = ["row_charge", "version_charge"]

_ROW_BYTES: Final = 512
"""Charged per version for its rows in the table, beside header and payload; about what LMDB
takes."""

_PARENT_BYTES: Final = 24


def version_charge(version: VersionRow) -> int:
    """What a version's rows cost on disk, header and parents included."""
    return row_charge(version.descriptive, version.attributes, len(version.parents))


def row_charge(descriptive: Descriptive, attributes: dict[str, Any], parents: int) -> int:
    """What a version's rows cost with such a header and so many parents."""
    charge = _ROW_BYTES + parents * _PARENT_BYTES
    if not attributes and descriptive == PLAIN_DESCRIPTIVE:
        return charge
    return charge + len(encode((descriptive, attributes)))
