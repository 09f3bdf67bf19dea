"""Adapters of others, and failures on the way: the model computes what it did before."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import libmem
import libmem.peft
from libmem.abi.errors import Errno, MemError
from tests.e2e.daemon import eventually
from tests.libmem.peft.conftest import Save
from tests.libmem.peft.test_adapters import expected, logits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def edit(folder: Path, **changes: Any) -> Path:
    """The adapter with another configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def put(client: libmem.Client, model: Any, *folders: Path) -> None:
    for number, folder in enumerate(folders):
        libmem.peft.import_folder(client, f"/s/{number}", folder, model)


HOSTILE: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "v_proj", "mlp"]},  # PEFT fails after it changed layers
    {"target_modules": "(q_proj"},
    {"layers_to_transform": "x"},
    {"rank_pattern": {"(": 2}},
    {"no_such_setting": {"a": 1}, "r": 2, "target_modules": []},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_what_peft_cannot_build_leaves_the_model(
    client: libmem.Client, model: Any, save: Save, changes: dict[str, Any]
) -> None:
    plain, modules = logits(model), [type(each) for each in model.modules()]
    put(client, model, edit(save(0), **changes), save(1))
    with libmem.peft.attach(client, model, slots=2) as adapters:
        for names, before in (("/s/0", plain), ("/s/1", None), ("/s/0", expected(save(1)))):
            if before is None:
                adapters.use(names)
                continue
            with pytest.raises(MemError) as refused:
                adapters.use(names)
            assert refused.value.errno is Errno.EINVAL
            assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), plain)
    assert [type(each) for each in model.modules()] == modules


@pytest.mark.parametrize("broken", [torch.OutOfMemoryError("out"), KeyboardInterrupt()], ids=str)
def test_a_failure_midway_mixes_nothing(
    client: libmem.Client,
    model: Any,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    broken: BaseException,
) -> None:
    put(client, model, save(0), save(1))
    wanted, calls = expected(save(0)), [0]
    real = libmem.peft.weights._over

    def fails(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise broken
        return real(*arguments)

    with libmem.peft.attach(client, model, slots=1) as adapters:
        adapters.use("/s/0")
        monkeypatch.setattr("libmem.peft.weights._over", fails)
        with pytest.raises(type(broken)):
            adapters.use("/s/1")
        assert adapters.active == ("/s/0",)
        assert torch.equal(logits(model), wanted)
        adapters.use("/s/1")
        assert torch.equal(logits(model), expected(save(1)))


def test_several_are_used_all_or_none(client: libmem.Client, model: Any, save: Save) -> None:
    put(client, model, *(save(seed) for seed in range(3)))
    with libmem.peft.attach(client, model, slots=2) as adapters:
        adapters.use(["/s/0", "/s/1"])
        before = logits(model)
        with pytest.raises(MemError) as refused:
            adapters.use(["/s/2", "/s/none"])
        assert refused.value.errno is Errno.ENOENT
        assert adapters.active == ("/s/0", "/s/1")
        assert torch.equal(logits(model), before)
        eventually(lambda: client.stat("/s/2").maps == 0, "what was not used is given back")
        adapters.use(["/s/2", "/s/0"])
        assert set(adapters.loaded) == {"/s/0", "/s/2"}


def test_parameters_that_somebody_keeps_stay_valid(
    client: libmem.Client, model: Any, save: Save
) -> None:
    put(client, model, save(0))
    with libmem.peft.attach(client, model, slots=2) as adapters:
        adapters.use("/s/0")
        kept = {name: each for name, each in adapters.model.named_parameters() if "lora_" in name}
        values = {name: each.clone() for name, each in kept.items()}
    assert client.stat("/s/0").maps == 1
    assert all(torch.equal(kept[name], values[name]) for name in kept)
    kept.clear()
    gc.collect()
    client.info()
    eventually(lambda: client.stat("/s/0").maps == 0, "the last that kept it gave it back")


def test_what_was_trainable_is_so_afterwards(client: libmem.Client, model: Any, save: Save) -> None:
    bad = edit(save(1), **HOSTILE[0])
    put(client, model, save(0), bad)
    model.model.embed_tokens.weight.requires_grad_(False)
    before = [each.requires_grad for each in model.parameters()]
    for name in ("/s/0", "/s/1"):
        with libmem.peft.attach(client, model, slots=2) as adapters:
            try:
                adapters.use(name)
            except MemError:
                assert name == "/s/1"
        assert [each.requires_grad for each in model.parameters()] == before


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"layer_replication": [[0, 1], [0, 1]]},
        {"trainable_token_indices": [1, 2]},
        {"use_qalora": True},
    ],
    ids=str,
)
def test_more_than_factors_is_refused_by_the_daemon(
    client: libmem.Client, model: Any, save: Save, changes: dict[str, Any]
) -> None:
    with pytest.raises(MemError) as refused:
        put(client, model, edit(save(0), **changes))
    assert refused.value.errno is Errno.EINVAL
    assert next(iter(changes)) in str(refused.value)


def test_a_start_that_leaves_the_base_alone_is_taken(
    client: libmem.Client, model: Any, save: Save
) -> None:
    put(client, model, edit(save(0), init_lora_weights="gaussian"))
    with libmem.peft.attach(client, model) as adapters:
        adapters.use("/s/0")
        assert torch.equal(logits(model), expected(save(0)))
