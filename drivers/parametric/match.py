"""Token distributions that a model is to keep: the largest probabilities of each position.

Owns the divergence by which training is held to them. Kept are the `TOP` largest and the sum of the
rest, for a whole vocabulary of each position would be hundreds of megabytes; so the divergence is a
lower bound of the true one, and zero only where these agree.
"""

import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch.nn.functional import log_softmax

__all__ = ["TOP", "Match", "PastOf", "divergence", "match_of", "sampled", "start_of"]

TOP: Final = 256
_LEAST: Final = 1e-6
"""A rest that is smaller counts as this much: its logarithm would be noise."""
_ROWS: Final = 8
"""Computed at once: their logits are wide, ..."""
_SAMPLED_ROWS: Final = 32
"""... those of one token of each are not."""


PastOf = Callable[[int], Any]
"""A cache for so many rows, to be used once; None: nothing lies before."""


def _no_past(_rows: int) -> Any:
    return None


class Match(NamedTuple):
    """Sequences and what is to be predicted after each token."""

    ids: torch.Tensor
    """[rows, tokens]."""
    places: torch.Tensor
    """[rows, tokens, TOP]: token ids."""
    logs: torch.Tensor
    """[rows, tokens, TOP + 1]: logarithms of probabilities, the last one of all others together."""

    def rows(self, wanted: list[int]) -> "Match":
        return Match(self.ids[wanted], self.places[wanted], self.logs[wanted])

    def drawn(self, count: int, seed: str) -> "Match":
        """Some of the rows, by chance."""
        wanted = random.Random(seed).sample(range(len(self.ids)), min(count, len(self.ids)))
        return self.rows(wanted)


def _logs(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    logs = log_softmax(logits.float(), -1).gather(-1, places)
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(_LEAST).log()
    return torch.cat([logs, rest], -1)


def match_of(model: Any, ids: torch.Tensor, past_of: PastOf = _no_past) -> Match:
    """What the model predicts on these sequences, [rows, tokens], behind what `past_of` gives."""
    with torch.no_grad():
        found = []
        for first in range(0, len(ids), _ROWS):
            part = ids[first : first + _ROWS]
            logits = model(input_ids=part, past_key_values=past_of(len(part))).logits
            places = logits.topk(min(TOP, logits.shape[-1]), -1).indices
            found.append((places, _logs(logits, places)))
        return Match(ids, torch.cat([p for p, _ in found]), torch.cat([g for _, g in found]))


def divergence(match: Match, logits: torch.Tensor) -> torch.Tensor:
    """KL from what is to be kept to `logits` [rows, tokens, vocabulary], mean over positions."""
    logs = _logs(logits, match.places)
    return (match.logs.exp() * (match.logs - logs)).sum(-1).mean()


def start_of(tokenizer: Any) -> int:
    """The token that begins texts, or ends them, or is the first."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((each for each in ends if each is not None), 0)


def sampled(
    model: Any, first: list[int], shape: tuple[int, int], seed: int, past_of: PastOf = _no_past
) -> torch.Tensor:
    """Texts that the model makes up by itself, [rows, tokens], each beginning with `first`, behind
    what `past_of` gives."""
    rows, tokens = shape
    with torch.no_grad():
        generator = torch.Generator(model.device).manual_seed(seed)
        parts = []
        for start in range(0, rows, _SAMPLED_ROWS):
            count = min(_SAMPLED_ROWS, rows - start)
            ids = torch.tensor([first] * count, device=model.device)
            past, coming = past_of(count), ids
            while ids.shape[1] < tokens:
                step = model(
                    input_ids=coming, past_key_values=past, use_cache=True, logits_to_keep=1
                )
                past = step.past_key_values
                chances = step.logits[:, -1].float().softmax(-1)
                coming = torch.multinomial(chances, 1, generator=generator)
                ids = torch.cat([ids, coming], 1)
            parts.append(ids)
        return torch.cat(parts)
