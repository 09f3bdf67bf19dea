"""Top half of activation memory: KV caches, checked without a model framework.

Owns nothing; any thread may call it. Invariant: a payload that passes has exactly the size that its
header says (`libmem.abi.kv`), and what holds only a part continues its base: same model, same
dtype, same layers, no token between them.
"""

from typing import Any

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import (
    KV_ATTRIBUTE,
    TOKEN_BYTES,
    KvStored,
    digest_of_tokens,
    fingerprint,
    kv_header,
    layout_of,
)
from libmem.abi.prefix import Base, Prefix
from libmem.abi.structs import CubeType, Descriptive, Durability
from memosd.drivers.activation.coding import EXACT, KvCoding

__all__ = ["ActivationDriver"]


class ActivationDriver:
    """KV caches. They can be computed again, so by default they are cache."""

    type: CubeType = CubeType.ACTIVATION
    durability: Durability = Durability.CACHE
    indexed_bytes: int = 0
    fixed_attributes: frozenset[str] = frozenset({KV_ATTRIBUTE})

    def __init__(self, stored: KvStored = EXACT) -> None:
        """`stored`: how payloads lie on disk whose headers do not say."""
        self._stored = stored

    @property
    def prefixes(self) -> "ActivationDriver":
        """It knows of tokens itself."""
        return self

    def check_header(self, descriptive: Descriptive, attributes: dict[str, Any]) -> None:
        """Errors: EINVAL."""
        kv_header(attributes)

    def check_payload(
        self, payload: memoryview | bytes, descriptive: Descriptive, attributes: dict[str, Any]
    ) -> None:
        """Errors: EILSEQ: another size than the header says."""
        need_bytes = layout_of(kv_header(attributes)).size_bytes
        if len(payload) != need_bytes:
            raise MemError(
                Errno.EILSEQ,
                f"the header describes {need_bytes} bytes, the payload has {len(payload)}",
            )

    def is_new_promise(self, old: Descriptive, new: Descriptive) -> bool:
        """Never: what describes the payload is fixed."""
        return False

    def coding(self, attributes: dict[str, Any]) -> KvCoding:
        """The form below RAM, by header and configuration."""
        return KvCoding(kv_header(attributes), self._stored)

    def index_text(self, payload: memoryview | bytes, descriptive: Descriptive) -> str | None:
        """Nothing: keys and values have no words."""
        return None

    def is_part(self, attributes: dict[str, Any]) -> bool:
        """True where the tokens do not begin at position 0."""
        return kv_header(attributes).start > 0

    def model_of(self, attributes: dict[str, Any]) -> str:
        """The fingerprint in the header."""
        return kv_header(attributes).model

    def prefix_of(
        self, payload: memoryview | bytes, attributes: dict[str, Any], base: Base | None
    ) -> Prefix:
        """The token ids at the payload's start.

        Errors: EMODEL (the base is of another model), EINVAL (another shape, too short, or other
        tokens).
        """
        header = kv_header(attributes)
        stored_bytes = (header.tokens - header.start) * TOKEN_BYTES
        tokens = bytes(memoryview(payload)[:stored_bytes])
        model = fingerprint(header.model)
        if base is None:
            return Prefix(model, header.start, tokens)
        under = kv_header(base.attributes)
        if under.model != header.model:
            raise MemError(Errno.EMODEL, "the first parent is of another model", model=under.model)
        if (under.dtype, under.layers) != (header.dtype, header.layers):
            raise MemError(Errno.EINVAL, "the first parent has another shape")
        if under.tokens < header.start:
            raise MemError(
                Errno.EINVAL, f"the first parent has {under.tokens} tokens, not {header.start}"
            )
        if digest_of_tokens(base.packed(header.start)) != header.before:
            raise MemError(Errno.EINVAL, "the first parent holds other tokens")
        return Prefix(model, header.start, tokens, base.key)
