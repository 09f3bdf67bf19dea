"""PEFT's adapter folders into cubes and back, byte for byte.

Owns which files of a folder count: `adapter_config.json` and `adapter_model.safetensors`. Pickles
(`adapter_model.bin`) are never opened.

Public through `libmem.peft`.
"""

import os
from pathlib import Path
from typing import Final, Unpack

import msgspec
from torch import nn

from libmem.abi.calls import WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.lora import LORA_ATTRIBUTE, LoraHeader, lora_header
from libmem.abi.structs import CubeType
from libmem.client import Client
from libmem.hf.fingerprint import fingerprint_of_base
from libmem.options import CubeOptions

__all__ = ["export_folder", "import_folder"]

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"


def import_folder(
    client: Client,
    name: str,
    folder: str | os.PathLike[str],
    model: nn.Module | str,
    **options: Unpack[CubeOptions],
) -> WriteReply:
    """Store an adapter that PEFT saved, as a cube of type `parametric`.

    `model`: the model that it was trained on, or that model's fingerprint
    (`fingerprint_of_base`). The daemon checks the tensors against the configuration.
    Errors: EINVAL (no such files, or not a LoRA), EILSEQ (the weights are not what the
    configuration says, or not finite), and those of `create` and `seal`.
    """
    config = _read(Path(folder), _CONFIG)
    weights = _read(Path(folder), _WEIGHTS)
    digest = model if isinstance(model, str) else fingerprint_of_base(model)
    try:
        header = LoraHeader(digest, config.decode())
    except UnicodeDecodeError as error:
        raise MemError(Errno.EINVAL, f"{_CONFIG} is not text: {error}") from None
    named = {LORA_ATTRIBUTE: msgspec.to_builtins(header)}
    options["attributes"] = {**options.get("attributes", {}), **named}
    options["type"] = CubeType.PARAMETRIC
    return client.write(name, weights, **options)


def export_folder(client: Client, name: str, folder: str | os.PathLike[str]) -> None:
    """Write a cube as PEFT reads it; the folder is made. What was imported comes back bit for bit.

    Errors: EINVAL (not a LoRA), EIO (the folder cannot be written), and those of `map`.
    """
    with client.map(name) as memory:
        header = lora_header(memory.attributes)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / _CONFIG).write_bytes(header.config.encode())
            (Path(folder) / _WEIGHTS).write_bytes(memory)
        except OSError as error:
            raise MemError(Errno.EIO, f"cannot write {folder}: {error.strerror}") from None


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        text = f"{folder} is no adapter that can be read: {name}: {error.strerror}"
        raise MemError(Errno.EINVAL, text) from None
