"""An adapter's tensors over mapped memory, and where they go in a model.

Owns the way of a factor from the payload into a layer of PEFT. Invariant: nothing is copied where
the model is in the CPU's memory, and a layer gets factors of exactly its shape, or none does.

Used by `libmem.peft.adapters`.
"""

from typing import Final, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from libmem.abi.errors import Errno, MemError
from libmem.abi.lora import Factors, config_of, factors_of, lora_header
from libmem.abi.tensors import Tensor, tensors_of
from libmem.hf.weights import modules_of
from libmem.mapping import Mapping

__all__ = ["Adapter", "Parameter", "Place", "layers_of", "parameters_of", "places_of", "put"]

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class Adapter(NamedTuple):
    """What a mapped cube holds."""

    config: str
    factors: dict[str, Factors]
    """By the module of the base model that they are for."""

    @classmethod
    def of(cls, memory: Mapping) -> "Adapter":
        """Errors: EINVAL, EILSEQ (not what this version of the format knows)."""
        header = lora_header(memory.attributes)
        with memoryview(memory) as payload:
            tensors = tensors_of(payload)
        return cls(header.config, factors_of(config_of(header.config), tensors))


class Place(NamedTuple):
    """Where the factors of one module go: modules of PEFT whose parameter is replaced."""

    a: nn.Module
    b: nn.Module
    a_name: str
    b_name: str
    magnitude: nn.Module | None
    base: torch.Tensor
    """A weight of what it is added to: for its device and dtype."""


def layers_of(model: nn.Module) -> list[BaseTunerLayer]:
    """The layers of PEFT's in a model."""
    return [module for module in modules_of(model) if isinstance(module, BaseTunerLayer)]


def places_of(model: nn.Module, slot: str) -> dict[str, Place]:
    """The layers that have an adapter of this name, by their module in the base model."""
    found = {}
    for name, layer in model.named_modules():
        if slot in getattr(layer, "lora_A", ()):
            found[name] = _linear(layer, slot)
        elif slot in getattr(layer, "lora_embedding_A", ()):
            found[name] = _embedding(layer, slot)
    return found


def _linear(layer: nn.Module, slot: str) -> Place:
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    magnitude = magnitudes[slot] if slot in magnitudes else None  # noqa: SIM401 - a ModuleDict has no get
    a, b = layer.lora_A[slot], layer.lora_B[slot]
    return Place(a, b, "weight", "weight", magnitude, _base(layer))


def _embedding(layer: nn.Module, slot: str) -> Place:
    return Place(layer.lora_embedding_A, layer.lora_embedding_B, slot, slot, None, _base(layer))


def _base(layer: nn.Module) -> torch.Tensor:
    base: torch.Tensor = next(layer.get_base_layer().parameters())
    return base


class Parameter(NamedTuple):
    """What a layer is to compute with, and where."""

    module: nn.Module
    name: str
    value: nn.Parameter


def parameters_of(
    adapter: Adapter, memory: Mapping, places: dict[str, Place], *, autocast: bool
) -> list[Parameter]:
    """This adapter over its mapped memory, for these layers; nothing is changed in them yet.

    `autocast`: what is narrower than float32 in float32; else in the type of the layer.

    Errors: EINVAL: it is for other layers, or for layers of other shapes.
    """
    if adapter.factors.keys() != places.keys():
        stray = min(adapter.factors.keys() ^ places.keys())
        raise MemError(Errno.EINVAL, f"the adapter and the model differ in {stray!r}")
    for name, factors in adapter.factors.items():
        _check(name, factors, places[name])
    return [
        Parameter(module, parameter, _over(memory, tensor, places[name].base, autocast))
        for name, factors in adapter.factors.items()
        for module, parameter, tensor in _pairs(places[name], factors)
    ]


def put(parameters: list[Parameter]) -> None:
    """Have the layers compute with these."""
    for module, name, value in parameters:
        module._parameters[name] = value


def _pairs(place: Place, factors: Factors) -> list[tuple[nn.Module, str, Tensor]]:
    pairs = [(place.a, place.a_name, factors.a), (place.b, place.b_name, factors.b)]
    if factors.bias is not None:
        pairs.append((place.b, "bias", factors.bias))
    if factors.magnitude is not None and place.magnitude is not None:
        pairs.append((place.magnitude, "weight", factors.magnitude))
    return pairs


def _check(name: str, factors: Factors, place: Place) -> None:
    for module, parameter, tensor in _pairs(place, factors):
        there = module._parameters.get(parameter)
        if there is None or there.shape != tensor.shape:
            wanted = "none" if there is None else tuple(there.shape)
            text = f"{name!r} takes factors of another shape: {wanted}, not {tensor.shape}"
            raise MemError(Errno.EINVAL, text)
    if (factors.magnitude is None) is not (place.magnitude is None):
        raise MemError(Errno.EINVAL, f"{name!r} has a magnitude, or none, against the model's")


def _over(memory: Mapping, tensor: Tensor, base: torch.Tensor, autocast: bool) -> nn.Parameter:
    dtype = _DTYPES[tensor.dtype]
    wanted = torch.promote_types(dtype, torch.float32) if autocast else base.dtype
    # By way of numpy, which keeps the memory mapped for as long as the tensor lives: torch's own
    # way from a buffer lets it be unmapped under it.
    plain = torch.from_numpy(memory.numpy("uint8", (tensor.size_bytes,), tensor.offset_bytes))
    numbers = plain.view(dtype).view(tensor.shape)
    return nn.Parameter(numbers.to(base.device, wanted), requires_grad=False)
