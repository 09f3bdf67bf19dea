"""What the programs of `ModelProcess` find: a small model, and the ways to ask it.

Imported once, in the process that the others are forked from: transformers takes seconds.
"""

from typing import Any

import torch
from blake3 import blake3
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

import libmem.hf
from libmem.abi.calls import PrefixReply
from libmem.abi.kv import pack_tokens
from libmem.hf import Attached, MappedCache
from tests.libmem.hf.models import make_model, prompt

__all__ = ["answer", "ask", "attach", "digest", "find", "logits", "prefill", "warm_up"]

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}


def attach(model: PreTrainedModel, client: libmem.Client) -> Attached:
    """Under /t, where all tests are at home; what is stored is loaded, though models so small
    compute it in less time."""
    return libmem.hf.attach(
        model, client, namespace="/t", min_tokens=16, restore=libmem.hf.Restore.LOAD
    )


def answer(model: Any, token_ids: torch.Tensor, **options: Any) -> list[int]:
    """Prompt and answer."""
    result: list[int] = model.generate(input_ids=token_ids, **{**GREEDY, **options})[0].tolist()
    return result


def ask(attached: Attached, model: Any, token_ids: torch.Tensor, **options: Any) -> list[int]:
    """The same, and what is new is stored, whatever that costs."""
    attached.stats.store_s_per_token = 0.0
    result = answer(model, token_ids, **options)
    assert attached.flush(60)
    return result


def find(client: libmem.Client, model: Any, token_ids: torch.Tensor) -> PrefixReply:
    """What is stored of this text, wherever that is."""
    return client.find_prefix(libmem.hf.fingerprint(model), pack_tokens(token_ids[0].tolist()))


def prefill(model: Any, token_ids: torch.Tensor) -> MappedCache:
    """An own cache of these tokens."""
    cache = libmem.hf.new_cache(model)
    logits(model, cache, token_ids)
    assert isinstance(cache, MappedCache)
    return cache


def logits(model: Any, cache: Cache, token_ids: torch.Tensor) -> torch.Tensor:
    """Those of each token, behind what the cache holds; it grows."""
    with torch.no_grad():
        found: torch.Tensor = model(token_ids, past_key_values=cache).logits
    return found


def digest(cache: MappedCache) -> str:
    """Of all keys and values."""
    state = blake3()
    for layer in cache.mapped_layers:
        for states in (layer.keys, layer.values):
            state.update(states.contiguous().numpy().tobytes())
    return state.hexdigest()


def warm_up() -> None:
    """Import what is imported late: other users may not be allowed to read it."""
    model = make_model("llama")
    answer(model, prompt(4))
    libmem.hf.fingerprint(model)


warm_up()
