"""Small random models of many architectures, and caches of what they computed."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

__all__ = [
    "ARCHITECTURES",
    "GREEDY",
    "TEXT",
    "VOCABULARY",
    "full_cache",
    "generate",
    "longer",
    "make_model",
    "prompt",
]

VOCABULARY = 97

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_DECODER = _COMMON | {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}


def _llama(**more: Any) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(**_DECODER, num_attention_heads=4, num_key_value_heads=2, head_dim=16, **more)
    )


def _odd(**more: Any) -> PreTrainedModel:
    """A head_dim that is no power of two: a grain of many tokens."""
    return LlamaForCausalLM(
        LlamaConfig(**_DECODER, num_attention_heads=2, num_key_value_heads=1, head_dim=24, **more)
    )


def _qwen(**more: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(**_DECODER, num_attention_heads=4, num_key_value_heads=4, head_dim=8, **more)
    )


def _gpt2(**more: Any) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=4096,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=None,
            eos_token_id=None,
            **more,
        )
    )


def _mistral(**more: Any) -> PreTrainedModel:
    return MistralForCausalLM(
        MistralConfig(
            **_DECODER,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            sliding_window=24,
            **more,
        )
    )


def _gemma(**more: Any) -> PreTrainedModel:
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **(_DECODER | {"num_hidden_layers": 3}),
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            **more,
        )
    )


ARCHITECTURES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": _llama,
    "odd": _odd,
    "qwen": _qwen,
    "gpt2": _gpt2,
    "mistral": _mistral,
    "gemma": _gemma,
}


def make_model(architecture: str, seed: int = 0, attention: str = "sdpa") -> PreTrainedModel:
    """A model of random weights, the same for the same arguments."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture](attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than initialised: tokens that differ
            parameter.normal_(0, 0.2)
    model.eval()
    return model


def prompt(tokens: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Token ids, [rows, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (rows, tokens), generator=generator)


def full_cache(model: PreTrainedModel, token_ids: torch.Tensor) -> DynamicCache:
    """What the model computes, in a cache that keeps all tokens of all layers."""
    cache = DynamicCache()
    with torch.no_grad():
        model(token_ids, past_key_values=cache)
    return cache


TEXT = prompt(100)
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}


def generate(model: Any, token_ids: torch.Tensor | None, **options: Any) -> Any:
    """What the model makes of a prompt, always with the same seed."""
    torch.manual_seed(7)
    return model.generate(token_ids, **{**GREEDY, **options})


def longer(token_ids: torch.Tensor, tokens: int = 30, seed: int = 1) -> torch.Tensor:
    """A text with more behind it."""
    return torch.cat([token_ids, prompt(tokens, token_ids.shape[0], seed)], 1)
