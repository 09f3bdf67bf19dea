"""What a model's configuration says: what of it counts, and whether its caches can be stored.

A stored row must be the key or value of one token under one head, computed from the tokens before
it and nothing else. Everything that is not so is refused here, naming the layer: a recurrent
state, a compressed or quantised cache, positions that depend on the length of the text.

Used by the rest of `libmem.hf`.
"""

import json
from typing import Any, Final

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from libmem.abi.errors import Errno, MemError

__all__ = ["relevant", "windows_of"]

_IRRELEVANT: Final = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_model_name_or_path",
    "_output_attentions",
    "_post_init_done",
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Configuration that no key and no value depends on. What is not listed counts."""

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
_KNOWN_MAX: Final = 16
"""Configurations; a process has one or two, a few kilobytes each."""

_known: dict[tuple[type, str], tuple[int, ...]] = {}
"""What was found for a configuration's contents: transformers takes 0.4 ms to say it again."""


def windows_of(config: PreTrainedConfig) -> tuple[int, ...]:
    """For each layer the tokens that it looks back on; 0: all.

    Errors: EOPNOTSUPP (a layer whose cache cannot be stored).
    """
    described = type(config), json.dumps(relevant(config), sort_keys=True, default=repr)
    windows = _known.get(described)
    if windows is None:
        windows = _windows(config)
        if len(_known) >= _KNOWN_MAX:
            _known.clear()
        _known[described] = windows
    return windows


def relevant(value: Any) -> Any:
    """A configuration's contents, but for what no key and no value depends on."""
    # Not `to_dict`: it copies everything, with every question.
    if isinstance(value, PreTrainedConfig):
        value = {"model_type": value.model_type, **vars(value)}
    if isinstance(value, dict):
        return {str(k): relevant(v) for k, v in value.items() if k not in _IRRELEVANT}
    return value


def _windows(config: PreTrainedConfig) -> tuple[int, ...]:
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
    return tuple(int(setting.get("sliding_window") or 0) for setting in settings)


def _refuse_rope(config: PreTrainedConfig) -> None:
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for each in (parameters, *nested):
        kind = each.get("rope_type", "default")
        if kind in _ROPE_BY_LENGTH:
            raise MemError(
                Errno.EOPNOTSUPP, f"{kind} RoPE: the keys depend on how long the text became"
            )
