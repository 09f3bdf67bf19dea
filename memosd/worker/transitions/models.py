"""The daemon's language model, in the precision that a transition asks for.

Owns what is loaded: one precision at a time, for a model may be most of a machine's memory.
"""

import gc
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvDtype
from libmem.hf import fingerprint

__all__ = ["Models"]


class Models:
    """One model, loaded when it is asked for."""

    def __init__(self, source: str, dtype: str, threads: int) -> None:
        """`source`: a folder or a hub id. Errors: EINVAL (transformers cannot load it)."""
        torch.set_num_threads(threads)
        self._source = source
        self._default = dtype
        self._loaded: tuple[str, PreTrainedModel] | None = None
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise MemError(Errno.EINVAL, f"cannot load the tokenizer: {error}") from None
        self.model()  # the daemon is to hear at once why it cannot be loaded

    def model(self, dtype: KvDtype | None = None) -> PreTrainedModel:
        """In this precision, in the configured one where none is given. Errors: EINVAL, ENOMEM (as
        torch says it)."""
        wanted = str(dtype or self._default)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None
            gc.collect()  # before the next one: there may not be room for two
            self._loaded = wanted, self._load(wanted)
        return self._loaded[1]

    def _load(self, dtype: str) -> PreTrainedModel:
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self._source, dtype=dtype)
        except (OSError, ValueError) as error:
            raise MemError(Errno.EINVAL, f"cannot load the model: {error}") from None
        return model.eval()

    def of_fingerprint(self, digest: str, dtype: KvDtype | None) -> PreTrainedModel:
        """The model that has this fingerprint. Errors: EMODEL."""
        model = self.model(dtype)
        own = fingerprint(model)
        if own != digest:
            text = f"the daemon's model ({own[:12]}) is not the one ({digest[:12]})"
            raise MemError(Errno.EMODEL, text)
        return model
