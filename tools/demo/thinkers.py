"""The demo's roles that run a model: one reads a document, others answer questions over it.

As `actors`: each is one unrelated program that only shares the daemon, and prints what it did as
JSON lines. Apart from those because they load torch, which takes longer than the rest of the demo.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import libmem
from libmem import hf
from memosd.tools.demo.actors import say
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2
from memosd.tools.smaps import mapped_cubes

__all__ = ["ROLES"]

_DOCUMENT_CHARS: Final = 5500
_ANSWER_TOKENS: Final = 24
_NAMESPACE: Final = "/kv"
_FLUSH_S: Final = 20.0


class _Clock:
    """A streamer for `generate` that notes when the first new token comes."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self._puts = 0
        self._begin = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:  # the prompt comes first
            self.first_s = time.perf_counter() - self._begin

    def end(self) -> None:
        """Nothing is left to write."""


class _Mind:
    """A model with a document before its eyes."""

    def __init__(self, document: str) -> None:
        disable_progress_bar()
        # Three of these think at the same time: more threads would wait for each other's cores.
        torch.set_num_threads(1)
        folder = find_model(SMOLLM2)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._text = Path(document).read_text(encoding="utf-8")[:_DOCUMENT_CHARS]

    def prompt(self, question: str) -> torch.Tensor:
        """Shape: [1, tokens]. The document comes first, so that every question shares it."""
        messages = [
            {"role": "system", "content": f"Answer from this document:\n\n{self._text}"},
            {"role": "user", "content": question},
        ]
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return torch.tensor([ids])

    def answer(self, question: str) -> tuple[list[int], float]:
        """The new tokens, and the seconds to the first of them."""
        ids, clock = self.prompt(question), _Clock()
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_ANSWER_TOKENS,
            streamer=clock,
            pad_token_id=self._tokenizer.eos_token_id,
        )
        return made[0, ids.shape[1] :].tolist(), clock.first_s

    def words(self, tokens: list[int]) -> str:
        """What tokens say."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def read(document: str, question: str) -> None:
    """Compute the document once; what is computed is kept for whoever comes next."""
    mind = _Mind(document)
    with libmem.connect(name="demo read") as client:
        with hf.attach(mind.model, client, namespace=_NAMESPACE) as attached:
            _, first_s = mind.answer(question)
            attached.flush(_FLUSH_S)
            problem = attached.stats.last_error
        cubes = [
            {"name": stat.name, "size_bytes": stat.size_bytes}
            for stat in client.list(_NAMESPACE, is_recursive=True)
        ]
    tokens = mind.prompt(question).shape[1]
    say(first_s=first_s, tokens=tokens, cubes=cubes, problem=str(problem or ""))


def ask(document: str, question: str, cube: str, signals: str) -> None:
    """Answer from what another process computed, and hold it; then answer from nothing, to compare.

    Each part begins when a blob of its name is there in the folder `signals`, so that all askers
    begin it together, with everything loaded.
    """
    mind = _Mind(document)
    with libmem.connect(name="demo ask") as client:
        say(is_ready=True)
        _await(client, f"{signals}/answer")
        with hf.attach(mind.model, client, namespace=_NAMESPACE) as attached:
            tokens, first_s = mind.answer(question)
            mapped = attached.stats.tokens_mapped
        cache = hf.map_cache(client, cube, mind.model, tokens=mapped)
        with torch.inference_mode():
            mind.model(mind.prompt(question)[:, mapped:], past_key_values=cache)
        say(first_s=first_s, tokens_mapped=mapped, answer=mind.words(tokens))
        _await(client, f"{signals}/measure")
        say(**mapped_cubes()._asdict())
    full_tokens, full_s = mind.answer(question)
    say(full_s=full_s, is_same=tokens == full_tokens)


def _await(client: libmem.Client, name: str) -> None:
    """Return when a cube of that name is there."""
    for event in client.watch(name, since_seq=0):
        if event.name == name:
            return


ROLES: Final = {role.__name__: role for role in (read, ask)}


if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
