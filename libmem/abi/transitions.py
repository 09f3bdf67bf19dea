"""Transitions on the wire: memories that change type, and how far each one is.

A recipe says what is made of the sources and how; `transmute` takes one of them. A transition runs
in a worker with the rights of the user who asked, and ends in a cube whose `derivation` names the
recipe and whose parents are the sources, or in an error and no cube.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from libmem.abi.kv import KvDtype
from libmem.abi.learning import Gate
from libmem.abi.structs import Durability, Value

__all__ = [
    "DistilRecipe",
    "PrefillRecipe",
    "Recipe",
    "ReciteRecipe",
    "TrainRecipe",
    "TransitionStat",
    "TransitionState",
    "recipe_name",
    "settings_of",
]


class PrefillRecipe(Value, frozen=True, tag_field="recipe", tag="prefill"):
    """Text into a KV cache: the sources' texts, in their order, read by the daemon's model."""

    separator: str = "\n\n"
    """Between two texts."""
    is_chat: bool = False
    """As the system's message in the model's chat template; else as plain text."""
    dtype: KvDtype | None = None
    """Of the model that is to use it; the daemon's default where none is given."""
    model: str = ""
    """The fingerprint that the cache must have; EMODEL otherwise. Empty: the daemon's model's."""
    durability: Durability = Durability.CACHE


class ReciteRecipe(Value, frozen=True, tag_field="recipe", tag="recite"):
    """One KV cache into text: what its token ids say, special tokens included."""


class TrainRecipe(Value, frozen=True, tag_field="recipe", tag="train"):
    """Texts into a LoRA adapter of the daemon's model, which then answers the questions of the
    sources (`libmem.abi.learning`) without them; refused with its scores where it does not reach
    the gate (EGATE)."""

    gate: Gate = Gate()
    rounds: Annotated[float, Meta(gt=0, le=100)] = 4.0
    """How often each item is trained, on average; in at least 40 steps."""
    steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Of exactly so many steps instead; 0: as `rounds` says."""
    rank: Annotated[int, Meta(ge=1, le=1024)] = 16
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 1e-3
    batch: Annotated[int, Meta(ge=1, le=1024)] = 10
    """Items of a step."""
    keep: Annotated[float, Meta(ge=0, le=1000)] = 0.5
    """Weight of staying what the model is, against learning."""
    kept_texts: Annotated[int, Meta(ge=1, le=4096)] = 32
    """That the model makes up by itself, to be held to what it says there."""
    dtype: KvDtype | None = None
    """Of the model that is trained on; the daemon's default where none is given."""
    model: str = ""
    """The fingerprint of the base model that the adapter must be for (`fingerprint_of_base`);
    EMODEL otherwise. Empty: the daemon's."""
    seed: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] = 0


class DistilRecipe(Value, frozen=True, tag_field="recipe", tag="distil"):
    """One KV cache into a LoRA adapter: without the cache the adapted model predicts what the model
    does with it (context distillation); refused with its scores where it does not (EGATE)."""

    divergence_max: Annotated[float, Meta(ge=0)] = 0.5
    """Of the divergence between the model without the cache and with it the share that may be left,
    on texts that were not trained."""
    perplexity_max: Annotated[float, Meta(ge=0)] = 1.15
    """As in `Gate`."""
    steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 60
    rank: Annotated[int, Meta(ge=1, le=1024)] = 16
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 1e-3
    batch: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Texts of a step."""
    texts: Annotated[int, Meta(ge=4, le=4096)] = 64
    """That the model makes up behind the cache; a quarter is not trained, and judges."""
    keep: Annotated[float, Meta(ge=0, le=1000)] = 0.5
    """As in `TrainRecipe`."""
    kept_texts: Annotated[int, Meta(ge=1, le=4096)] = 32
    """As in `TrainRecipe`."""
    seed: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] = 0


Recipe = PrefillRecipe | ReciteRecipe | TrainRecipe | DistilRecipe


class TransitionState(StrEnum):
    """How far a transition is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """With `errno` and `message`; no cube was made."""
    CANCELED = "canceled"


_ENDS: Final = (TransitionState.DONE, TransitionState.FAILED, TransitionState.CANCELED)


class TransitionStat(Value, frozen=True):
    """One transition."""

    number: int
    """Until the daemon's next start."""
    recipe: str
    name: str
    """The cube that is to be made."""
    sources: tuple[str, ...]
    """With their versions; a listing has the first 8."""
    state: TransitionState
    uid: int
    submitted_ns: int
    began_ns: int = 0
    """0: not yet."""
    ended_ns: int = 0
    done: int = 0
    """Of `total`, in whatever the recipe counts."""
    total: int = 0
    note: str = ""
    """What it is at, for people."""
    quality: dict[str, float] = {}
    """What was measured, by name; of a refused result too."""
    version: int = 0
    """That it made."""
    errno: int = 0
    message: str = ""
    changes: int = 0
    """Grows with whatever changes here: for `wait_transition`."""

    @property
    def is_over(self) -> bool:
        """Nothing will change any more."""
        return self.state in _ENDS


def recipe_name(recipe: Recipe) -> str:
    """`prefill`, ...: as derivations have it."""
    name: str = type(recipe).__struct_config__.tag  # type: ignore[assignment]
    return name


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings, as derivations have them: those that are not the default's."""
    settings: dict[str, Any] = msgspec.to_builtins(recipe)
    default: dict[str, Any] = msgspec.to_builtins(type(recipe)())
    return {key: value for key, value in settings.items() if default.get(key) != value}
