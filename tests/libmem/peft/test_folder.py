"""PEFT's folders into cubes and back."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import libmem
import libmem.peft
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Descriptive, Durability
from tests.libmem.hf.models import make_model
from tests.libmem.peft.conftest import Save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
FILES = ("adapter_config.json", "adapter_model.safetensors")


def test_a_folder_comes_back_bit_for_bit(
    client: libmem.Client, model: Any, save: Save, tmp_path: Path
) -> None:
    folder = save()
    described = Descriptive(title="SQL", tags=("skill",))
    libmem.peft.import_folder(client, "/s/a", folder, model, descriptive=described)
    stat = client.stat("/s/a")
    assert (stat.type, stat.durability) == (CubeType.PARAMETRIC, Durability.DURABLE)
    assert stat.descriptive == described
    libmem.peft.export_folder(client, "/s/a", tmp_path / "out" / "deep")
    for name in FILES:
        assert (tmp_path / "out" / "deep" / name).read_bytes() == (folder / name).read_bytes()
    peft.PeftModel.from_pretrained(make_model("llama"), tmp_path / "out" / "deep")


def test_a_fingerprint_stands_for_the_model(client: libmem.Client, model: Any, save: Save) -> None:
    digest = libmem.peft.fingerprint_of_base(model)
    libmem.peft.import_folder(client, "/s/a", save(), digest, attributes={"mine": 1})
    assert client.stat("/s/a").attributes["lora"]["model"] == digest
    assert client.stat("/s/a").attributes["mine"] == 1


def test_folders_that_are_none_are_refused(
    client: libmem.Client, model: Any, save: Save, tmp_path: Path
) -> None:
    folder = save()
    whole = save(1, modules_to_save=["lm_head"])
    for number, (file, content, errno) in enumerate(
        [
            (FILES[0], None, Errno.EINVAL),
            (FILES[1], None, Errno.EINVAL),
            (FILES[0], b"\xff", Errno.EINVAL),
            (FILES[0], b"{}", Errno.EINVAL),
            (FILES[1], b"\x80\x04.", Errno.EILSEQ),
        ]
    ):
        copy = tmp_path / f"spoilt{number}"
        shutil.copytree(folder, copy)
        (copy / file).unlink()
        if content is not None:
            (copy / file).write_bytes(content)
        with pytest.raises(MemError) as refused:
            libmem.peft.import_folder(client, "/s/a", copy, model)
        assert refused.value.errno is errno
    with pytest.raises(MemError) as refused:
        libmem.peft.import_folder(client, "/s/a", whole, model)
    assert refused.value.errno is Errno.EINVAL
    assert list(client.list("/s")) == []


def test_only_adapters_are_exported(client: libmem.Client, tmp_path: Path, save: Save) -> None:
    client.write("/s/text", "no adapter")
    with pytest.raises(MemError) as refused:
        libmem.peft.export_folder(client, "/s/text", tmp_path / "out")
    assert refused.value.errno is Errno.EINVAL
    libmem.peft.import_folder(client, "/s/a", save(), "ab" * 32)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MemError) as refused:
        libmem.peft.export_folder(client, "/s/a", tmp_path / "file")
    assert refused.value.errno is Errno.EIO


def test_the_base_has_one_fingerprint_however_it_is_wrapped(model: Any, save: Save) -> None:
    digest = libmem.peft.fingerprint_of_base(model)
    adapted = peft.PeftModel.from_pretrained(make_model("llama"), save())
    assert libmem.peft.fingerprint_of_base(adapted) == digest
    assert libmem.peft.fingerprint_of_base(adapted.get_base_model()) == digest
    with torch.no_grad():
        adapted.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight[0, 0] += 1
    assert libmem.peft.fingerprint_of_base(adapted) != digest
    adapted.merge_adapter()
    with pytest.raises(MemError) as refused:
        libmem.peft.fingerprint_of_base(adapted)
    assert refused.value.errno is Errno.EOPNOTSUPP
