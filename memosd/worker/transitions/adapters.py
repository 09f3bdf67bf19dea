"""The recipe from texts to an adapter: `train`.

Owns the order of the work: read, train, judge, commit. Training that is cut off, by the worker's
death or the daemon's, goes on where it was kept last when the same is asked for again. Only what
passes the gate is committed.
"""

import math
import tempfile
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.learning import Gate, questions_of
from libmem.abi.lineage import DERIVATION_ATTRIBUTE
from libmem.abi.transitions import TrainRecipe
from libmem.abi.wire import encode
from libmem.hf.fingerprint import fingerprint_of_base
from libmem.peft import import_folder
from memosd.drivers.parametric.controls import CONTROLS
from memosd.drivers.parametric.learner import Learner, Schedule
from memosd.drivers.parametric.lessons import Lessons, Text, lessons_of
from memosd.drivers.parametric.match import match_of, sampled
from memosd.drivers.parametric.scores import exact_share, perplexity
from memosd.worker.transitions.models import Models
from memosd.worker.transitions.task import Task

__all__ = ["train"]

_STEPS_MIN: Final = 40
"""However little there is to learn: fewer do not carry the learning rate up and down."""
_KEPT: Final = (32, 64)
"""Sequences, and tokens of each, by which the model is held to what it is."""
_KEPT_ROWS: Final = 2
_LOST_MAX: Final = 0.1
"""Of the time that may go into keeping it."""


def train(task: Task, models: Models, recipe: TrainRecipe) -> Generator[None, None, int]:
    """The version that was made. Errors: EINVAL (nothing to learn, contradictions), EMODEL, EGATE,
    EOUTDATED."""
    model = models.model(recipe.dtype)
    digest = fingerprint_of_base(model)
    if recipe.model and recipe.model != digest:
        raise MemError(Errno.EMODEL, f"the daemon's model is {digest}, in {model.dtype}")
    lessons = lessons_of(_texts(task), models.tokenizer)
    about = encode((digest, _identities(task), recipe))
    kept = match_of(model, sampled(model, models.tokenizer, *_KEPT, seed=recipe.seed))
    yield
    plain = perplexity(model, models.tokenizer, CONTROLS)
    learner = Learner(model, lessons.items, kept, _schedule(recipe, lessons))
    try:
        yield from _learn(task, learner, about)
        quality = _judge(task, learner.adapted, models.tokenizer, lessons)
        strayed = perplexity(learner.adapted, models.tokenizer, CONTROLS)
        quality["perplexity_ratio"] = strayed / plain
        task.report(learner.step, learner.step, "judged", quality)
        _pass(recipe.gate, quality)
        version = _commit(task, learner.adapted, digest, quality)
    finally:
        learner.close()
    task.scratch.forget(about)
    return version


def _schedule(recipe: TrainRecipe, lessons: Lessons) -> Schedule:
    by_rounds = math.ceil(recipe.rounds * len(lessons.items) / recipe.batch)
    return Schedule(
        steps=recipe.steps or max(_STEPS_MIN, by_rounds),
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        rank=recipe.rank,
        keep=recipe.keep,
        kept_rows=_KEPT_ROWS,
        seed=recipe.seed,
    )


def _texts(task: Task) -> list[Text]:
    texts = task.texts()
    stats = [task.client.stat(name) for name in task.request.sources]
    return [
        Text(text, questions_of(stat.attributes)) for text, stat in zip(texts, stats, strict=True)
    ]


def _identities(task: Task) -> list[tuple[bytes, int]]:
    """What the sources are, whatever they are called."""
    stats = [task.client.stat(name) for name in task.request.sources]
    return [(stat.id, stat.version) for stat in stats]


def _learn(task: Task, learner: Learner, about: bytes) -> Generator[None, None, None]:
    scratch = task.scratch
    before = scratch.load(about)
    if before is not None:
        with suppress(ValueError):  # of an older memosd
            learner.restore(before)
    pause_s, kept_at = scratch.pause_s, time.monotonic()
    while not learner.is_done:
        loss = learner.advance()
        task.report(learner.step, learner.steps, "training", {"loss": loss})
        start = time.monotonic()
        if start - kept_at >= pause_s or learner.is_done:
            scratch.keep(about, learner.state())
            kept_at = time.monotonic()
            pause_s = max(scratch.pause_s, (kept_at - start) / _LOST_MAX)
        yield


def _judge(task: Task, adapted: Any, tokenizer: Any, lessons: Lessons) -> dict[str, float]:
    quality = {"trained_exact": exact_share(adapted, tokenizer, lessons.trained)}
    task.report(0, 0, "asking", quality)
    if lessons.held_out:
        quality["heldout_exact"] = exact_share(adapted, tokenizer, lessons.held_out)
    return quality


def _pass(gate: Gate, quality: dict[str, float]) -> None:
    """Errors: EGATE."""
    failures = []
    for name, least in (("trained_exact", gate.trained_min), ("heldout_exact", gate.heldout_min)):
        if not quality.get(name, 1.0) >= least:
            failures.append(f"{name} {quality[name]:.3f} < {least:g}")
    ratio = quality["perplexity_ratio"]
    if not ratio <= gate.perplexity_max:
        failures.append(f"perplexity_ratio {ratio:.3f} > {gate.perplexity_max:g}")
    if failures:
        raise MemError(Errno.EGATE, "the adapter is refused: " + ", ".join(failures))


def _commit(task: Task, adapted: Any, digest: str, quality: dict[str, float]) -> int:
    derivation = msgspec.to_builtins(task.derivation(quality))
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder, save_embedding_layers=False)
        reply = import_folder(
            task.client,
            task.request.name,
            folder,
            digest,
            parents=task.request.sources,
            attributes={DERIVATION_ATTRIBUTE: derivation},
        )
    return reply.version
