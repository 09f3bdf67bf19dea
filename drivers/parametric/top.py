"""Top half of parametric memory: LoRA adapters, checked without a model framework.

Owns nothing; any thread may call it. Invariant: a payload that passes is a safetensors file of the
factors that its header describes, complete, of fitting shapes, and every number in it is finite.
"""

from typing import Any

from libmem.abi.errors import Errno, MemError
from libmem.abi.lora import LORA_ATTRIBUTE, config_of, factors_of, lora_header
from libmem.abi.structs import CubeType, Descriptive, Durability
from libmem.abi.tensors import tensors_of

__all__ = ["ParametricDriver"]


class ParametricDriver:
    """LoRA adapters. Training them takes minutes, so by default they are durable."""

    type: CubeType = CubeType.PARAMETRIC
    durability: Durability = Durability.DURABLE
    indexed_bytes: int = 0
    fixed_attributes: frozenset[str] = frozenset({LORA_ATTRIBUTE})
    prefixes: None = None

    def model_of(self, attributes: dict[str, Any]) -> str:
        """The fingerprint of its base model."""
        return lora_header(attributes).model

    def check_header(self, descriptive: Descriptive, attributes: dict[str, Any]) -> None:
        """Errors: EINVAL."""
        lora_header(attributes)

    def check_payload(
        self, payload: memoryview | bytes, descriptive: Descriptive, attributes: dict[str, Any]
    ) -> None:
        """Errors: EILSEQ: no safetensors, other tensors than the header says, NaN or Inf."""
        # numpy takes longer to import than a daemon to start: it comes with the first adapter.
        from memosd.drivers.parametric.finite import is_finite

        tensors = tensors_of(payload)
        factors_of(config_of(lora_header(attributes).config), tensors)
        for tensor in tensors.values():
            if not is_finite(payload, tensor):
                raise MemError(Errno.EILSEQ, f"{tensor.name!r} has elements that are not finite")

    def is_new_promise(self, old: Descriptive, new: Descriptive) -> bool:
        """Never: what describes the payload is fixed."""
        return False

    def coding(self, attributes: dict[str, Any]) -> None:
        """Adapters are stored as they are."""

    def index_text(self, payload: memoryview | bytes, descriptive: Descriptive) -> str | None:
        """Nothing: weights have no words."""
        return None
