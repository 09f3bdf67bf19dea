"""The jobs of class `transmute`: which recipe is whose.

Owns the way of a job from its request to what was committed. A job that fails, is cancelled or
loses its daemon has committed nothing: the commit is the last thing that a recipe does.
"""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

from libmem.abi.jobs import JobClass, TransmuteRequest, TransmuteResult
from libmem.abi.transitions import DistilRecipe, PrefillRecipe, ReciteRecipe, TrainRecipe
from libmem.abi.wire import args_decoder, encode
from memosd.worker.loop import Slices, Table
from memosd.worker.transitions.adapters import distil, train
from memosd.worker.transitions.caches import prefill, recite
from memosd.worker.transitions.models import Models
from memosd.worker.transitions.scratch import Scratch
from memosd.worker.transitions.task import Task

__all__ = ["Transmuting", "transition_table"]

How = Callable[[Task, Models, Any], Generator[None, None, int]]
"""From a task to the version that it made, stretch by stretch."""

_HOW: Final[dict[type, How]] = {
    PrefillRecipe: prefill,
    ReciteRecipe: recite,
    TrainRecipe: train,
    DistilRecipe: distil,
}
_request: Final = args_decoder(TransmuteRequest)


class Transmuting:
    """All recipes, with one model."""

    def __init__(self, models: Models, runtime_dir: Path, scratch: Scratch) -> None:
        self._models = models
        self._scratch = scratch
        self._runtime_dir = runtime_dir

    def run(self, body: bytes) -> Slices:
        """Stretch by stretch. Errors: those of the recipe; ECANCELED."""
        request = _request.decode(body)
        with Task(self._runtime_dir, request, self._scratch) as task:
            how = _HOW[type(request.recipe)]
            version = yield from how(task, self._models, request.recipe)
        return encode(TransmuteResult(version))


def transition_table(models: Models, runtime_dir: Path, scratch: Scratch) -> Table:
    """What the worker of transitions does, by class of jobs."""
    return {JobClass.TRANSMUTE: Transmuting(models, runtime_dir, scratch).run}
