"""The fingerprint: the same for what computes the same, another for anything else."""

import importlib
from typing import Any, Final

import pytest
import torch
from torch import nn

from libmem.abi.errors import Errno, MemError
from libmem.hf import fingerprint, refresh
from tests.libmem.hf.models import make_model

WEIGHTS: Final = importlib.import_module("libmem.hf.weights")


def test_it_is_that_of_the_weights() -> None:
    one = fingerprint(make_model("llama"))
    assert len(one) == 64
    assert one == fingerprint(make_model("llama"))
    assert one == fingerprint(make_model("llama", attention="eager"))
    assert one != fingerprint(make_model("llama", seed=1))


def test_one_element_changes_it() -> None:
    model = make_model("gpt2")
    seen = [fingerprint(model)]
    last = list(model.parameters())[-1]
    with torch.no_grad():
        last.view(-1)[-1] += 1e-3
    seen.append(fingerprint(model))
    last.data.view(-1)[-1] += 1e-3  # leaves no trace ...
    assert fingerprint(model) == seen[-1]
    seen.append(refresh(model))  # ... so somebody says it
    last.data = last.data.clone() + 1
    seen.append(fingerprint(model))
    model.config.layer_norm_epsilon = 0.1
    seen.append(fingerprint(model))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "elsewhere"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_writes_without_a_trace_are_noticed_in_every_tensor(
    is_here: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_here:  # as weights on an accelerator are looked at
        monkeypatch.setattr(WEIGHTS, "_is_here", lambda tensor: False)
    model = make_model("llama").to(dtype)
    seen = {fingerprint(model)}
    tensors = list(model.parameters())
    for tensor in tensors:
        version = tensor._version
        tensor.data += 1  # as adapters are merged
        assert tensor._version == version
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(tensors)


def test_other_parameters_in_the_same_places_are_noticed() -> None:
    model = make_model("llama")
    seen = [fingerprint(model)]
    first, second = model.model.layers
    first.mlp, second.mlp = second.mlp, first.mlp
    seen.append(fingerprint(model))
    weight = first.self_attn.q_proj.weight
    rows, columns = weight.shape
    weight.data = weight.data.as_strided((rows, columns), (1, rows))  # the same memory
    seen.append(fingerprint(model))
    assert len(set(seen)) == len(seen)


def test_what_cannot_change_a_key_does_not_change_it() -> None:
    model = make_model("llama")
    before = fingerprint(model)
    model.config.use_cache = False
    model.config.eos_token_id = 5
    model.config._name_or_path = "elsewhere"
    assert fingerprint(model) == before


def test_positions_are_part_of_it() -> None:
    model = make_model("llama")
    before = fingerprint(model)
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and "original" not in name:
            buffer.mul_(1.01)
    assert fingerprint(model) != before


def test_another_dtype_is_another_model() -> None:
    model = make_model("llama")
    before = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) != before


def test_an_optimizer_step_changes_it() -> None:
    model = make_model("llama")
    before = fingerprint(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert fingerprint(model) != before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks
def test_adapters_are_part_of_it() -> None:
    peft: Any = pytest.importorskip("peft")
    base = make_model("llama")
    plain = fingerprint(base)
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    seen = [plain, fingerprint(model)]
    with model.disable_adapter():
        seen.append(fingerprint(model))
    assert fingerprint(model) == seen[1]
    model.merge_adapter()  # through `.data`, but it says so
    seen.append(fingerprint(model))
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    seen.append(fingerprint(merged))
    assert len(set(seen)) == len(seen)


def test_weights_made_in_inference_mode_are_read_every_time() -> None:
    with torch.inference_mode():
        model = make_model("llama")
        before = fingerprint(model)
        next(model.parameters()).add_(1)
    assert fingerprint(model) != before


def test_weights_elsewhere_are_refused() -> None:
    with pytest.raises(MemError) as caught:
        fingerprint(nn.Linear(2, 2, device="meta"))
    assert caught.value.errno is Errno.EOPNOTSUPP


class _Wrapper(torch.Tensor):
    """A tensor without a storage of its own, as quantisers make them."""

    @staticmethod
    def __new__(cls, size: int) -> "_Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, (size,))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func}")


@pytest.mark.parametrize("buffer", [torch.eye(3).to_sparse(), _Wrapper(4)], ids=["sparse", "else"])
def test_tensors_without_storage_are_refused(buffer: torch.Tensor) -> None:
    model = nn.Linear(2, 2)
    fingerprint(model)
    for _ in range(2):
        model.register_buffer("odd", buffer)
        with pytest.raises(MemError) as caught:
            fingerprint(model)
        assert caught.value.errno is Errno.EOPNOTSUPP
