"""A model's tensors as they were when they were hashed, and whether they still are.

Owns the quick look that is taken before every prompt. Invariant: it says "unchanged" only where
every tensor is the same object at the same address, of the same shape, strides and dtype, with
the same version counter, and a few elements from all over each have the same bytes.

Used by `libmem.hf.fingerprint`.
"""

import ctypes
import operator
import weakref
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import torch
from torch import nn

__all__ = ["BASE_LAYER", "Seen", "modules_of", "tensors_of"]

BASE_LAYER: Final = "base_layer"
"""Where a layer of adapters (PEFT) keeps the module that it was put around."""
_SAMPLES: Final = 8
"""Elements of each tensor that are looked at: about a cache line each."""


class Seen:
    """The tensors of a model, as they are when this is made."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        """Errors: RuntimeError, NotImplementedError, TypeError (no plain tensors in memory)."""
        self._tensors = list(map(weakref.ref, tensors))
        self._layout = _layout(tensors)
        self.can_be_compared = not any(tensor.is_inference() for tensor in tensors)
        """False for tensors of inference mode: they have no version."""
        self._places = _Places(tensors)
        self._samples = self._places.look(tensors)

    def are(self, tensors: list[torch.Tensor]) -> bool:
        """`tensors` are these, unchanged. Errors: as above."""
        # Held: no other thread can take the memory away while it is looked at.
        storages = [tensor.untyped_storage() for tensor in tensors]
        return (
            len(storages) == len(self._tensors)
            and all(map(operator.is_, [tensor() for tensor in self._tensors], tensors))
            and _layout(tensors) == self._layout
            and self._places.look(tensors) == self._samples
        )


def modules_of(model: nn.Module, wrappers: Collection[type[nn.Module]] = ()) -> list[nn.Module]:
    """The model and all modules in it.

    `wrappers`: classes that were put around another module, which stands for them.
    """
    # `model.modules()` builds a name for each; this is asked before every prompt.
    found, seen = [model], {model}
    for module in found:
        for child in module._modules.values():
            inner = child._modules[BASE_LAYER] if type(child) in wrappers else child
            if inner is not None and inner not in seen:
                seen.add(inner)
                found.append(inner)
    return found


def tensors_of(modules: list[nn.Module]) -> list[torch.Tensor]:
    """Their parameters and buffers."""
    found: list[torch.Tensor | None] = []
    for module in modules:
        if module._parameters:
            found += module._parameters.values()
        if module._buffers:
            found += module._buffers.values()
    return [tensor for tensor in found if tensor is not None]


class _Places:
    """Where the samples of some tensors lie. Each look is good only while they are there."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._elsewhere: list[tuple[int, int, int]] = []
        """Of tensors outside of this process's memory: which, how many elements, how far apart."""
        places = [np.empty(0, np.int64)]
        for index, tensor in enumerate(tensors):
            size, item_bytes = tensor.numel(), tensor.element_size()
            if not size or not tensor.is_contiguous():
                continue
            # One less than an even step: not the same column of every row.
            count, step = min(size, _SAMPLES), max(1, size // _SAMPLES - 1)
            if _is_here(tensor):
                starts = tensor.data_ptr() + np.arange(count) * (step * item_bytes)
                places.append((starts[:, None] + np.arange(item_bytes)).ravel())
            else:
                self._elsewhere.append((index, count, step))
        addresses = np.concatenate(places)
        lowest, highest = (int(addresses.min()), int(addresses.max())) if addresses.size else (0, 0)
        # A view for each of hundreds of tensors takes 1.5 ms with every question; one array over
        # all that lies between them, of which nothing but the samples is ever touched, 0.01.
        everything = memoryview((ctypes.c_ubyte * (highest - lowest + 1)).from_address(lowest))
        self._memory, self._offsets = np.frombuffer(everything, np.uint8), addresses - lowest

    def look(self, tensors: list[torch.Tensor]) -> bytes:
        """The samples' bytes."""
        found: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        with torch.no_grad():
            for index, count, step in self._elsewhere:
                tensor = tensors[index]
                sample = tensor.as_strided((count,), (step,))
                found.setdefault((tensor.dtype, tensor.device), []).append(sample)
            joined = [torch.cat(each).cpu().view(torch.uint8) for each in found.values()]
        here = self._memory.take(self._offsets)
        return b"".join([here.tobytes(), *(each.numpy().tobytes() for each in joined)])


def _is_here(tensor: torch.Tensor) -> bool:
    """All of it is memory of this process, at its address."""
    if tensor.device.type != "cpu" or not tensor.data_ptr():
        return False
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    return end <= tensor.untyped_storage().nbytes()


def _layout(tensors: list[torch.Tensor]) -> list[tuple[Any, ...]]:
    return [
        (
            tensor.data_ptr(),
            None if tensor.is_inference() else tensor._version,
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        for tensor in tensors
    ]
