"""What a call of `generate` asks for, as far as a stored prefix may serve it.

Owns the decision what is plain: token ids alone decide the keys and values, every row starts at
position 0, and the cache is generate's own choice. Everything else is none of our business and
passes through untouched. New arguments of transformers are not plain until somebody says so.

Used by `libmem.hf.attach`.
"""

from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch.nn.modules import module as _module
from transformers import GenerationConfig

from libmem.hf.cache import is_spread
from libmem.hf.layers import HEADROOM_TOKENS
from libmem.hf.weights import modules_of

__all__ = ["Request", "read_request"]

_PLAIN: Final = {
    "inputs",
    "input_ids",
    "attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "tokenizer",
}
_OFF: Final = (
    "assistant_early_exit",
    "cache_implementation",
    "constraints",
    "dola_layers",
    "force_words_ids",
    "guidance_scale",
    "is_assistant",
    "output_attentions",
    "output_hidden_states",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "token_healing",
)
"""Settings that bring a cache of their own, another model, or results for each prompt token."""

_HOOKS_OF_ALL: Final = (_module._global_forward_pre_hooks, _module._global_forward_hooks)
"""Those that torch calls for every module of the process."""

_NEW_TOKENS: Final = 256
"""Room where nothing says how many tokens will be generated."""


class Request(NamedTuple):
    """A plain call."""

    token_ids: torch.Tensor
    """[batch, tokens]"""
    common_tokens: int
    """How many tokens all prompts of the batch share."""
    rows: int
    """Of the cache: the batch times beams or returned sequences."""
    room_tokens: int
    """Prompt and the first new tokens; it grows, so it need not hold the most there may be."""
    streams: bool


def read_request(model: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Request | None:
    """The call of `model.generate(*args, **options)`, None where it is not plain."""
    if len(args) > 1 or not _is_plain_model(model):
        return None
    given = {name: value for name, value in options.items() if value is not None}
    if given.keys() - _PLAIN - _setting_names():
        return None
    prompts = [*args, *(given[name] for name in ("inputs", "input_ids") if name in given)]
    if len(prompts) != 1 or not _are_token_ids(prompts[0]):
        return None
    token_ids: torch.Tensor = prompts[0]
    settings = _Settings(given, (given.get("generation_config"), model.generation_config))
    if settings.get("use_cache") is False or any(settings.get(name) for name in _OFF):
        return None
    if not _is_unpadded(token_ids, given.get("attention_mask"), settings):
        return None
    beams = max(settings.get("num_beams") or 1, settings.get("num_return_sequences") or 1)
    tokens = token_ids.shape[1]
    new_tokens = settings.get("max_new_tokens")
    if new_tokens is None:
        new_tokens = max(_NEW_TOKENS, (settings.get("max_length") or 0) - tokens)
    return Request(
        token_ids,
        _common_tokens(token_ids),
        token_ids.shape[0] * beams,
        tokens + min(new_tokens, HEADROOM_TOKENS),
        given.get("streamer") is not None,
    )


class _Settings(NamedTuple):
    """What decides a setting: the call, its configuration, the model's."""

    given: dict[str, Any]
    configurations: tuple[GenerationConfig | None, ...]

    def get(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        values = (getattr(each, name, None) for each in self.configurations)
        return next((value for value in values if value is not None), None)


@lru_cache
def _setting_names() -> frozenset[str]:
    settings = GenerationConfig()
    return frozenset(name for name in vars(settings) if not name.startswith("_"))


def _is_plain_model(model: Any) -> bool:
    """Nothing but weights and configuration decides what the model computes."""
    if model.config.is_encoder_decoder or is_spread(model):
        return False
    if torch.is_autocast_enabled(model.device.type):
        return False
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and getattr(adapter, "is_prompt_learning", False):
        return False
    if "prepare_inputs_for_generation" in vars(model):  # prompts of somebody else before ours
        return False
    if any(_is_foreign(hook) for hooks in _HOOKS_OF_ALL for hook in hooks.values()):
        return False
    return not any(
        module.training  # one that drops out is enough
        or (module._forward_pre_hooks and any(map(_is_foreign, module._forward_pre_hooks.values())))
        or (module._forward_hooks and any(map(_is_foreign, module._forward_hooks.values())))
        for module in modules_of(model)
    )


def _is_foreign(hook: Any) -> bool:
    # transformers records outputs with hooks of its own, which change nothing.
    return not str(getattr(hook, "__module__", "")).startswith("transformers.")


def _are_token_ids(prompt: Any) -> bool:
    return (
        isinstance(prompt, torch.Tensor)
        and prompt.dim() == 2
        and prompt.dtype in {torch.int64, torch.int32}
        and prompt.shape[0] > 0
        and prompt.shape[1] > 1
    )


def _is_unpadded(token_ids: torch.Tensor, mask: Any, settings: _Settings) -> bool:
    if mask is not None:
        return bool(mask.shape == token_ids.shape and (mask == 1).all())
    # Without a mask, generate takes this token for padding wherever it stands, unless it is one
    # that ends a text as well.
    padding, ends = settings.get("pad_token_id"), settings.get("eos_token_id")
    if padding is None or padding in (ends if isinstance(ends, list) else [ends]):
        return True
    return not bool((token_ids == padding).any())


def _common_tokens(token_ids: torch.Tensor) -> int:
    differs = (token_ids != token_ids[:1]).any(0).nonzero()
    return int(differs[0]) if len(differs) else token_ids.shape[1]
