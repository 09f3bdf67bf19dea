"""`kv-int8`, or `kv --quantise int8`: what a prefix loses, and saves, when it lies on disk as int8.

A prompt of real text is prefilled by a real model and committed with `stored: int8`, evicted, and
mapped again. The next tokens of the same text are then read behind the cube and behind the exact
cache of the same process; the two distributions after every token are compared. The peer of the
bytes is the same cache in bfloat16.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from libmem import hf
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvForm, KvStored, kv_header, layout_of
from libmem.abi.structs import Stat, StoredForm
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.prompts import load_model, prompt_of
from memosd.tools.bench.report import Report, at_most, row

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_CUBE: Final = "/bench/prefix"
_BFLOAT16_BYTES: Final = 2


@dataclass(frozen=True)
class Plan:
    tokens: int = 2048
    next_tokens: int = 32


FULL = Plan()
QUICK = Plan(tokens=512)


def measure(plan: Plan, directory: Path) -> Report:
    """Commit, evict, map, compare."""
    import torch
    from transformers import DynamicCache

    model, text = load_model(), prompt_of(plan.tokens + plan.next_tokens)
    prefix, following = text[:, : plan.tokens], text[:, plan.tokens :]
    with private_daemon(directory) as daemon, torch.inference_mode():
        daemon.start()
        with daemon.connect(timeout_s=60) as client:
            client.make_namespace("/bench")
            exact = DynamicCache(config=model.config)
            model(prefix, past_key_values=exact, logits_to_keep=1)
            stored = KvStored(KvForm.INT8)
            hf.save_cache(client, _CUBE, model, exact, prefix, stored=stored)
            begun = time.perf_counter()
            client.evict(_CUBE)
            evicted = time.perf_counter()
            lossy = hf.map_cache(client, _CUBE, model, token_ids=prefix)
            mapped = time.perf_counter()
            stat = client.stat(_CUBE)
            behind = [model(following, past_key_values=each).logits[0] for each in (exact, lossy)]
        daemon.stop()
    form = _form(stat)
    kl, same = _compared(*behind)
    return Report(
        "kv-int8",
        (
            row("kl", kl, f"mean KL divergence over {plan.next_tokens} tokens", at_most(0.002)),
            row("bytes_ratio", _bytes_ratio(stat, form), "on disk / bfloat16", at_most(0.55)),
            row("top1_same", same, "of the most likely tokens, the same"),
            row("error", form.error, "as the daemon measured and recorded it"),
            row("encode_ms", (evicted - begun) * 1e3, "evict: encode, write, commit"),
            row("fault_ms", (mapped - evicted) * 1e3, "read, verify, decode, verify, map"),
        ),
        (
            f"SmolLM2-135M-Instruct, float32; a prefix of {plan.tokens:,} tokens of English and "
            f"the {plan.next_tokens} tokens that follow it in the text",
        ),
    )


def _form(stat: Stat) -> StoredForm:
    if stat.stored is None:
        raise MemError(Errno.EIO, "it does not lie on disk as int8", cube=stat.name)
    return stat.stored


def _bytes_ratio(stat: Stat, form: StoredForm) -> float:
    """Without the token ids, which are the same in both."""
    header = kv_header(stat.attributes)
    layout = layout_of(header)
    ids_bytes = layout.planes_offset_bytes
    elements = (layout.size_bytes - ids_bytes) // header.dtype.item_bytes
    return (form.size_bytes - ids_bytes) / (elements * _BFLOAT16_BYTES)


def _compared(exact: Any, lossy: Any) -> tuple[float, float]:
    """Mean KL divergence (exact from lossy), and the share of equal first choices."""
    p, q = exact.log_softmax(-1), lossy.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    return float(kl), float((p.argmax(-1) == q.argmax(-1)).float().mean())
