"""Adapters from a daemon in a live model compute what PEFT's own loading does, bit for bit."""

from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import libmem
import libmem.peft
from libmem.abi.errors import Errno, MemError
from tests.e2e.daemon import Daemon, eventually, tier
from tests.libmem.hf.models import make_model
from tests.libmem.peft.conftest import Save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
IDS = torch.arange(12).view(1, 12) + 3


@pytest.fixture
def adapters(client: libmem.Client, model: Any) -> "Iterator[libmem.peft.Adapters]":
    with libmem.peft.attach(client, model, slots=2) as adapters:
        yield adapters


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, **options).logits
        return found


def expected(folder: Any, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    base = make_model("llama").to(dtype)
    return logits(peft.PeftModel.from_pretrained(base, folder, **options))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 32},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 4}},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=str,
)
def test_it_computes_as_loaded_by_peft(
    client: libmem.Client, model: Any, adapters: Any, save: Save, settings: dict[str, Any]
) -> None:
    folder = save(**settings)
    plain = logits(model)
    libmem.peft.import_folder(client, "/s/a", folder, model)
    adapters.use("/s/a")
    assert torch.equal(logits(model), expected(folder))
    assert not torch.equal(logits(model), plain)
    adapters.use(None)
    assert torch.equal(logits(model), plain)


def test_many_take_turns_in_few_slots(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    folders = {f"/s/{n}": save(n, r=2 if n < 3 else 3) for n in range(5)}
    wanted = {name: expected(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        libmem.peft.import_folder(client, name, folder, model)
    for number in (0, 1, 2, 0, 3, 4, 1, 1, 3, 0, 2, 4):
        adapters.use(f"/s/{number}")
        assert adapters.active == (f"/s/{number}",)
        assert torch.equal(logits(model), wanted[f"/s/{number}"])
        assert len(adapters.loaded) <= 2
        assert len(adapters.model.peft_config) <= 2
        assert client.stat(f"/s/{number}").maps == 1
    assert sum(stat.maps for stat in client.list("/s")) == 2


def test_rows_of_a_batch_have_their_own(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    plain = logits(model)
    folders = [save(0), save(1, r=4)]
    for number, folder in enumerate(folders):
        libmem.peft.import_folder(client, f"/s/{number}", folder, model)
    names = adapters.batch(["/s/0", None, "/s/1", "/s/0"])
    rows = logits_of_rows(adapters.model, names)
    for row, wanted in zip(
        rows, (expected(folders[0]), plain, expected(folders[1]), expected(folders[0])), strict=True
    ):
        torch.testing.assert_close(row, wanted[0])
    assert torch.equal(logits(model), plain), "what is active is for each batch to say"
    adapters.use("/s/0")
    rows = logits_of_rows(adapters.model, adapters.batch([None, "/s/1"]))
    torch.testing.assert_close(rows[0], plain[0])
    assert torch.equal(logits(model), expected(folders[0]))


def logits_of_rows(model: Any, names: list[str]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS.repeat(len(names), 1), adapter_names=names).logits
        return found


def test_several_add_up(client: libmem.Client, model: Any, adapters: Any, save: Save) -> None:
    folders = [save(0), save(1)]
    for number, folder in enumerate(folders):
        libmem.peft.import_folder(client, f"/s/{number}", folder, model)
    adapters.use(["/s/0", "/s/1"])
    reference = peft.PeftModel.from_pretrained(make_model("llama"), folders[0], "0")
    reference.load_adapter(folders[1], "1")
    reference.base_model.set_adapter(["0", "1"])
    assert torch.equal(logits(model), logits(reference))


def test_a_new_version_takes_the_old_ones_place(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    for seed in range(2):
        folder = save(seed)
        libmem.peft.import_folder(client, "/s/a", folder, model)
        adapters.use("/s/a")
        assert torch.equal(logits(model), expected(folder))
    assert adapters.loaded == ("/s/a",)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_is_computed_with_as_peft_does(
    client: libmem.Client, save: Save, dtype: torch.dtype, autocast: bool
) -> None:
    folder = save()
    model = make_model("llama").to(dtype)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: each.bfloat16() for name, each in weights.items()},
        folder / "adapter_model.safetensors",
    )
    libmem.peft.import_folder(client, "/s/a", folder, model)
    with libmem.peft.attach(client, model, autocast_adapter_dtype=autocast) as adapters:
        adapters.use("/s/a")
        wanted = expected(folder, dtype, autocast_adapter_dtype=autocast)
        assert torch.equal(logits(model), wanted)


def test_the_tensors_are_the_daemons_memory(
    client: libmem.Client, daemon: Daemon, model: Any, adapters: Any, save: Save
) -> None:
    libmem.peft.import_folder(client, "/s/a", save(), model)
    adapters.use("/s/a")
    layer = model.model.layers[0].self_attn.q_proj
    address = layer.lora_A[next(iter(layer.lora_A))].weight.data_ptr()
    with open("/proc/self/maps") as maps:
        ranges = [line.split() for line in maps if "/memfd:memosd" in line]
    spans = [[int(end, 16) for end in each[0].split("-")] for each in ranges]
    assert any(start <= address < end for start, end in spans)


# -- what does not fit -----------------------------------------------------------------------------


def test_an_adapter_for_another_model_is_refused(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    plain = logits(model)
    libmem.peft.import_folder(client, "/s/a", save(), make_model("llama", seed=1))
    with pytest.raises(MemError) as refused:
        adapters.use("/s/a")
    assert refused.value.errno is Errno.EMODEL
    assert torch.equal(logits(model), plain)


def test_what_fails_leaves_what_was_active(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    folder = save()
    libmem.peft.import_folder(client, "/s/a", folder, model)
    digest = libmem.peft.fingerprint_of_base(model)
    strange = save(1, architecture="gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    libmem.peft.import_folder(client, "/s/strange", strange, digest)
    larger = save(2, architecture="odd")
    libmem.peft.import_folder(client, "/s/larger", larger, digest)
    client.write("/s/text", "no adapter")
    adapters.use("/s/a")
    for name, errno in (
        ("/s/strange", Errno.EINVAL),
        ("/s/larger", Errno.EINVAL),
        ("/s/text", Errno.EOPNOTSUPP),
        ("/s/none", Errno.ENOENT),
    ):
        with pytest.raises(MemError) as refused:
            adapters.use(name)
        assert refused.value.errno is errno
        with pytest.raises(MemError):
            adapters.batch(["/s/a", name])
        assert adapters.active == ("/s/a",)
        assert torch.equal(logits(model), expected(folder))
    with pytest.raises(MemError) as refused:
        adapters.use(["/s/a", "/s/larger", "/s/text"])
    assert refused.value.errno is Errno.EINVAL
    assert len(adapters.model.peft_config) == 1


def test_what_is_outdated_is_used_only_where_that_is_asked_for(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    plain, folder = logits(model), save()
    client.write("/s/fact", "one")
    derived = {"derivation": {"recipe": "train"}}
    libmem.peft.import_folder(
        client, "/s/a", folder, model, parents=("/s/fact",), attributes=derived
    )
    adapters.use("/s/a")
    client.write("/s/fact", "two")
    adapters.use(None)
    for use in (adapters.use, lambda name: adapters.batch([name])):
        with pytest.raises(MemError) as refused:
            use("/s/a")
        assert refused.value.errno is Errno.EOUTDATED
    assert torch.equal(logits(model), plain)
    adapters.use("/s/a", allow_outdated=True)
    assert torch.equal(logits(model), expected(folder))


def test_a_first_one_that_fails_leaves_the_model_alone(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    plain, digest = logits(model), libmem.peft.fingerprint_of_base(model)
    libmem.peft.import_folder(client, "/s/larger", save(2, architecture="odd"), digest)
    with pytest.raises(MemError) as refused:
        adapters.use("/s/larger")
    assert refused.value.errno is Errno.EINVAL
    assert torch.equal(logits(model), plain)
    assert not any("lora" in name for name, _ in model.named_modules())
    folder = save()
    libmem.peft.import_folder(client, "/s/a", folder, model)
    adapters.use("/s/a")
    assert torch.equal(logits(model), expected(folder))


def test_no_slots_are_refused(client: libmem.Client, model: Any) -> None:
    with pytest.raises(MemError) as refused:
        libmem.peft.attach(client, model, slots=0)
    assert refused.value.errno is Errno.EINVAL
    with pytest.raises(MemError):
        _ = libmem.peft.attach(client, model).model


# -- the end ---------------------------------------------------------------------------------------


def test_detaching_leaves_the_model_as_it_was(
    client: libmem.Client, daemon: Daemon, model: Any, save: Save
) -> None:
    before = {name: type(each) for name, each in model.named_modules()}
    plain, digest = logits(model), libmem.peft.fingerprint_of_base(model)
    libmem.peft.import_folder(client, "/s/a", save(), model)
    with libmem.peft.attach(client, model) as adapters:
        adapters.prefetch(["/s/a"])
        adapters.use("/s/a")
        assert libmem.peft.fingerprint_of_base(model) == digest
    adapters.detach()
    with libmem.peft.attach(client, model) as again:
        again.use("/s/a")
    assert {name: type(each) for name, each in model.named_modules()} == before
    assert torch.equal(logits(model), plain)
    client.info()
    eventually(lambda: client.stat("/s/a").maps == 0, "the mapping is given back")
    assert tier(client.info(), "ram").pinned_bytes == 0


def test_what_was_mapped_outlives_the_cube(
    client: libmem.Client, model: Any, adapters: Any, save: Save
) -> None:
    folder = save()
    libmem.peft.import_folder(client, "/s/a", folder, model)
    adapters.use("/s/a")
    client.unlink("/s/a")
    assert torch.equal(logits(model), expected(folder))
    with pytest.raises(MemError) as refused:
        adapters.use("/s/a")
    assert refused.value.errno is Errno.ENOENT
