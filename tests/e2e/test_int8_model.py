"""What int8 costs a real model: its next tokens after a prefix that lay on disk."""

from pathlib import Path

import pytest

from libmem.abi.kv import KvForm, KvStored, kv_header, layout_of
from tests.e2e.daemon import ROOT, Daemon
from tests.e2e.modelprocess import require_transformers

TOKENS = 384
NEXT = 32
KL_MAX = 0.002
BYTES_MAX = 0.55


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_hardly_notices(daemon: Daemon, smollm2: Path) -> None:
    require_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    from libmem import hf

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "CAVEATS.md"))
    ids = AutoTokenizer.from_pretrained(smollm2, model_max_length=1 << 20)(text).input_ids
    prefix, following = torch.tensor([ids[: TOKENS + NEXT]]).split([TOKENS, NEXT], dim=1)
    with daemon.connect() as client, torch.no_grad():
        exact = DynamicCache(config=model.config)
        model(prefix, past_key_values=exact, logits_to_keep=1)
        hf.save_cache(client, "/t/kv", model, exact, prefix, stored=KvStored(KvForm.INT8))
        client.evict("/t/kv")
        stat = client.stat("/t/kv")
        lossy = hf.map_cache(client, "/t/kv", model, token_ids=prefix)
        after, found = (
            model(following, past_key_values=cache).logits.log_softmax(-1)
            for cache in (exact, lossy)
        )
        del lossy
    divergence = (after.exp() * (after - found)).sum(-1).mean().item()
    assert stat.stored is not None
    header = kv_header(stat.attributes)
    (run,), ids_bytes = header.layers, layout_of(header).planes_offset_bytes
    bfloat16_bytes = 2 * TOKENS * run.count * run.heads * (run.key_dim + run.value_dim)
    ratio = (stat.stored.size_bytes - ids_bytes) / bfloat16_bytes
    print(
        f"tokens={TOKENS} kl={divergence:.6f} bytes_ratio={ratio:.4f} error={stat.stored.error:.4f}"
    )
    assert 0 < divergence <= KL_MAX
    assert ratio <= BYTES_MAX, "of the same cache in bfloat16"
