"""Training of an adapter, step by step, that can be interrupted and gone on with.

Owns the loss and the schedule. An adapter is taught (`teaching.py`), and held to what the base
model predicts on texts that the base made up itself: without that it forgets (perplexity of
unrelated text doubled in 60 steps; docs/design/0010-transitions.md). Each step depends on the seed
and its number alone, so a run that was interrupted goes on as if it had not been. Nothing here does
I/O.
"""

import math
from typing import Any, Final, NamedTuple

import peft
import torch

from memosd.drivers.parametric.match import Match, divergence
from memosd.drivers.parametric.teaching import Teaching

__all__ = ["Learner", "Schedule"]

_WARM_SHARE: Final = 0.1
_LEAST_SHARE: Final = 0.1
"""Of the learning rate, at the end."""
_NORM_MAX: Final = 1.0


class Schedule(NamedTuple):
    """How it is trained."""

    steps: int
    learning_rate: float
    rank: int
    keep: float
    """Weight of staying what the base model is."""
    kept_rows: int
    """Sequences of those in each step."""
    seed: int


class Learner:
    """One adapter in a model. `close` gives the model its own layers back."""

    def __init__(self, model: Any, teaching: Teaching, kept: Match, schedule: Schedule) -> None:
        """`kept`: what the base model predicts, and the adapted one is held to."""
        torch.manual_seed(schedule.seed)
        self._teaching = teaching
        self._kept = kept
        self._schedule = schedule
        self._device = model.device
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
        """One step; the loss on what is taught, in nats for a token."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate * self._share()
        self.adapted.train()
        taught = self._teaching(self.adapted, self.step)
        kept = self._kept.drawn(self._schedule.kept_rows, f"{self._schedule.seed} {self.step}")
        strayed = divergence(kept, self.adapted(input_ids=kept.ids, use_cache=False).logits)
        loss = taught + self._schedule.keep * strayed
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
