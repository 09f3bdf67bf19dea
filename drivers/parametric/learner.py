"""Training of an adapter, step by step, that can be interrupted and gone on with.

Owns the loss and the schedule. An adapter is taught by cross-entropy on the answers of its items,
and held to what the base model predicts on texts that the base made up itself: without that it
forgets (perplexity of unrelated text doubled in 60 steps; docs/design/0010-transitions.md). Each
step depends on the seed and its number alone, so a run that was interrupted goes on as if it had
not been. Nothing here does I/O.
"""

import math
import random
from typing import Any, Final, NamedTuple

import peft
import torch
from torch.nn.functional import cross_entropy

from memosd.drivers.parametric.lessons import Item
from memosd.drivers.parametric.match import Match, divergence

__all__ = ["Learner", "Schedule"]

_WARM_SHARE: Final = 0.1
_LEAST_SHARE: Final = 0.1
"""Of the learning rate, at the end."""
_NORM_MAX: Final = 1.0
_IGNORED: Final = -100


class Schedule(NamedTuple):
    """How it is trained."""

    steps: int
    batch: int
    learning_rate: float
    rank: int
    keep: float
    """Weight of staying what the base model is."""
    kept_rows: int
    """Sequences of those in each step."""
    seed: int


class Learner:
    """One adapter in a model. `close` gives the model its own layers back."""

    def __init__(self, model: Any, items: list[Item], kept: Match, schedule: Schedule) -> None:
        torch.manual_seed(schedule.seed)
        self._items = items
        self._kept = kept
        self._schedule = schedule
        self._device = model.device
        self._pad = model.config.get_text_config().eos_token_id or 0
        if isinstance(self._pad, list):
            self._pad = self._pad[0]
        config = peft.LoraConfig(
            r=schedule.rank,
            lora_alpha=2 * schedule.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.adapted = peft.get_peft_model(model, config)
        self._parameters = [each for each in self.adapted.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=0.0, weight_decay=0.0)
        self.step = 0

    @property
    def steps(self) -> int:
        """All that there are to do."""
        return self._schedule.steps

    @property
    def is_done(self) -> bool:
        return self.step >= self.steps

    def advance(self) -> float:
        """One step; the loss on the answers, in nats for a token."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate * self._share()
        self.adapted.train()
        taught = self._taught()
        loss = taught + self._schedule.keep * self._strayed()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, _NORM_MAX)
        self._optimizer.step()
        self.step += 1
        return float(taught.detach())

    def _share(self) -> float:
        """Of the learning rate: it rises, then falls along a cosine."""
        steps = self._schedule.steps
        rise = min(1.0, (self.step + 1) / max(1.0, _WARM_SHARE * steps))
        fall = 0.5 * (1 + math.cos(math.pi * self.step / steps))
        return rise * (_LEAST_SHARE + (1 - _LEAST_SHARE) * fall)

    def _taught(self) -> torch.Tensor:
        items = [self._items[place] for place in self._drawn()]
        width = max(len(item.prompt) + len(item.answer) for item in items)
        ids = torch.full((len(items), width), self._pad, device=self._device)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, _IGNORED)
        for row, item in enumerate(items):
            whole = torch.tensor([*item.prompt, *item.answer], device=self._device)
            first = max(1, len(item.prompt))
            ids[row, : len(whole)] = whole
            mask[row, : len(whole)] = 1
            labels[row, first : len(whole)] = whole[first:]
        logits = self.adapted(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=_IGNORED
        )

    def _drawn(self) -> list[int]:
        """The items of this step: all in turn, in an order that is new with each round."""
        first = self.step * self._schedule.batch
        return [
            self._order(place // len(self._items))[place % len(self._items)]
            for place in range(first, first + self._schedule.batch)
        ]

    def _order(self, turn: int) -> list[int]:
        order = list(range(len(self._items)))
        random.Random(f"{self._schedule.seed} {turn}").shuffle(order)
        return order

    def _strayed(self) -> torch.Tensor:
        chance = random.Random(f"{self._schedule.seed} kept {self.step}")
        count = min(self._schedule.kept_rows, len(self._kept.ids))
        rows = self._kept.rows(chance.sample(range(len(self._kept.ids)), count))
        return divergence(rows, self.adapted(input_ids=rows.ids, use_cache=False).logits)

    # -- to go on later ------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """All that a later `restore` needs, as tensors by name."""
        tensors = {"step": torch.tensor([self.step])}
        for place, parameter in enumerate(self._parameters):
            tensors[f"{place}.weight"] = parameter.detach()
            for name in ("exp_avg", "exp_avg_sq"):
                moments = self._optimizer.state.get(parameter, {})
                tensors[f"{place}.{name}"] = moments.get(name, torch.zeros_like(parameter))
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from a state. Errors: ValueError: of another training; then nothing changed."""
        own = {name: each.shape for name, each in self.state().items()}
        if own != {name: each.shape for name, each in tensors.items()}:
            raise ValueError("the state is of another training")
        step = int(tensors["step"])
        with torch.no_grad():
            for place, parameter in enumerate(self._parameters):
                parameter.copy_(tensors[f"{place}.weight"])
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"{place}.exp_avg"].to(self._device),
                    "exp_avg_sq": tensors[f"{place}.exp_avg_sq"].to(self._device),
                }
        self.step = step

    def close(self) -> None:
        """Give the model its own layers back. Idempotent."""
        if self.adapted is not None:
            self.adapted.unload()
            self.adapted = None
