"""What int8 costs a real model: its next tokens after a prefix that lay on disk."""

from pathlib import Path
from typing import Any

import pytest

from libmem import CubeType
from libmem.abi.kv import (
    KvDtype,
    KvForm,
    KvHeader,
    KvLayers,
    KvStored,
    layout_of,
    pack_tokens,
    planes_of,
)
from tests.caches import attributes_of
from tests.e2e.daemon import ROOT, Daemon

TOKENS = 384
NEXT = 32
KL_MAX = 0.002
BYTES_MAX = 0.55


def cache_of(torch: Any, header: KvHeader, payload: Any) -> Any:
    """A cache of transformers with the payload's planes."""
    from transformers import DynamicCache

    (run,), stored = header.layers, layout_of(header)
    layers: list[tuple[list[Any], list[Any]]] = [([], []) for _ in range(run.count)]
    for plane in planes_of(header):
        count = stored.capacity_tokens * plane.dim
        rows = torch.frombuffer(
            payload, dtype=torch.float32, count=count, offset=plane.offset_bytes
        )
        layers[plane.layer][plane.is_value].append(rows.view(-1, plane.dim)[: header.tokens])
    cache = DynamicCache()
    for number, pair in enumerate(layers):
        cache.update(*(torch.stack(heads)[None] for heads in pair), number)
    return cache


def payload_of(header: KvHeader, cache: Any, tokens: list[int]) -> bytearray:
    """The reverse."""
    payload = bytearray(layout_of(header).size_bytes)
    packed = pack_tokens(tokens)
    payload[: len(packed)] = packed
    for plane in planes_of(header):
        layer = cache.layers[plane.layer]
        rows = (layer.values if plane.is_value else layer.keys)[0, plane.head].numpy().tobytes()
        payload[plane.offset_bytes : plane.offset_bytes + len(rows)] = rows
    return payload


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_hardly_notices(daemon: Daemon, smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "CAVEATS.md"))
    ids = AutoTokenizer.from_pretrained(smollm2, model_max_length=1 << 20)(text).input_ids
    ids = torch.tensor([ids[: TOKENS + NEXT]])
    with torch.no_grad():
        exact = DynamicCache()
        model(ids[:, :TOKENS], past_key_values=exact, logits_to_keep=1)
        config = model.config
        dim = config.hidden_size // config.num_attention_heads
        run = KvLayers(config.num_hidden_layers, config.num_key_value_heads, dim, dim)
        stored = KvStored(KvForm.INT8)
        header = KvHeader("ab" * 32, KvDtype.FLOAT32, (run,), tokens=TOKENS, stored=stored)
        payload = bytes(payload_of(header, exact, ids[0, :TOKENS].tolist()))
        with daemon.connect() as client:
            fill = client.create(
                "/t/kv", len(payload), type=CubeType.ACTIVATION, attributes=attributes_of(header)
            )
            fill.copy_in(payload)
            fill.seal()
            client.evict("/t/kv")
            form = client.stat("/t/kv").stored
            with client.map("/t/kv") as mapping:
                lossy = cache_of(torch, header, bytearray(mapping))
        after = [
            model(ids[:, TOKENS:], past_key_values=cache).logits.log_softmax(-1)
            for cache in (exact, lossy)
        ]
    divergence = (after[0].exp() * (after[0] - after[1])).sum(-1).mean().item()
    assert form is not None
    start = layout_of(header).planes_offset_bytes
    exact_bytes = 2 * TOKENS * run.count * run.heads * 2 * dim
    ratio = (form.size_bytes - start) / exact_bytes
    print(f"tokens={TOKENS} kl={divergence:.6f} bytes_ratio={ratio:.4f} error={form.error:.4f}")
    assert 0 < divergence <= KL_MAX
    assert ratio <= BYTES_MAX, "of the same cache in bfloat16"
