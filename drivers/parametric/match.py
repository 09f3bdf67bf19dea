"""Token distributions that a model is to keep: the largest probabilities of each position.

Owns the divergence by which training is held to them. Kept are the `TOP` largest and the sum of the
rest, for a whole vocabulary of each position would be hundreds of megabytes; so the divergence is a
lower bound of the true one, and zero only where these agree.
"""

from typing import Any, Final, NamedTuple

import torch
from torch.nn.functional import log_softmax

__all__ = ["TOP", "Match", "divergence", "match_of", "sampled"]

TOP: Final = 256
_LEAST: Final = 1e-6
"""A rest that is smaller counts as this much: its logarithm would be noise."""
_ROWS: Final = 8


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


def _logs(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    logs = log_softmax(logits.float(), -1).gather(-1, places)
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(_LEAST).log()
    return torch.cat([logs, rest], -1)


def match_of(model: Any, ids: torch.Tensor) -> Match:
    """What the model predicts on these sequences, [rows, tokens]."""
    with torch.no_grad():
        found = []
        for first in range(0, len(ids), _ROWS):
            logits = model(input_ids=ids[first : first + _ROWS]).logits
            places = logits.topk(min(TOP, logits.shape[-1]), -1).indices
            found.append((places, _logs(logits, places)))
        return Match(ids, torch.cat([p for p, _ in found]), torch.cat([g for _, g in found]))


def divergence(match: Match, logits: torch.Tensor) -> torch.Tensor:
    """KL from what is to be kept to `logits` [rows, tokens, vocabulary], mean over positions."""
    logs = _logs(logits, match.places)
    return (match.logs.exp() * (match.logs - logs)).sum(-1).mean()


def sampled(model: Any, tokenizer: Any, rows: int, tokens: int, seed: int) -> torch.Tensor:
    """Texts that the model makes up by itself, [rows, tokens]: what it is like without any prompt.

    Each begins with the token that begins texts, or ends them, or is the first.
    """
    with torch.no_grad():
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        start = next((each for each in ends if each is not None), 0)
        generator = torch.Generator(model.device).manual_seed(seed)
        ids = torch.full((rows, 1), start, device=model.device)
        past = None
        while ids.shape[1] < tokens:
            step = model(input_ids=ids if past is None else ids[:, -1:], past_key_values=past,
                         use_cache=True, logits_to_keep=1)  # fmt: skip
            past = step.past_key_values
            chances = step.logits[:, -1].float().softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
        return ids
