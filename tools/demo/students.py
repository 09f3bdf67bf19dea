"""The demo's roles that answer out of a memory: a KV cache of a text, or an adapter that knows it.

As `thinkers`: each is one unrelated program that only shares the daemon.
"""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import libmem
from libmem import hf, peft
from libmem.abi.errors import MemError
from memosd.tools.demo.actors import say
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

__all__ = ["ROLES"]

_ANSWER_TOKENS: Final = 12


class _Student:
    """A model, and what it says next."""

    def __init__(self) -> None:
        disable_progress_bar()
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for an old name
        folder = find_model(SMOLLM2)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def ids(self, prompt: str) -> torch.Tensor:
        """Shape: [1, tokens]."""
        return torch.tensor([self.tokenizer(prompt)["input_ids"]])

    def says(self, prompt: str, cache: Any = None) -> str:
        """The most likely words behind a prompt."""
        ids = self.ids(prompt)
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            do_sample=False,
            max_new_tokens=_ANSWER_TOKENS,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        words = str(self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        return words.strip().split("\n")[0]


def over(text: str, cube: str, question: str) -> None:
    """Answer over a mapped cache of a text, and over the text itself."""
    student, prompt = _Student(), f"{text}\nQuestion: {question}\nAnswer:"
    with libmem.connect(name="demo student") as client:
        cache = hf.map_cache(client, cube, student.model, token_ids=student.ids(prompt))
        tokens = cache.get_seq_length()
        said = student.says(prompt, cache)
        del cache
    say(said=said, tokens=tokens, is_same=said == student.says(prompt))


def by_heart(cube: str, question: str) -> None:
    """Answer without any text: as the model is, and with an adapter in it."""
    student, prompt = _Student(), f"Question: {question}\nAnswer:"
    plain = student.says(prompt)
    with (
        libmem.connect(name="demo student") as client,
        peft.attach(client, student.model) as adapters,
    ):
        try:
            adapters.use(cube)
        except MemError as error:
            say(plain=plain, refusal=error.errno.name)
            return
        say(plain=plain, said=student.says(prompt))


ROLES: Final[dict[str, Callable[..., None]]] = {"over": over, "by_heart": by_heart}


if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
