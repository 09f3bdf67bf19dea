"""Caches of whole models: the same results as without, whatever is done with them."""

import copy
import gc
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

import libmem.hf
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_CHAIN_MAX, kv_header
from libmem.abi.structs import Durability
from libmem.hf.cache import CopiedCache, MappedCache
from libmem.hf.kinds import windows_of
from tests.libmem.hf.fake_client import FakeClient, held_memory
from tests.libmem.hf.models import ARCHITECTURES, full_cache, make_model, prompt

TOKENS = 80


def logits(model: PreTrainedModel, cache: Cache, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(token_ids, past_key_values=cache).logits


def mapped(client: FakeClient, name: str, model: PreTrainedModel, **options: Any) -> MappedCache:
    cache = libmem.hf.map_cache(client, name, model, **options)
    assert isinstance(cache, MappedCache)
    return cache


def stored(client: FakeClient, model: PreTrainedModel, tokens: int = TOKENS) -> DynamicCache:
    cache = full_cache(model, prompt(tokens))
    libmem.hf.save_cache(client, "/kv/a", model, cache, prompt(tokens))
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_turned", [False, True])
def test_rows_are_stored_as_they_are(
    cubes: FakeClient, dtype: torch.dtype, is_turned: bool
) -> None:
    """Whether the rows of a head lie behind one another or not."""
    model = make_model("llama").to(dtype)
    cache = full_cache(model, prompt(TOKENS))
    if is_turned:
        for layer in cache.layers:
            layer.keys = layer.keys.transpose(2, 3).contiguous().transpose(2, 3)
    libmem.hf.save_cache(cubes, "/kv/a", model, cache, prompt(TOKENS), tokens=TOKENS - 3)
    again = mapped(cubes, "/kv/a", model)
    for layer, other in zip(cache.layers, again.layers, strict=True):
        assert torch.equal(layer.keys[:, :, :-3], other.keys)
        assert torch.equal(layer.values[:, :, :-3], other.values)


def errno_of(call: Any, *args: Any, **options: Any) -> Errno:
    with pytest.raises(MemError) as caught:
        call(*args, **options)
    return caught.value.errno


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    architecture=st.sampled_from(sorted(ARCHITECTURES)),
    attention=st.sampled_from(["sdpa", "eager"]),
    tokens=st.integers(1, TOKENS),
    room=st.integers(1, 200),
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    rows=st.integers(1, 3),
)
def test_logits_are_those_of_a_dynamic_cache(
    *, architecture: str, attention: str, tokens: int, room: int, steps: list[int], rows: int
) -> None:
    client, model = FakeClient(), make_model(architecture, attention=attention)
    full = stored(client, model)
    if tokens < TOKENS:
        full.crop(tokens - TOKENS)
    full.batch_repeat_interleave(rows)
    cache = mapped(client, "/kv/a", model, tokens=tokens, rows=rows, room_tokens=room)
    for seed, new in enumerate(steps):
        more = prompt(new, rows, seed)
        assert torch.equal(logits(model, cache, more), logits(model, full, more))
        if seed == 1:
            for each in (cache, full):
                each.crop(-new - tokens // 2)
    client.close()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["mistral", "gemma"])
def test_a_window_over_all_tokens_is_a_sliding_window(
    cubes: FakeClient, architecture: str, attention: str
) -> None:
    model = make_model(architecture, attention=attention)
    own = DynamicCache(config=model.config)
    token_ids = prompt(TOKENS)
    ours = libmem.hf.new_cache(model)
    assert torch.allclose(logits(model, ours, token_ids), logits(model, own, token_ids), atol=1e-4)
    libmem.hf.save_cache(cubes, "/kv/a", model, ours, token_ids)
    assert kv_header(cubes.cubes["/kv/a"].attributes).layers[0].window == 24
    again = mapped(cubes, "/kv/a", model, token_ids=token_ids)
    for seed, new in enumerate((1, 40, 1, 1)):
        more = prompt(new, seed=seed)
        expected = logits(model, own, more)
        assert torch.allclose(logits(model, again, more), expected, atol=1e-4)
        assert torch.allclose(logits(model, ours, more), expected, atol=1e-4)
    # What transformers' own cache of a sliding window dropped cannot be stored.
    with pytest.raises(MemError, match="layer 0") as caught:
        libmem.hf.save_cache(cubes, "/kv/b", model, own, prompt(200))
    assert caught.value.errno is Errno.EOPNOTSUPP


MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_writes_the_same_text(cubes: FakeClient, architecture: str, mode: str) -> None:
    model, options = make_model(architecture), MODES[mode] | {"max_new_tokens": 12}
    stored(cubes, model)
    token_ids = torch.cat([prompt(TOKENS), prompt(7, seed=3)], 1)
    rows = max(MODES[mode].get(name, 1) for name in ("num_beams", "num_return_sequences"))
    texts = []
    for cache in (None, mapped(cubes, "/kv/a", model, rows=rows, room_tokens=TOKENS + 10)):
        torch.manual_seed(1)
        texts.append(model.generate(token_ids, past_key_values=cache, **options))
    assert torch.equal(*texts)


def test_two_mappings_never_see_each_other(cubes: FakeClient) -> None:
    model = make_model("llama")
    stored(cubes, model)
    caches = [mapped(cubes, "/kv/a", model) for _ in range(2)]
    texts = [prompt(30, seed=seed) for seed in (1, 2)]
    for text, cache in zip(texts, caches, strict=True):
        logits(model, cache, text)
    for text, cache in zip(texts, caches, strict=True):
        alone = mapped(cubes, "/kv/a", model)
        logits(model, alone, text)
        for ours, theirs in zip(cache.mapped_layers, alone.mapped_layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)
    twin = copy.deepcopy(caches[0])
    assert torch.equal(logits(model, twin, texts[0]), logits(model, caches[0], texts[0]))


def test_a_cache_that_is_dropped_is_unmapped_at_once(cubes: FakeClient) -> None:
    model = make_model("gemma")
    stored(cubes, model)
    gc.collect()  # what other tests left
    before = held_memory()
    cache = mapped(cubes, "/kv/a", model, rows=2, room_tokens=TOKENS)
    logits(model, cache, prompt(200, rows=2))  # grows
    twin = copy.deepcopy(cache)
    twin.batch_select_indices(torch.tensor([1]))
    assert held_memory().vmas > before.vmas
    assert held_memory().descriptors == before.descriptors + 1
    del cache, twin
    assert (held_memory(), cubes.leases) == (before, 0)


def test_a_fork_holds_what_is_new(cubes: FakeClient) -> None:
    model = make_model("llama")
    full, name, text = stored(cubes, model), "/kv/a", prompt(TOKENS)
    for number in range(3):
        more = prompt(50, seed=number + 1)
        cache = mapped(cubes, name, model, token_ids=text)
        logits(model, cache, more)
        logits(model, full, more)
        text, name = torch.cat([text, more], 1), f"/kv/fork{number}"
        libmem.hf.fork(cubes, name, cache, text)
    header = kv_header(cubes.cubes[name].attributes)
    assert (header.tokens, header.start) == (230, 176 // 64 * 64)
    whole = mapped(cubes, name, model, token_ids=text)
    last = prompt(5, seed=9)
    assert torch.equal(logits(model, whole, last), logits(model, full, last))
    # A prefix that a crop cut into is the base only as far as it is left.
    whole.crop(-180)
    logits(model, whole, prompt(40, seed=7))
    cut = torch.cat([text[:, :55], prompt(40, seed=7)], 1)
    libmem.hf.fork(cubes, "/kv/cut", whole, torch.cat([text[:, :55], last, cut], 1), tokens=55)
    assert kv_header(cubes.cubes["/kv/cut"].attributes).start == 0


def test_a_fork_is_whole_where_it_must_be(cubes: FakeClient) -> None:
    model = make_model("llama")
    stored(cubes, model)
    cache = mapped(cubes, "/kv/a", model)
    logits(model, cache, prompt(5))
    text = torch.cat([prompt(TOKENS), prompt(5)], 1)
    libmem.hf.fork(cubes, "/kv/durable", cache, text, durability=Durability.DURABLE)
    assert cubes.cubes["/kv/durable"].parent == ""
    assert cache.prefix is not None
    cache.prefix.parts_count = KV_CHAIN_MAX
    libmem.hf.fork(cubes, "/kv/full", cache, text)
    assert cubes.cubes["/kv/full"].parent == ""
    assert errno_of(libmem.hf.fork, cubes, "/kv/x", cache, text[:, :10]) is Errno.EINVAL


def test_what_is_stored_must_fit_its_tokens(cubes: FakeClient) -> None:
    model = make_model("llama")
    full = stored(cubes, model)
    cache = mapped(cubes, "/kv/a", model)
    other = prompt(TOKENS, seed=5)
    assert errno_of(libmem.hf.map_cache, cubes, "/kv/a", model, token_ids=other) is Errno.EINVAL
    assert errno_of(libmem.hf.fork, cubes, "/kv/x", cache, other) is Errno.EINVAL
    mask = torch.ones(1, TOKENS)
    mask[0, 0] = 0
    save = libmem.hf.save_cache
    assert errno_of(save, cubes, "/x", model, full, other, attention_mask=mask) is Errno.EOPNOTSUPP
    assert errno_of(save, cubes, "/x", model, full, other[:, :9]) is Errno.EINVAL
    assert errno_of(save, cubes, "/x", model, full, other, row=1) is Errno.EINVAL
    assert errno_of(save, cubes, "/x", model, DynamicCache(), other) is Errno.EINVAL
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert errno_of(libmem.hf.fork, cubes, "/kv/x", cache, prompt(TOKENS)) is Errno.EMODEL
    assert errno_of(libmem.hf.map_cache, cubes, "/kv/a", model) is Errno.EMODEL
    assert cubes.leases == 1  # the errors hold none


def test_a_row_of_a_batch_is_stored_alone(cubes: FakeClient) -> None:
    model = make_model("qwen")
    batch = prompt(30, rows=3)
    full = full_cache(model, batch)
    libmem.hf.save_cache(cubes, "/kv/a", model, full, batch[1], row=1, tokens=20)
    layer = mapped(cubes, "/kv/a", model, token_ids=batch[1]).mapped_layers[1]
    assert torch.equal(layer.values[0], full.layers[1].values[1, :, :20])


def test_rows_that_are_not_there(cubes: FakeClient) -> None:
    model = make_model("llama")
    full = stored(cubes, model)
    for rows in (0, -1):
        assert errno_of(libmem.hf.map_cache, cubes, "/kv/a", model, rows=rows) is Errno.EINVAL
    save, mask = libmem.hf.save_cache, torch.ones(1, TOKENS)
    for row in (5, -1):
        options = {"row": row, "attention_mask": mask}
        assert (
            errno_of(save, cubes, "/x", model, full, prompt(TOKENS)[0], **options) is Errno.EINVAL
        )
    options = {"attention_mask": mask[0]}
    assert errno_of(save, cubes, "/x", model, full, prompt(TOKENS), **options) is Errno.EINVAL


def test_whatever_goes_wrong_gives_the_lease_back(cubes: FakeClient) -> None:
    model = make_model("llama")
    stored(cubes, model)
    with pytest.raises(TypeError) as caught:  # kept by the test, frames and all
        libmem.hf.map_cache(cubes, "/kv/a", model, room_tokens="many")  # type: ignore[arg-type]
    assert (cubes.leases, str(caught.value) != "") == (0, True)


def test_misspelt_options_are_refused(cubes: FakeClient) -> None:
    model: Any = make_model("llama")
    full = stored(cubes, model)
    cache: Any = mapped(cubes, "/kv/a", model)
    calls: list[tuple[Any, ...]] = [
        (libmem.hf.map_cache, "/kv/a", model),
        (libmem.hf.save_cache, "/kv/b", model, full, prompt(TOKENS)),
        (libmem.hf.fork, "/kv/b", cache, prompt(TOKENS)),
    ]
    for function, *arguments in calls:
        with pytest.raises(TypeError, match="rowss"):
            function(cubes, *arguments, rowss=2)
    assert list(cubes.cubes) == ["/kv/a"]


def test_a_row_is_stored_under_its_own_ids(cubes: FakeClient) -> None:
    model, batch = make_model("llama"), prompt(30, rows=3)
    libmem.hf.save_cache(cubes, "/kv/a", model, full_cache(model, batch), batch, row=1)
    assert cubes.tokens_of("/kv/a") == batch[1].tolist()
    save = libmem.hf.save_cache
    cache = full_cache(model, batch)
    assert errno_of(save, cubes, "/kv/b", model, cache, batch[:1], row=1) is Errno.EINVAL
    assert errno_of(save, cubes, "/kv/b", model, cache, batch[None], row=1) is Errno.EINVAL
    assert errno_of(save, cubes, "/kv/b", model, cache, batch[1].float(), row=1) is Errno.EINVAL


def test_a_batch_over_one_prefix_agrees_on_it(cubes: FakeClient) -> None:
    model = make_model("llama")
    stored(cubes, model)
    batch = torch.cat([prompt(TOKENS).repeat(3, 1), prompt(9, rows=3)], 1)
    assert mapped(cubes, "/kv/a", model, rows=3, token_ids=batch).get_seq_length() == TOKENS
    batch[2, 40] += 1
    options = {"rows": 3, "token_ids": batch}
    assert errno_of(libmem.hf.map_cache, cubes, "/kv/a", model, **options) is Errno.EINVAL
    assert mapped(cubes, "/kv/a", model, tokens=40, **options).get_seq_length() == 40


def test_other_caches_are_refused_by_layer(cubes: FakeClient) -> None:
    model = make_model("llama")
    static = StaticCache(config=model.config, max_cache_len=64)
    logits(model, static, prompt(10))
    with pytest.raises(MemError, match="layer 0 is a StaticLayer") as caught:
        libmem.hf.save_cache(cubes, "/kv/a", model, static, prompt(10))
    assert caught.value.errno is Errno.EOPNOTSUPP
    config = copy.deepcopy(model.config)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(MemError, match="layer 1 is linear_attention"):
        windows_of(config)
    config = copy.deepcopy(model.config)
    config.is_causal = False
    assert errno_of(windows_of, config) is Errno.EOPNOTSUPP
    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert errno_of(windows_of, config) is Errno.EOPNOTSUPP


def test_on_another_device_it_is_a_copy(cubes: FakeClient) -> None:
    model = make_model("gemma")
    full = stored(cubes, model)
    copied = CopiedCache(mapped(cubes, "/kv/a", model, rows=2), torch.device("cpu"))
    full.batch_repeat_interleave(2)
    more = prompt(40, rows=2)
    assert torch.equal(logits(model, copied, more), logits(model, full, more))
    text = torch.cat([prompt(TOKENS), more[:1]], 1)
    libmem.hf.save_cache(cubes, "/kv/b", model, copied, text)
    libmem.hf.fork(cubes, "/kv/c", copied, text)
    header = kv_header(cubes.cubes["/kv/c"].attributes)
    assert (header.tokens, header.start, cubes.cubes["/kv/c"].parent) == (120, 64, "/kv/a")
    copied.crop(-70)
    libmem.hf.fork(cubes, "/kv/d", copied, text)
    assert cubes.cubes["/kv/d"].parent == ""
    copied.reset()
    assert copied.shared_tokens == 0


def test_a_cache_of_another_make_is_no_fork(cubes: FakeClient) -> None:
    model, cache = make_model("llama"), DynamicCache()
    logits(model, cache, prompt(9))
    with pytest.raises(MemError, match="DynamicCache") as caught:
        libmem.hf.fork(cubes, "/kv/a", cache, prompt(9))
    assert caught.value.errno is Errno.EINVAL


def test_a_model_over_several_devices_maps_nothing(cubes: FakeClient) -> None:
    model: Any = make_model("llama")
    stored(cubes, model)
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    assert errno_of(libmem.hf.map_cache, cubes, "/kv/a", model) is Errno.EOPNOTSUPP
    with libmem.hf.attach(model, cubes) as attached:
        model.generate(prompt(TOKENS), max_new_tokens=1)
    assert (attached.stats.passed_through, attached.stats.problems) == (1, 0)
    model.hf_device_map = {"": "cpu"}
    mapped(cubes, "/kv/a", model)
