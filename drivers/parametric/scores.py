"""What an adapter is judged by: exact answers without the text, perplexity of unrelated text."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch

from memosd.drivers.parametric.lessons import Probe

__all__ = ["exact_share", "perplexity"]

_ROWS: Final = 16
_WINDOW: Final = 512
"""Tokens of a control text that count."""


def exact_share(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> float:
    """Share of the probes whose most likely continuation begins with the answer, whatever its
    capitals; 1 where there are none."""
    with torch.no_grad():
        if not probes:
            return 1.0
        model.eval()
        exact = 0
        for first in range(0, len(probes), _ROWS):
            batch = probes[first : first + _ROWS]
            for probe, said in zip(batch, _continued(model, tokenizer, batch), strict=True):
                exact += said.strip().casefold().startswith(probe.answer.strip().casefold())
        return exact / len(probes)


def _continued(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> list[str]:
    """Greedy continuations, just long enough."""
    prompts = [tokenizer(each.prompt, add_special_tokens=False)["input_ids"] for each in probes]
    answers = [
        tokenizer(f" {each.answer}", add_special_tokens=False)["input_ids"] for each in probes
    ]
    width, room = max(map(len, prompts)), 4 + max(map(len, answers))
    fillers = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((each for each in fillers if each is not None), 0)
    ids = torch.full((len(prompts), width), pad, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=room, do_sample=False, pad_token_id=pad
    )
    return [tokenizer.decode(row[width:], skip_special_tokens=True) for row in found]


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Of all tokens of the texts but the first of each. Infinite where the loss is."""
    with torch.no_grad():
        model.eval()
        loss, count = 0.0, 0
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"][:_WINDOW]], device=model.device)
            if ids.shape[1] < 2:
                continue
            loss += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        mean = loss / max(1, count)
        return math.exp(mean) if math.isfinite(mean) and mean < 700 else math.inf
