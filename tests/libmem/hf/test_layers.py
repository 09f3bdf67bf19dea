"""One mapped layer against transformers' own, operation by operation."""

import copy
import resource
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from libmem.abi.errors import Errno, MemError
from libmem.hf.layers import MappedLayer, Source
from tests.libmem.hf.fake_client import FakeClient
from tests.libmem.hf.stored import header_of, store, stored_prefix

HEADS, KEY_DIM, VALUE_DIM = 2, 24, 8

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.integers(1, 90)),
        st.tuples(st.just("crop"), st.integers(0, 120)),
        st.tuples(st.just("reorder"), st.integers(0, 1000)),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
        st.tuples(st.just("select"), st.integers(0, 1000)),
        st.tuples(st.just("copy"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=12,
)


def states(rows: int, tokens: int, seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn((rows, HEADS, tokens, dim), generator=generator).to(dtype)
        for dim in (KEY_DIM, VALUE_DIM)
    ]


def apply(layer: Any, operation: str, number: int, seed: int, dtype: torch.dtype) -> Any:
    """Do it; returns the layer to go on with."""
    rows = layer.keys.shape[0] if layer.is_initialized else 2
    generator = torch.Generator().manual_seed(number)
    if operation == "update":
        layer.update(*states(rows, number, seed, dtype))
    elif operation == "crop":
        layer.crop(-number)
    elif operation == "reorder":
        layer.reorder_cache(torch.randint(0, rows, (rows,), generator=generator))
    elif operation == "repeat" and rows <= 4:
        layer.batch_repeat_interleave(number)
    elif operation == "select":
        keep = max(1, number % (rows + 1))
        layer.batch_select_indices(torch.randperm(rows, generator=generator)[:keep])
    elif operation == "copy":
        return copy.deepcopy(layer)
    elif operation == "reset":
        layer.reset()
    return layer


def assert_same(mapped: MappedLayer, own: DynamicLayer) -> None:
    assert mapped.get_seq_length() == own.get_seq_length()
    assert mapped.get_mask_sizes(3) == own.get_mask_sizes(3)
    if own.get_seq_length():
        assert torch.equal(mapped.keys, own.keys)
        assert torch.equal(mapped.values, own.values)


@settings(max_examples=400, deadline=None)
@given(
    operations=OPERATIONS,
    tokens=st.integers(0, 150),
    cut=st.integers(1, 149),
    rows=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
)
def test_a_layer_does_what_a_dynamic_layer_does(
    operations: list[tuple[str, int]], tokens: int, cut: int, rows: int, dtype: str
) -> None:
    client, source = FakeClient(), None
    own: Any = DynamicLayer()
    kind = getattr(torch, dtype)
    if tokens:
        header = header_of(tokens, dtype, (HEADS, KEY_DIM, VALUE_DIM))
        stored = store(client, header, [cut] if cut < tokens else [])
        source = Source(stored_prefix(client), 0, tokens, rows)
        own.update(*(each.expand(rows, -1, -1, -1) for each in stored))
    mapped = MappedLayer(source, room_tokens=tokens + 30)
    for seed, (operation, number) in enumerate(operations):
        mapped = apply(mapped, operation, number, seed, kind)
        own = apply(own, operation, number, seed, kind)
        assert_same(mapped, own)
    client.close()


def test_a_copy_goes_its_own_way(cubes: FakeClient) -> None:
    store(cubes, header_of(100, shape=(HEADS, KEY_DIM, VALUE_DIM)))
    layer = MappedLayer(Source(stored_prefix(cubes), 0, 100, 1))
    layer.update(*states(1, 5, 1, torch.float32))
    twin = copy.deepcopy(layer)
    layer.update(*states(1, 5, 2, torch.float32))
    twin.update(*states(1, 7, 3, torch.float32))
    assert torch.equal(layer.keys[:, :, :105], twin.keys[:, :, :105])
    assert not torch.equal(layer.keys[:, :, 105:110], twin.keys[:, :, 105:110])


def test_views_of_before_stay_as_they_were() -> None:
    layer = MappedLayer(room_tokens=16)
    before, _ = layer.update(*states(1, 10, 1, torch.float32))
    kept = before.clone()
    layer.update(*states(1, 4000, 2, torch.float32))  # to a larger region
    assert torch.equal(before, kept)


def test_only_what_is_behind_the_prefix_moves(cubes: FakeClient) -> None:
    store(cubes, header_of(100, shape=(HEADS, KEY_DIM, VALUE_DIM)))
    layer = MappedLayer(Source(stored_prefix(cubes), 0, 100, 2))
    layer.update(*states(2, 5, 1, torch.float32))
    keys = layer.keys
    layer.reorder_cache(torch.LongTensor([1, 0]))
    assert layer.keys.data_ptr() == keys.data_ptr()
    assert layer.shared_tokens == 100
    layer.crop(-25)
    assert layer.shared_tokens == 80


def test_what_is_read_in_the_background_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = MappedLayer()
    layer.update(*states(2, 5, 1, torch.float32))
    work: Future[None] = Future()
    layer.readers.add(work)
    waited: list[Any] = []
    monkeypatch.setattr("libmem.hf.layers.wait", waited.append)
    layer.update(*states(2, 5, 2, torch.float32))  # behind what is read
    assert not waited
    layer.reorder_cache(torch.LongTensor([1, 0]))
    assert waited == [[work]]
    layer.readers.add(work)
    layer.crop(-1)
    assert len(waited) == 2


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_one_layer_in_and_out_of_inference_mode(context: Any) -> None:
    with context():
        layer = MappedLayer()
        layer.update(*states(2, 5, 1, torch.float32))
    layer.update(*states(2, 5, 2, torch.float32))
    layer.reorder_cache(torch.LongTensor([1, 1]))
    with context():
        layer.update(*states(2, 5000, 3, torch.float32))
        layer.reorder_cache(torch.LongTensor([1, 0]))
    assert layer.get_seq_length() == 5010


def test_what_it_cannot_do_is_refused() -> None:
    layer = MappedLayer()
    with pytest.raises(MemError) as caught:
        layer.update(*(each.requires_grad_() for each in states(1, 5, 1, torch.float32)))
    assert caught.value.errno is Errno.EOPNOTSUPP
    layer.update(*states(1, 5, 1, torch.float32))
    for wrong in (states(2, 5, 1, torch.float32), states(1, 5, 1, torch.float64)):
        with pytest.raises(MemError) as caught:
            layer.update(*wrong)
        assert caught.value.errno is Errno.EINVAL
    for refused in (layer.offload, layer.prefetch):
        with pytest.raises(MemError) as caught:
            refused()
        assert caught.value.errno is Errno.EOPNOTSUPP
    with pytest.raises(ValueError, match="positive"):
        layer.crop(3)


def test_short_prompts_without_a_prefix_pay_no_page_faults_again() -> None:
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    keys, values = states(1, 400, 0, torch.float32)
    layer_pages = (keys.nbytes + values.nbytes) // 4096
    MappedLayer(room_tokens=400).update(keys, values)
    before = faults()
    for _ in range(40):
        MappedLayer(room_tokens=400).update(keys, values)
    assert faults() - before < 40 * layer_pages / 4


def test_no_memory_in_the_heap_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", refused)
    layer = MappedLayer(room_tokens=10)
    with pytest.raises(MemError) as caught:
        layer.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))
    assert caught.value.errno is Errno.ENOMEM
