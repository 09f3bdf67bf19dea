"""What a model is, as far as its keys and values depend on it: 64 hexadecimal digits.

Owns the digests of the models alive in this process. Invariant: two models with one fingerprint
compute the same keys and values of the same tokens. blake3 over every parameter and buffer as it
is in memory (so RoPE's frequencies too), with names, shapes and dtypes, over the configuration
without what cannot change a result, and over the state of adapters.

A digest is kept as long as the model's tensors are the same objects at the same addresses with
the same version counters (`libmem.hf.weights`): every in-place operation counts, an optimiser's
step included. A write through `.data` bypasses those counters, and adapters are merged so: samples
of every tensor are compared as well, which a merge cannot escape. A write of single elements
through `.data` can; after one, `refresh(model)` says so.
"""

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from blake3 import blake3
from torch import nn
from transformers import PreTrainedModel

from libmem.abi.errors import Errno, MemError
from libmem.hf.kinds import relevant
from libmem.hf.weights import Seen, modules_of, tensors_of

__all__ = ["Identified", "fingerprint", "identify", "refresh"]

_ADAPTER_STATE: Final = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")
"""Attributes of adapter layers (PEFT) that change what they compute."""


class Identified(NamedTuple):
    """A model, and its fingerprint a moment ago: who has one need not look again."""

    model: PreTrainedModel
    digest: str


class _Known(NamedTuple):
    digest: str
    described: bytes
    seen: Seen


_known: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()


def fingerprint(model: nn.Module) -> str:
    """The model's fingerprint; hashing takes about 0.2 s for a GiB, asking again 0.3 ms.

    Errors: EOPNOTSUPP (weights that are not in memory as plain tensors).
    """
    modules = modules_of(model)
    tensors = tensors_of(modules)
    described = _described(model, modules)
    known = _known.get(model)
    with _plain("these weights are not"):
        if known is not None and known.described == described and known.seen.are(tensors):
            return known.digest
        seen = Seen(tensors)
        digest = _digest(model, described)
        if seen.can_be_compared:
            _known[model] = _Known(digest, described, seen)
    return digest


def identify(model: PreTrainedModel) -> Identified:
    """The model with its fingerprint. Errors: EOPNOTSUPP."""
    return Identified(model, fingerprint(model))


def refresh(model: nn.Module) -> str:
    """The fingerprint after weights were written through `.data` or from outside of torch."""
    _known.pop(model, None)
    return fingerprint(model)


@contextmanager
def _plain(subject: str) -> Iterator[None]:
    """Sparse tensors and wrappers of others have no address, no storage, no bytes."""
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError) as error:
        text = f"{subject} plain tensors in memory: {error}"
        raise MemError(Errno.EOPNOTSUPP, text) from None


def _described(model: nn.Module, modules: list[nn.Module]) -> bytes:
    """What is not a tensor: class, configuration, adapters."""
    # Of the class: modules search slowly.
    kinds = {kind for kind in set(map(type, modules)) if hasattr(kind, "merged_adapters")}
    adapters = [
        [repr(getattr(module, name, None)) for name in _ADAPTER_STATE]
        for module in modules
        if type(module) in kinds
    ]
    config = getattr(model, "config", None)
    described = [type(model).__module__, type(model).__qualname__, relevant(config), adapters]
    return json.dumps(described, sort_keys=True, default=repr).encode()


def _digest(model: nn.Module, described: bytes) -> str:
    state = blake3(described, max_threads=blake3.AUTO)
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        state.update(f"\0{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        with _plain(f"{name} is not among"):
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            if plain.numel():  # numpy has no bfloat16; bytes it has
                state.update(plain.view(torch.uint8).numpy().data)
    return state.hexdigest()
