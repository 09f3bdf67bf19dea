"""Top half of blobs: bytes that nobody here looks into.

Owns nothing. Any thread may call it.
"""

from typing import Any

from libmem.abi.structs import CubeType, Descriptive, Durability

__all__ = ["BlobDriver"]


class BlobDriver:
    """Accepts every payload, never indexes one."""

    type: CubeType = CubeType.BLOB
    durability: Durability = Durability.DURABLE
    indexed_bytes: int = 0
    fixed_attributes: frozenset[str] = frozenset()
    prefixes: None = None

    def model_of(self, attributes: dict[str, Any]) -> str:
        """None's."""
        return ""

    def check_header(self, descriptive: Descriptive, attributes: dict[str, Any]) -> None:
        """Every header is fine."""

    def check_payload(
        self, payload: memoryview | bytes, descriptive: Descriptive, attributes: dict[str, Any]
    ) -> None:
        """Every payload is fine."""

    def is_new_promise(self, old: Descriptive, new: Descriptive) -> bool:
        """No header says anything of the bytes."""
        return False

    def coding(self, attributes: dict[str, Any]) -> None:
        """Bytes are stored as they are."""

    def index_text(self, payload: memoryview | bytes, descriptive: Descriptive) -> str | None:
        """Nothing: bytes have no words, and a title alone would pretend that they had."""
        return None
