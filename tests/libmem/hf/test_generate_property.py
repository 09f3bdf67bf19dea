"""`model.generate` over a stored prefix writes what it writes over a cache of its own.

Whatever the model, the lengths, the batch, the room and the mode: the tokens are those over a
`DynamicCache` of the same values, both hold the same afterwards, and the stored prefix is as it
was.
"""

from contextlib import closing
from functools import cache
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

import libmem.hf
from tests.libmem.hf.fake_client import FakeClient
from tests.libmem.hf.models import ARCHITECTURES, VOCABULARY, full_cache, make_model, prompt

STORED = 70
TEXT = prompt(STORED)


class Case(NamedTuple):
    """A call of `generate`, and what it starts from."""

    architecture: str
    prefix: int
    """Tokens that every row shares and the cache holds; 0: an empty cache."""
    cut: int
    """Where the stored prefix falls into two cubes; 0: it is one."""
    asked: int
    """Tokens of each row behind the prefix."""
    batch: int
    room: int
    seed: int
    mode: dict[str, Any]

    @property
    def rows(self) -> int:
        beams = self.mode["num_beams"]
        return self.batch * (beams if beams > 1 else self.mode["num_return_sequences"])


@st.composite
def modes(draw: st.DrawFn) -> dict[str, Any]:
    """Greedy, sampling, beams, beams that sample; any number of results of a prompt."""
    is_sampling, beams = draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 4]))
    results = draw(st.integers(1, beams if beams > 1 else 3 if is_sampling else 1))
    # Rows that end early, each elsewhere.
    ends = draw(st.sampled_from([None, list(range(0, VOCABULARY, 9))]))
    return {
        "do_sample": is_sampling,
        "num_beams": beams,
        "num_return_sequences": results,
        "max_new_tokens": draw(st.integers(1, 12)),
        "eos_token_id": ends,
        "pad_token_id": 0,
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """The shortest, simplest call is the simplest case."""
    return Case(
        architecture=draw(st.sampled_from(sorted(ARCHITECTURES))),
        prefix=draw(st.integers(0, STORED)),
        cut=draw(st.sampled_from([0, 64, 69])),
        asked=draw(st.integers(1, 30)),
        batch=draw(st.integers(1, 3)),
        room=draw(st.integers(1, STORED + 50)),
        seed=draw(st.integers(0, 1000)),
        mode=draw(modes()),
    )


@cache
def model_of(architecture: str) -> PreTrainedModel:
    return make_model(architecture)


def store(client: FakeClient, model: PreTrainedModel, full: DynamicCache, cut: int) -> None:
    """`/kv/text`, all of the text, of which the first `cut` tokens lie in a cube of their own."""
    base = None
    if cut:
        libmem.hf.save_cache(client, "/kv/base", model, full, TEXT, tokens=cut)
        base = libmem.hf.map_cache(client, "/kv/base", model)
        assert isinstance(base, libmem.hf.MappedCache)
    libmem.hf.save_cache(client, "/kv/text", model, full, TEXT, base=base)


def start(client: FakeClient, model: PreTrainedModel, case: Case) -> Cache:
    """Our cache, before the call."""
    if case.prefix == 0:
        return libmem.hf.new_cache(model, room_tokens=case.room)
    tokens, rows, room = case.prefix, case.rows, case.room
    return libmem.hf.map_cache(
        client, "/kv/text", model, tokens=tokens, token_ids=TEXT, rows=rows, room_tokens=room
    )


def own_start(full: DynamicCache, case: Case) -> DynamicCache:
    """A cache of transformers with the same values; `full` is used up."""
    if case.prefix == 0:
        return DynamicCache()
    if case.prefix < STORED:
        full.crop(case.prefix - STORED)
    full.batch_repeat_interleave(case.rows)
    return full


def generate(model: PreTrainedModel, over: Cache, case: Case) -> torch.Tensor:
    asked = prompt(case.asked, case.batch, case.seed)
    token_ids = torch.cat([TEXT[:, : case.prefix].expand(case.batch, -1), asked], 1)
    mask = torch.ones_like(token_ids)
    torch.manual_seed(case.seed)
    return model.generate(token_ids, attention_mask=mask, past_key_values=over, **case.mode)


def assert_same(ours: Cache, own: Cache) -> None:
    for mine, other in zip(ours.layers, own.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_the_same_text_over_a_stored_prefix(case: Case) -> None:
    model = model_of(case.architecture)
    full = full_cache(model, TEXT)
    with closing(FakeClient()) as client:
        store(client, model, full, case.cut)
        ours = start(client, model, case)
        own = own_start(full_cache(model, TEXT), case)
        assert torch.equal(generate(model, ours, case), generate(model, own, case))
        assert_same(ours, own)
        # Whoever maps it next sees what was stored.
        assert_same(libmem.hf.map_cache(client, "/kv/text", model), full)
