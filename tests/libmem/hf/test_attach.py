"""`generate` with a memory: the same text, fewer tokens to prefill, and no trouble passed on."""

import gc
from typing import Any

import pytest
import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

import libmem.hf
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import kv_header
from libmem.hf import Attached, attach
from libmem.hf.cache import MappedCache
from libmem.hf.request import read_request
from libmem.hf.weights import Seen
from tests.libmem.hf.fake_client import FakeClient, held_memory
from tests.libmem.hf.models import ARCHITECTURES, GREEDY, TEXT, generate, longer, make_model

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_text_is_the_same_and_the_prefix_is_mapped(
    cubes: FakeClient, architecture: str
) -> None:
    model = make_model(architecture)
    calls: list[tuple[torch.Tensor, dict[str, Any]]] = [
        (TEXT, {}),
        (TEXT, {}),
        (longer(TEXT), {"num_beams": 3}),
        (longer(TEXT), {"do_sample": True, "num_return_sequences": 2}),
        (longer(TEXT.repeat(2, 1), seed=2), {"attention_mask": torch.ones(2, 130)}),
        (longer(longer(TEXT)), {"return_dict_in_generate": True, "output_scores": True}),
    ]
    expected = [generate(model, *call[:1], **call[1]) for call in calls]
    with attach(model, cubes, min_tokens=16) as each:
        for (token_ids, options), text in zip(calls, expected, strict=True):
            got = generate(model, token_ids, **options)
            assert each.flush(60)
            if isinstance(text, torch.Tensor):
                assert torch.equal(got, text)
            else:
                assert torch.equal(got.sequences, text.sequences)
                assert isinstance(got.past_key_values, MappedCache)
    stats = each.stats
    assert (stats.hits, stats.passed_through, stats.problems) == (5, 0, 0)
    assert stats.tokens_mapped + stats.tokens_prefilled == sum(c[0].shape[1] for c in calls)
    assert stats.tokens_mapped >= 99 + 100 * 4


def test_the_weights_are_looked_at_once_a_prompt(
    model: PreTrainedModel, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(model, TEXT)
    assert attached.flush(60)
    looks: list[Seen] = []
    look = Seen.are

    def counted(seen: Seen, tensors: list[torch.Tensor]) -> bool:
        looks.append(seen)
        return look(seen, tensors)

    monkeypatch.setattr(Seen, "are", counted)
    generate(model, TEXT)
    assert (attached.stats.hits, len(looks)) == (1, 1)
    generate(model, longer(TEXT))
    assert (attached.stats.hits, len(looks)) == (2, 3)  # and once when it is stored


def test_an_answer_is_the_next_prefix(
    model: PreTrainedModel, attached: Attached, cubes: FakeClient
) -> None:
    answer = generate(model, TEXT)
    assert attached.flush(60)
    (name,) = cubes.cubes
    assert cubes.tokens_of(name) == answer[0, :-1].tolist()
    generate(model, longer(answer))
    assert attached.flush(60)
    assert attached.stats.tokens_mapped == answer.shape[1] - 1
    child = next(cube for key, cube in cubes.cubes.items() if key != name)
    assert child.parent == name
    assert kv_header(child.attributes).start == 64  # the grain below 107


class Streamer(BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard += value.flatten().tolist()

    def end(self) -> None:
        self.heard.append(-1)


def test_streamers_and_criteria_are_the_callers(model: PreTrainedModel, attached: Attached) -> None:
    plain = generate(model, TEXT)
    assert attached.flush(60)
    streamer = Streamer()
    criteria = StoppingCriteriaList([MaxLengthCriteria(103)])
    text = generate(model, TEXT, streamer=streamer, stopping_criteria=criteria)
    assert torch.equal(text, plain[:, :103])
    assert streamer.heard == [*text[0].tolist(), -1]
    assert attached.stats.hits == 1
    assert len(criteria) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"attention_mask": torch.tensor([[0] + [1] * 99])},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"past_key_values": None, "position_ids": torch.arange(100)[None]},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"pad_token_id": int(TEXT[0, 5])},
        {"guidance_scale": 1.5},
        {"prefill_chunk_size": 10},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_special_passes_through(
    model: PreTrainedModel, attached: Attached, cubes: FakeClient, options: dict[str, Any]
) -> None:
    generate(model, TEXT, **options)
    assert (attached.stats.passed_through, len(cubes.cubes)) == (1, 0)


def test_models_that_compute_something_else_pass_through(
    model: PreTrainedModel, attached: Attached
) -> None:
    generate(model, None, inputs_embeds=model.get_input_embeddings()(TEXT))
    model.train()
    generate(model, TEXT)
    model.eval()
    hook = model.lm_head.register_forward_hook(lambda *each: None)
    generate(model, TEXT)
    hook.remove()
    for register in (register_module_forward_hook, register_module_forward_pre_hook):
        hook = register(lambda *each: None)
        generate(model, TEXT)
        hook.remove()
    model.lm_head.train()
    generate(model, TEXT)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        generate(model, TEXT)
    generate(model, TEXT, assistant_model=make_model("llama", seed=1))
    assert attached.stats.passed_through == 8
    generate(model, TEXT)
    assert attached.stats.passed_through == 8


def test_whether_a_model_is_plain_is_asked_without_naming_its_modules(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, named = list(model.modules()), []
    name_them = type(model).named_modules

    def counted(*args: Any, **options: Any) -> Any:
        for each in name_them(*args, **options):
            named.append(each)
            yield each

    monkeypatch.setattr(type(model), "named_modules", counted)
    assert read_request(model, (TEXT,), {}) is not None
    assert len(named) < len(modules) / 2  # its device takes a look at the first few
    modules[-1].training = True
    assert read_request(model, (TEXT,), {}) is None


def test_room_is_not_asked_for_what_may_never_come(
    model: PreTrainedModel, attached: Attached
) -> None:
    end = int(generate(model, TEXT)[0, 104])
    options = {"max_new_tokens": 10**12, "eos_token_id": end}
    for streamer in (Streamer(), Streamer()):
        assert attached.flush(60)
        generate(model, longer(TEXT, 1), streamer=streamer, **options)
        assert streamer.heard[-2:] == [end, -1]
    assert attached.stats.problems == 0


def test_no_trouble_fails_a_generation(
    model: PreTrainedModel, attached: Attached, cubes: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(model, TEXT)
    assert attached.flush(60)
    for errno in (Errno.EIO, Errno.EDQUOT, Errno.ENOMEM):
        with cubes.failing(errno):
            assert torch.equal(generate(model, TEXT), expected)
            assert attached.stats.last_error is not None
            assert attached.stats.last_error.errno is errno
    with monkeypatch.context() as patch:  # no room for a new token
        refuse = MemError(Errno.ENOMEM, "as the test wants it")
        patch.setattr("libmem.hf.layers.MappedLayer.update", raising(refuse))
        assert torch.equal(generate(model, TEXT), expected)
    with cubes.failing(Errno.ECONNREFUSED):
        generate(model, TEXT)
    problems, hits = attached.stats.problems, attached.stats.hits
    assert (problems, hits) == (5, 0)
    generate(model, TEXT)  # the daemon is back, and left alone for a while
    assert (attached.stats.problems, attached.stats.hits) == (problems, hits)
    attached._shelf._away_until = 0.0
    generate(model, TEXT)
    assert attached.stats.hits == 1


def raising(error: MemError) -> Any:
    def raise_it(*args: Any, **options: Any) -> None:
        raise error

    return raise_it


def test_generations_leave_nothing_behind(
    model: PreTrainedModel, attached: Attached, cubes: FakeClient
) -> None:
    generate(model, TEXT)
    assert attached.flush(60)
    gc.collect()  # what other tests left
    before = held_memory()
    for options in ({}, {"num_beams": 3}, {"max_new_tokens": 300}):
        generate(model, TEXT, **options)
        assert attached.flush(60)
    new_cubes = len(cubes.cubes) - 1
    after = held_memory()
    assert (after.vmas, cubes.leases) == (before.vmas, 0)
    assert after.descriptors == before.descriptors + new_cubes


def test_changed_weights_find_nothing_of_before(model: PreTrainedModel, attached: Attached) -> None:
    generate(model, TEXT)
    assert attached.flush(60)
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    generate(model, TEXT)
    assert attached.flush(60)
    assert (attached.stats.hits, attached.stats.stored) == (0, 2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_under_any_mode(model: PreTrainedModel, attached: Attached, context: Any) -> None:
    with context():
        first = generate(model, TEXT)
        assert attached.flush(60)
    assert torch.equal(generate(model, TEXT), first)
    with context():
        assert torch.equal(generate(model, TEXT), first)
    assert attached.stats.hits == 2


def test_the_token_that_ends_a_text_is_no_padding(
    model: PreTrainedModel, attached: Attached
) -> None:
    end = int(TEXT[0, 5])
    for ends in (end, [end, 3]):
        generate(model, TEXT, pad_token_id=end, eos_token_id=ends)
    assert attached.stats.passed_through == 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks
def test_adapters_have_memories_of_their_own(cubes: FakeClient) -> None:
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(make_model("llama"), config).eval()
    with attach(model, cubes) as each:

        def ask(**options: Any) -> int:
            text = model.generate(input_ids=TEXT, **GREEDY, **options)
            assert text.shape[1] > 100
            assert each.flush(60)
            return each.stats.hits

        assert [ask(), ask()] == [0, 1]
        with model.disable_adapter():
            assert [ask(), ask()] == [1, 2]
        model.merge_adapter()
        assert ask() == 2
        model.unmerge_adapter()
        ask(adapter_names=["default"])
    assert (each.stats.passed_through, each.stats.problems) == (1, 0)


def test_a_second_try_draws_the_same(
    model: Any, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached.detach()
    expected = generate(model, TEXT, do_sample=True)
    again = attach(model, attached._shelf.client)
    update, updates = libmem.hf.MappedLayer.update, 0

    def failing_late(*args: Any, **options: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == 7:
            raise MemError(Errno.ENOMEM, "as the test wants it")
        return update(*args, **options)

    monkeypatch.setattr(libmem.hf.MappedLayer, "update", failing_late)
    assert torch.equal(generate(model, TEXT, do_sample=True), expected)
    assert again.stats.problems == 1
    again.detach()
