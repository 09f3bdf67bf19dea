"""What an adapter is taught in each step: answers to questions, or what another model predicts.

Owns the first half of a learner's loss. A teaching depends on the model, the number of the step and
its seed alone.
"""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy

from memosd.drivers.parametric.lessons import Item
from memosd.drivers.parametric.match import Match, divergence

__all__ = ["Teaching", "answers", "imitation"]

Teaching = Callable[[Any, int], torch.Tensor]
"""From the adapted model and the number of a step to a loss, in nats for a token."""
_IGNORED: Final = -100


def answers(items: list[Item], batch: int, pad: int, seed: int) -> Teaching:
    """Cross-entropy on the answers of the items, all in turn, in a new order with each round.

    `pad`: a token to fill rows up with; it is masked.
    """

    def teach(model: Any, step: int) -> torch.Tensor:
        first = step * batch
        places = range(first, first + batch)
        rows = [items[_round(len(items), at // len(items), seed)[at % len(items)]] for at in places]
        return _loss(model, rows, pad)

    return teach


@lru_cache(maxsize=2)  # the items of a step are of one round, or of two
def _round(count: int, turn: int, seed: int) -> list[int]:
    """The order of the items in one round."""
    order = list(range(count))
    random.Random(f"{seed} {turn}").shuffle(order)
    return order


def _loss(model: Any, items: list[Item], pad: int) -> torch.Tensor:
    width = max(len(item.prompt) + len(item.answer) for item in items)
    ids = torch.full((len(items), width), pad, device=model.device)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, _IGNORED)
    for row, item in enumerate(items):
        whole = torch.tensor([*item.prompt, *item.answer], device=model.device)
        first = max(1, len(item.prompt))
        ids[row, : len(whole)] = whole
        mask[row, : len(whole)] = 1
        labels[row, first : len(whole)] = whole[first:]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=_IGNORED
    )


def imitation(match: Match, batch: int, seed: int) -> Teaching:
    """The divergence from what a teacher predicts, on some of its sequences in each step."""

    def teach(model: Any, step: int) -> torch.Tensor:
        rows = match.drawn(batch, f"{seed} taught {step}")
        return divergence(rows, model(input_ids=rows.ids, use_cache=False).logits)

    return teach
