"""LoRA adapters as bytes, without a model framework: for tests of the format and the daemon."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from libmem.abi.lora import LoraHeader

__all__ = ["MODEL", "attributes_of", "config", "factors", "packed"]

MODEL = "ab" * 32
"""A fingerprint."""


def packed(tensors: Mapping[str, tuple[str, Sequence[int], bytes]], **changes: Any) -> bytes:
    """A safetensors payload; `changes` to entries of its header."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    header.update(changes)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(it[2] for it in tensors.values())


def factors(
    modules: Sequence[str] = ("model.layers.0.q_proj",), rank: int = 2, dim: int = 8
) -> dict[str, tuple[str, Sequence[int], bytes]]:
    """Of square layers, with numbers of no meaning."""
    tensors: dict[str, tuple[str, Sequence[int], bytes]] = {}
    for number, module in enumerate(modules):
        numbers = np.arange(rank * dim, dtype="<f4") + number
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = "F32", (rank, dim), numbers.tobytes()
        tensors[f"{name}.lora_B.weight"] = "F32", (dim, rank), (-numbers).tobytes()
    return tensors


def config(**changes: Any) -> str:
    """An `adapter_config.json`, as PEFT writes it."""
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    return json.dumps(fields | changes, indent=2)


def attributes_of(text: str | None = None, model: str = MODEL) -> dict[str, Any]:
    """The header of a parametric cube."""
    header = LoraHeader(model, config() if text is None else text)
    return {"lora": {"model": header.model, "config": header.config}}
