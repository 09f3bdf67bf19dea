"""On an accelerator: prefixes are copied to it, compute the same there, and are stored from it."""

import pytest
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

import libmem.hf
from libmem.abi.kv import kv_header
from tests.libmem.hf.fake_client import FakeClient
from tests.libmem.hf.models import full_cache, make_model, prompt

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def logits(model: PreTrainedModel, cache: Cache, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(token_ids, past_key_values=cache).logits


def test_a_prefix_is_mapped_and_forked(cubes: FakeClient) -> None:
    model = make_model("gemma").to(DEVICE)
    text, more, last = (prompt(tokens, seed=tokens).to(DEVICE) for tokens in (80, 40, 5))
    longer = torch.cat([text, more], 1)
    own = full_cache(model, text)
    libmem.hf.save_cache(cubes, "/kv/a", model, own, text)
    cache = libmem.hf.map_cache(cubes, "/kv/a", model, token_ids=longer)
    assert {layer.keys.device.type for layer in cache.layers} == {DEVICE}
    torch.testing.assert_close(logits(model, cache, more), logits(model, own, more))
    libmem.hf.fork(cubes, "/kv/b", cache, longer)
    child = cubes.cubes["/kv/b"]
    assert (child.parent, kv_header(child.attributes).start) == ("/kv/a", 64)
    whole = libmem.hf.map_cache(cubes, "/kv/b", model, token_ids=longer)
    torch.testing.assert_close(logits(model, whole, last), logits(model, own, last))


def test_who_attaches_next_hits(cubes: FakeClient) -> None:
    model, text = make_model("llama").to(DEVICE), prompt(100).to(DEVICE)
    expected = model.generate(text, do_sample=False, max_new_tokens=8)
    for hits in (0, 1):
        with libmem.hf.attach(model, cubes, min_tokens=16) as attached:
            assert torch.equal(model.generate(text, do_sample=False, max_new_tokens=8), expected)
            assert attached.flush(60)
        stats = attached.stats
        assert (stats.hits, stats.tokens_mapped, stats.problems) == (hits, 99 * hits, 0)
        assert len(cubes.cubes) == 1
