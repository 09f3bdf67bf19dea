"""Which attention a model's layers use, and whether their caches can be stored.

A stored row must be the key or value of one token under one head, computed from the tokens before
it and nothing else. Everything that is not so is refused here, naming the layer: a recurrent
state, a compressed or quantised cache, positions that depend on the length of the text.

Used by the rest of `libmem.hf`.
"""

from typing import Any, Final

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from libmem.abi.errors import Errno, MemError

__all__ = ["windows_of"]

_KINDS: Final = {"full_attention", "sliding_attention"}
_FOREIGN: Final[dict[str, Any]] = {
    "is_causal": True,
    "use_bidirectional_attention": False,
    "add_cross_attention": False,
    "cross_attention_layers": [],
}
"""Settings with which a row depends on tokens behind it, or on no tokens at all; the value with
which it does not."""
_ROPE_BY_LENGTH: Final = {"dynamic", "longrope"}


def windows_of(config: PreTrainedConfig) -> list[int]:
    """For each layer the tokens that it looks back on; 0: all.

    Errors: EOPNOTSUPP (a layer whose cache cannot be stored).
    """
    if config.is_encoder_decoder:
        raise MemError(Errno.EOPNOTSUPP, "the caches of encoder-decoder models cannot be stored")
    text = config.get_text_config(decoder=True)
    for name, value in _FOREIGN.items():
        if getattr(text, name, None) not in (None, value):
            raise MemError(
                Errno.EOPNOTSUPP, f"{name}: a row depends on more than the tokens before it"
            )
    _refuse_rope(text)
    kinds, settings = get_layer_types_and_kwargs(text)
    for layer, kind in enumerate(kinds):
        if kind not in _KINDS:
            raise MemError(Errno.EOPNOTSUPP, f"layer {layer} is {kind}: such a cache is not stored")
    return [int(setting.get("sliding_window") or 0) for setting in settings]


def _refuse_rope(config: PreTrainedConfig) -> None:
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for each in (parameters, *nested):
        kind = each.get("rope_type", "default")
        if kind in _ROPE_BY_LENGTH:
            raise MemError(
                Errno.EOPNOTSUPP, f"{kind} RoPE: the keys depend on how long the text became"
            )
