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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from blake3 import blake3
from torch import nn
from transformers import PreTrainedModel

from libmem.abi.errors import Errno, MemError
from libmem.hf.kinds import relevant
from libmem.hf.weights import BASE_LAYER, Seen, modules_of, tensors_of

__all__ = ["Identified", "fingerprint", "fingerprint_of_base", "identify", "refresh"]

_ADAPTER_STATE: Final = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")
"""Attributes of adapter layers (PEFT) that change what they compute."""

_BASE: Final = f".{BASE_LAYER}."


class Identified(NamedTuple):
    """A model, and its fingerprint a moment ago: who has one need not look again."""

    model: PreTrainedModel
    digest: str


class _Known(NamedTuple):
    digest: str
    described: bytes
    seen: Seen


_known: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()
_known_bases: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()
"""Of models with adapters: without them."""


def fingerprint(model: nn.Module) -> str:
    """The model's fingerprint; hashing takes about 0.2 s for a GiB, asking again 0.3 ms.

    Errors: EOPNOTSUPP (weights that are not in memory as plain tensors).
    """
    modules = modules_of(model)
    described = _described(model, _adapters(modules))
    return _look(_known, model, described, (tensors_of(modules), _named))


def fingerprint_of_base(model: nn.Module) -> str:
    """The fingerprint of the model under its adapters: what `fingerprint` says without them.

    `model`: a model, one with adapters in it, or PEFT's wrapper of one.
    Errors: EOPNOTSUPP (an adapter is merged into the weights; as `fingerprint`).
    """
    get_base = getattr(model, "get_base_model", None)
    base: nn.Module = get_base() if get_base is not None else model
    modules = modules_of(base)
    if not _adapters(modules):
        return fingerprint(base)
    wrappers = _adapted(modules)
    if any(module.merged_adapters for module in modules if type(module) in wrappers):
        raise MemError(Errno.EOPNOTSUPP, "an adapter is merged into the model: unmerge it first")
    tensors = tensors_of(modules_of(base, wrappers=wrappers))
    return _look(_known_bases, base, _described(base, []), (tensors, _named_of_base))


def _look(
    known_models: "weakref.WeakKeyDictionary[nn.Module, _Known]",
    model: nn.Module,
    described: bytes,
    parts: tuple[list[torch.Tensor], Callable[[nn.Module], dict[str, torch.Tensor]]],
) -> str:
    """`parts`: the tensors that count, and what gives them with their names."""
    tensors, named = parts
    known = known_models.get(model)
    with _plain("these weights are not"):
        if known is not None and known.described == described and known.seen.are(tensors):
            return known.digest
        seen = Seen(tensors)
        digest = _digest(described, named(model))
        if seen.can_be_compared:
            known_models[model] = _Known(digest, described, seen)
    return digest


def identify(model: PreTrainedModel) -> Identified:
    """The model with its fingerprint. Errors: EOPNOTSUPP."""
    return Identified(model, fingerprint(model))


def refresh(model: nn.Module) -> str:
    """The fingerprint after weights were written through `.data` or from outside of torch."""
    _known.pop(model, None)
    _known_bases.pop(model, None)
    return fingerprint(model)


@contextmanager
def _plain(subject: str) -> Iterator[None]:
    """Sparse tensors and wrappers of others have no address, no storage, no bytes."""
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError) as error:
        text = f"{subject} plain tensors in memory: {error}"
        raise MemError(Errno.EOPNOTSUPP, text) from None


def _adapted(modules: list[nn.Module]) -> set[type[nn.Module]]:
    """The classes of layers with adapters among these. Of the class: modules search slowly."""
    return {kind for kind in set(map(type, modules)) if hasattr(kind, "merged_adapters")}


def _adapters(modules: list[nn.Module]) -> list[list[str]]:
    """The state of each layer with adapters."""
    kinds = _adapted(modules)
    return [
        [repr(getattr(module, name, None)) for name in _ADAPTER_STATE]
        for module in modules
        if type(module) in kinds
    ]


def _described(model: nn.Module, adapters: list[list[str]]) -> bytes:
    """What is not a tensor: class, configuration, adapters."""
    config = getattr(model, "config", None)
    described = [type(model).__module__, type(model).__qualname__, relevant(config), adapters]
    return json.dumps(described, sort_keys=True, default=repr).encode()


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _named_of_base(model: nn.Module) -> dict[str, torch.Tensor]:
    """As `_named`, of the model without its adapters."""
    wrappers = _adapted(modules_of(model))
    layers = [name for name, it in model.named_modules() if type(it) in wrappers]
    found = {}
    for name, tensor in _named(model).items():
        layer = next((each for each in layers if name.startswith(f"{each}.")), None)
        if layer is None:
            found[name] = tensor
        elif name.startswith(f"{layer}{_BASE}"):
            found[f"{layer}.{name.removeprefix(f'{layer}{_BASE}')}"] = tensor
    return found


def _digest(described: bytes, named: dict[str, torch.Tensor]) -> str:
    state = blake3(described, max_threads=blake3.AUTO)
    for name, tensor in named.items():
        state.update(f"\0{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        with _plain(f"{name} is not among"):
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            if plain.numel():  # numpy has no bfloat16; bytes it has
                state.update(plain.view(torch.uint8).numpy().data)
    return state.hexdigest()
