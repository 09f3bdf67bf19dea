"""The recipes between texts and KV caches: `prefill` and `recite`.

Owns how a text is read into a cache: as a program would that runs the same model, in stretches, so
that progress is told and a cancelled one ends soon.
"""

import time
from collections.abc import Generator
from typing import Final

import msgspec
import torch

from libmem.abi.errors import Errno, MemError
from libmem.abi.lineage import DERIVATION_ATTRIBUTE
from libmem.abi.structs import CubeType
from libmem.abi.transitions import PrefillRecipe, ReciteRecipe
from libmem.hf import fingerprint, new_cache, save_cache
from libmem.hf.prefix import Prefix
from memosd.worker.transitions.models import Models
from memosd.worker.transitions.task import Task

__all__ = ["prefill", "recite"]

_STRETCH: Final = 512
"""Tokens between two reports: about a second on a small machine, and long enough to be computed as
quickly as all at once."""


def prefill(task: Task, models: Models, recipe: PrefillRecipe) -> Generator[None, None, int]:
    """The version that was made. Errors: EINVAL (no text, or too long), EMODEL, EOUTDATED."""
    text = recipe.separator.join(task.texts())
    model = models.model(recipe.dtype)
    digest = fingerprint(model)
    if recipe.model and recipe.model != digest:
        raise MemError(Errno.EMODEL, f"the daemon's model is {digest}, in {model.dtype}")
    ids = _token_ids(models, text, is_chat=recipe.is_chat)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not ids or (room and len(ids) > room):
        raise MemError(Errno.EINVAL, f"{len(ids)} tokens; the model takes 1 to {room}")
    cache = new_cache(model)
    start = time.perf_counter()
    for first in range(0, len(ids), _STRETCH):
        task.report(first, len(ids), "prefilling")
        with torch.inference_mode():
            stretch = torch.tensor([ids[first : first + _STRETCH]], device=model.device)
            model(input_ids=stretch, past_key_values=cache, use_cache=True, logits_to_keep=1)
        yield
    took_s = time.perf_counter() - start
    task.report(len(ids), len(ids), "storing", {"tokens": len(ids), "seconds": took_s})
    reply = save_cache(
        task.client,
        task.request.name,
        model,
        cache,
        ids,
        durability=recipe.durability,
        parents=task.request.sources,
        derivation=task.derivation(),
    )
    return reply.version


def _token_ids(models: Models, text: str, *, is_chat: bool) -> list[int]:
    tokenizer = models.tokenizer
    if not is_chat:
        return list(tokenizer(text)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise MemError(Errno.EOPNOTSUPP, "the model's tokenizer has no chat template")
    message = [{"role": "system", "content": text}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def recite(task: Task, models: Models, _recipe: ReciteRecipe) -> Generator[None, None, int]:
    """The version that was made. Errors: EMODEL (of another model), EILSEQ (no token ids)."""
    yield
    source = task.only_source(CubeType.ACTIVATION)
    prefix = Prefix(task.client.map_parts(source))
    models.of_fingerprint(prefix.header.model, prefix.header.dtype)
    ids = prefix.token_ids()
    if max(ids) >= len(models.tokenizer):
        raise MemError(Errno.EILSEQ, f"{source} has a token that the model does not know")
    text = models.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    again = models.tokenizer(text, add_special_tokens=False)["input_ids"]
    quality = {"tokens": float(len(ids)), "is_exact": float(list(again) == ids)}
    task.report(1, 1, "storing", quality)
    reply = task.client.write(
        task.request.name,
        text,
        type=CubeType.PLAINTEXT,
        parents=task.request.sources,
        attributes={DERIVATION_ATTRIBUTE: msgspec.to_builtins(task.derivation(quality))},
    )
    return reply.version
