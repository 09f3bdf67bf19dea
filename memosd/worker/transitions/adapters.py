"""The recipes that make adapters: `train` of texts, `distil` of a KV cache.

Owns the order of the work: read, train, judge, commit. Training that is cut off, by the worker's
death or the daemon's, goes on where it was kept last when the same is asked for again. Only what
passes the gate is committed.
"""

import math
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
import torch

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import kv_header
from libmem.abi.learning import questions_of
from libmem.abi.lineage import DERIVATION_ATTRIBUTE
from libmem.abi.structs import CubeType
from libmem.abi.transitions import DistilRecipe, TrainRecipe
from libmem.abi.wire import encode
from libmem.hf import map_cache
from libmem.hf.fingerprint import fingerprint_of_base
from libmem.peft import import_folder
from memosd.drivers.parametric.controls import CONTROLS
from memosd.drivers.parametric.learner import Learner, Schedule
from memosd.drivers.parametric.lessons import Text, lessons_of
from memosd.drivers.parametric.match import Match, divergence, match_of, sampled, start_of
from memosd.drivers.parametric.scores import exact_share, perplexity
from memosd.drivers.parametric.teaching import Teaching, answers, imitation
from memosd.worker.transitions.models import Models
from memosd.worker.transitions.task import Task

__all__ = ["distil", "train"]

_STEPS_MIN: Final = 40
"""However little there is to learn: fewer do not carry the learning rate up and down."""
_TOKENS: Final = 64
"""Of a text that a model makes up."""
_KEPT_ROWS: Final = 2
_CUE: Final = "Question:"
"""What the model goes on from, behind a cache that is distilled: questions that it asks itself."""
_LOST_MAX: Final = 0.1
"""Of the time that may go into keeping it."""


def train(task: Task, models: Models, recipe: TrainRecipe) -> Generator[None, None, int]:
    """The version that was made. Errors: EINVAL (nothing to learn, contradictions), EMODEL, EGATE,
    EOUTDATED."""
    model = models.model(recipe.dtype)
    digest = fingerprint_of_base(model)
    if recipe.model and recipe.model != digest:
        raise MemError(Errno.EMODEL, f"the daemon's model is {digest}, in {model.dtype}")
    tokenizer = models.tokenizer
    lessons = lessons_of(_texts(task), tokenizer)
    by_rounds = math.ceil(recipe.rounds * len(lessons.items) / recipe.batch)
    steps = recipe.steps or max(_STEPS_MIN, by_rounds)
    teaching = answers(lessons.items, recipe.batch, start_of(tokenizer), recipe.seed)
    yield

    def judge(adapted: Any) -> dict[str, float]:
        quality = {"trained_exact": exact_share(adapted, tokenizer, lessons.trained)}
        if lessons.held_out:
            quality["heldout_exact"] = exact_share(adapted, tokenizer, lessons.held_out)
        return quality

    gate = recipe.gate
    bounds = [
        _Bound("trained_exact", least=gate.trained_min),
        _Bound("heldout_exact", least=gate.heldout_min),
        _Bound("perplexity_ratio", most=gate.perplexity_max),
    ]
    return (yield from _made(task, models, model, _Plan(teaching, judge, bounds, steps)))


def distil(task: Task, models: Models, recipe: DistilRecipe) -> Generator[None, None, int]:
    """The version that was made. Errors: EMODEL (of another model), EGATE, EOUTDATED."""
    source = task.only_source(CubeType.ACTIVATION)
    header = kv_header(task.client.stat(source).attributes)
    model = models.of_fingerprint(header.model, header.dtype)

    def behind(rows: int) -> Any:
        return map_cache(task.client, source, model, rows=rows)

    cue = models.tokenizer(_CUE, add_special_tokens=False)["input_ids"]
    task.report(0, recipe.steps, "sampling")
    texts = sampled(model, cue, (recipe.texts, _TOKENS), recipe.seed, behind)
    yield
    told = match_of(model, texts, behind)
    trained = told.rows(list(range(recipe.texts // 4, recipe.texts)))
    held_out = told.rows(list(range(recipe.texts // 4)))
    before = _divergence(model, held_out)

    def judge(adapted: Any) -> dict[str, float]:
        left = _divergence(adapted, held_out)
        share = left / max(before, 1e-9)  # the cache may change nothing
        return {"divergence_before": before, "divergence": left, "divergence_left": share}

    bounds = [
        _Bound("divergence_left", most=recipe.divergence_max),
        _Bound("perplexity_ratio", most=recipe.perplexity_max),
    ]
    teaching = imitation(trained, recipe.batch, recipe.seed)
    return (yield from _made(task, models, model, _Plan(teaching, judge, bounds, recipe.steps)))


def _divergence(model: Any, match: Match) -> float:
    with torch.no_grad():
        found = [
            float(divergence(rows, model(input_ids=rows.ids, use_cache=False).logits))
            for rows in (match.rows([row]) for row in range(len(match.ids)))
        ]
    return sum(found) / len(found)


class _Bound(NamedTuple):
    """What a score must be."""

    name: str
    least: float = -math.inf
    most: float = math.inf


class _Plan(NamedTuple):
    """What is taught, and how it is judged."""

    teaching: Teaching
    judge: Callable[[Any], dict[str, float]]
    bounds: list[_Bound]
    steps: int


def _made(task: Task, models: Models, model: Any, plan: _Plan) -> Generator[None, None, int]:
    """Train, judge, commit."""
    recipe: Any = task.request.recipe
    tokenizer = models.tokenizer
    digest = fingerprint_of_base(model)
    about = encode((digest, _identities(task), recipe))
    own = sampled(model, [start_of(tokenizer)], (recipe.kept_texts, _TOKENS), recipe.seed)
    kept = match_of(model, own)
    plain = perplexity(model, tokenizer, CONTROLS)
    yield
    schedule = Schedule(
        steps=plan.steps,
        learning_rate=recipe.learning_rate,
        rank=recipe.rank,
        keep=recipe.keep,
        kept_rows=_KEPT_ROWS,
        seed=recipe.seed,
    )
    learner = Learner(model, plan.teaching, kept, schedule)
    try:
        yield from _learn(task, learner, about)
        quality = plan.judge(learner.adapted)
        strayed = perplexity(learner.adapted, tokenizer, CONTROLS)
        quality["perplexity_ratio"] = strayed / plain
        task.report(learner.step, learner.step, "judged", quality)
        task.scratch.forget(about)  # asked again with another seed or gate, it is other work
        _pass(plan.bounds, quality)
        version = _commit(task, learner.adapted, digest, quality)
    finally:
        learner.close()
    return version


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


def _pass(bounds: list[_Bound], quality: dict[str, float]) -> None:
    """Errors: EGATE. What was not measured, for want of questions, is not asked for."""
    failures = []
    for name, least, most in bounds:
        score = quality.get(name)
        if score is not None and not least <= score <= most:
            limit = f"< {least:g}" if most == math.inf else f"> {most:g}"
            failures.append(f"{name} {score:.3f} {limit}")
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
