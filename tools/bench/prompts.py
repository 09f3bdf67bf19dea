"""A real model and real prompts for the benchmarks of activation memory.

Loads SmolLM2-135M-Instruct in float32 from what `make models` left, and cuts prompts from the
language reference that every CPython carries. No network, whatever is installed.
"""

import os
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from memosd.tools.bench.corpus import reference
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

if TYPE_CHECKING:
    import torch

__all__ = ["QUESTION_TOKENS", "load_model", "load_tokenizer", "prompt_of", "question_of"]

QUESTION_TOKENS: Final = 12
_QUESTION: Final = " In one word: what does this text describe? Answer:"


@cache
def _loaded() -> tuple[Any, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = find_model(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), tokenizer


def load_model() -> Any:
    """The model, once a process. Errors: ENOENT (`make models` was not run)."""
    return _loaded()[0]


def load_tokenizer() -> Any:
    """That model's, once a process. Errors: as `load_model`."""
    return _loaded()[1]


def prompt_of(tokens: int) -> "torch.Tensor":
    """The first tokens of the reference. Shape: [1, tokens]."""
    import torch

    _, tokenizer = _loaded()
    text = reference()[: tokens * 8]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    return torch.tensor([ids])


def question_of() -> "torch.Tensor":
    """A question to put behind a prompt. Shape: [1, QUESTION_TOKENS]."""
    import torch

    _, tokenizer = _loaded()
    ids = tokenizer(_QUESTION * 2, add_special_tokens=False)["input_ids"]
    return torch.tensor([ids[:QUESTION_TOKENS]])
