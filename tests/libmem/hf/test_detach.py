"""The end of an attachment: detached, copied, forked, dropped."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, StoppingCriteriaList

from libmem.abi.errors import Errno, MemError
from libmem.hf import Attached, attach
from tests.libmem.hf.fake_client import FakeClient
from tests.libmem.hf.models import GREEDY, TEXT, generate, longer, make_model

pytestmark = pytest.mark.usefixtures("unmeasured")


def test_a_fork_of_the_process_goes_on(
    model: PreTrainedModel, attached: Attached, cubes: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(model, TEXT)
    assert attached.flush(60)
    worker = attached._worker
    monkeypatch.setattr("os.getpid", lambda: -1)  # forking itself would copy torch's threads
    generate(model, longer(TEXT))
    assert attached.flush(60)
    assert len(cubes.cubes) == 2
    assert attached._worker is not worker
    worker.shutdown()


def test_detached_is_as_before(model: Any, cubes: FakeClient) -> None:
    assert "generate" not in vars(model)
    each = attach(model, cubes)
    with pytest.raises(MemError) as caught:
        attach(model, cubes)
    assert caught.value.errno is Errno.EINVAL
    each.detach()
    each.detach()
    assert "generate" not in vars(model)
    generate(model, TEXT)
    assert each.stats.tokens_prefilled == 0


def test_it_goes_on_without_after_detach(model: Any, cubes: FakeClient) -> None:
    expected = generate(model, TEXT)
    each = attach(model, cubes)
    kept = model.generate
    each.detach()
    assert torch.equal(kept(TEXT, **GREEDY), expected)
    assert each.stats.tokens_prefilled == 0
    assert not cubes.cubes


def test_detached_while_it_generates(model: Any, cubes: FakeClient) -> None:
    each = attach(model, cubes, min_tokens=16)

    def detach(*arguments: Any, **options: Any) -> torch.Tensor:
        each.detach()
        return torch.zeros(1, dtype=torch.bool)

    generate(model, TEXT, stopping_criteria=StoppingCriteriaList([detach]))
    assert (each.stats.tokens_prefilled, each.stats.problems, len(cubes.cubes)) == (100, 0, 0)


def test_copies_of_the_model_have_no_memory(model: Any, attached: Attached) -> None:
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.generate.__self__ is twin
        assert torch.equal(generate(twin, TEXT), generate(model, TEXT))
        attached.flush(60)
    assert attached.stats.tokens_mapped + attached.stats.tokens_prefilled == 200


def test_the_model_is_not_kept(cubes: FakeClient) -> None:
    model: Any = make_model("llama")
    each, kept = attach(model, cubes), model.generate
    generate(model, TEXT)
    assert each.flush(60)
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()  # no cycle of ours holds it
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
    with pytest.raises(MemError) as caught:
        kept(TEXT)
    assert caught.value.errno is Errno.EINVAL
    each.detach()
