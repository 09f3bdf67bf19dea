"""What a model is, as far as its keys and values depend on it: 64 hexadecimal digits.

Owns the digests of the models alive in this process. Invariant: two models with one fingerprint
compute the same keys and values of the same tokens. blake3 over every parameter and buffer as it
is in memory (so RoPE's frequencies too), with names, shapes and dtypes, over the configuration
without what cannot change a result, and over the state of adapters.

A digest is kept as long as the model's tensors are the same objects at the same addresses with
the same version counters: every in-place operation counts, an optimiser's step included. A write
through `.data` bypasses those counters, and adapters are merged so: samples of every tensor are
compared as well, which a merge cannot escape. A write of single elements through `.data` can;
after one, `refresh(model)` says so.
"""

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from blake3 import blake3
from torch import nn
from transformers import PreTrainedConfig

from libmem.abi.errors import Errno, MemError

__all__ = ["fingerprint", "refresh"]

_IRRELEVANT: Final = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_model_name_or_path",
    "_output_attentions",
    "_post_init_done",
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Configuration that no key and no value depends on. What is not listed counts."""

_ADAPTER_STATE: Final = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")
"""Attributes of adapter layers (PEFT) that change what they compute."""


_SAMPLES: Final = 8
"""Elements of each tensor that are looked at with every question: about a cache line each."""


class _Held(NamedTuple):
    """One tensor as it was when it was hashed."""

    tensor: "weakref.ref[torch.Tensor]"
    address: int
    version: int


class _Known(NamedTuple):
    digest: str
    described: bytes
    held: list[_Held]
    samples: bytes


_known: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()


def fingerprint(model: nn.Module) -> str:
    """The model's fingerprint; hashing takes about 0.2 s for a GiB, asking again a millisecond.

    Errors: EOPNOTSUPP (weights that are not in memory as plain tensors).
    """
    modules = list(_modules(model))
    tensors = list(_tensors(modules))
    described = _described(model, modules)
    known = _known.get(model)
    with _plain("these weights are not"):
        if (
            known is not None
            and known.described == described
            and _are_as_before(tensors, known.held)
            and _samples(tensors) == known.samples
        ):
            return known.digest
        held = [_hold(tensor) for tensor in tensors]
        digest = _digest(model, described)
        if all(each.version >= 0 for each in held):
            _known[model] = _Known(digest, described, held, _samples(tensors))
    return digest


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


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    # `model.modules()` builds a name for each; this is asked before every prompt.
    left, seen = [model], {model}
    while left:
        module = left.pop()
        yield module
        children = [
            child for child in module._modules.values() if child is not None and child not in seen
        ]
        seen.update(children)
        left += children


def _tensors(modules: list[nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    yield tensor


def _hold(tensor: torch.Tensor) -> _Held:
    # Tensors of inference mode have no version: their model is hashed every time.
    version = -1 if tensor.is_inference() else tensor._version
    return _Held(weakref.ref(tensor), tensor.data_ptr(), version)


def _are_as_before(tensors: list[torch.Tensor], held: list[_Held]) -> bool:
    return len(tensors) == len(held) and all(
        before.address == tensor.data_ptr()
        and before.version == tensor._version
        and before.tensor() is tensor
        for tensor, before in zip(tensors, held, strict=True)
    )


def _samples(tensors: list[torch.Tensor]) -> bytes:
    """A few elements of every tensor, from all over it."""
    found: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    with torch.no_grad():
        for tensor in tensors:
            size = tensor.numel()
            if size and tensor.is_contiguous():
                count = min(size, _SAMPLES)
                # One less than an even step: not the same column of every row.
                step = max(1, size // _SAMPLES - 1)
                sample = tensor.as_strided((count,), (step,))
                found.setdefault((tensor.dtype, tensor.device), []).append(sample)
        joined = [torch.cat(each).cpu().view(torch.uint8) for each in found.values()]
    return b"".join(each.numpy().tobytes() for each in joined)


def _described(model: nn.Module, modules: list[nn.Module]) -> bytes:
    """What is not a tensor: class, configuration, adapters."""
    adapters = [
        [repr(getattr(module, name, None)) for name in _ADAPTER_STATE]
        for module in modules
        if hasattr(type(module), "merged_adapters")  # of the class: modules search slowly
    ]
    config = getattr(model, "config", None)
    described = [type(model).__module__, type(model).__qualname__, _relevant(config), adapters]
    return json.dumps(described, sort_keys=True, default=repr).encode()


def _relevant(value: Any) -> Any:
    # Not `to_dict`: it copies everything, with every question.
    if isinstance(value, PreTrainedConfig):
        value = {"model_type": value.model_type, **vars(value)}
    if isinstance(value, dict):
        return {str(k): _relevant(v) for k, v in value.items() if k not in _IRRELEVANT}
    return value


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
