"""`lora-learn`: invented facts trained into an adapter by the daemon, and asked without the text.

Texts of four people, with a question for each of their twenty facts, become one adapter by the
transition `train` with its defaults. This process then maps the adapter into a model of its own,
asks the trained questions and two held-out wordings of each, and measures the perplexity of prose
that neither training nor the daemon's gate has seen. The peer is a plain loop of PyTorch and PEFT
in this process, over the same items for as many steps with as many threads, one after the other.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from libmem import Client
from libmem.abi.errors import Errno, MemError
from libmem.abi.learning import QUESTIONS_ATTRIBUTE, Gate
from libmem.abi.transitions import PrefillRecipe, TrainRecipe, TransitionStat
from memosd.tools.bench.corpus import reference
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.people import Person, people
from memosd.tools.bench.prompts import load_model, load_tokenizer
from memosd.tools.bench.report import Report, at_least, at_most, row
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

if TYPE_CHECKING:
    import torch

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_ADAPTER: Final = "/bench/people"
_ANY: Final = Gate(trained_min=0, heldout_min=0, perplexity_max=1e9)
"""The bars are this benchmark's: an adapter that misses them is to be measured, not refused."""
_PATIENCE_S: Final = 600.0
_PASSAGE_CHARACTERS: Final = 900


@dataclass(frozen=True)
class Plan:
    persons: int = 4
    steps: int = 0
    """0: as many as the recipe takes by itself."""
    kept_texts: int = TrainRecipe().kept_texts
    passages: int = 10
    threads: int = 2


FULL = Plan()
QUICK = Plan(persons=1, steps=3, kept_texts=2, passages=1, threads=1)


@dataclass
class _Score:
    trained: float
    held_out: float
    perplexity: float


def measure(plan: Plan, directory: Path) -> Report:
    """Train, then ask; then train in a plain loop."""
    import torch

    # PEFT asks transformers for an old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    torch.set_num_threads(plan.threads)
    persons = people()[: plan.persons]
    config = (
        f'[transitions]\nlanguage_model = "{find_model(SMOLLM2)}"\ndtype = "float32"\n'
        f'threads = {plan.threads}\nnice = 0\n[listen]\nmode = "0600"\n'
    )
    before = _score(load_model(), plan, persons)
    with private_daemon(directory, config=config) as daemon:
        daemon.start()
        with daemon.connect(_PATIENCE_S) as client:
            stat = _train(client, plan, persons)
            after = _asked(client, plan, persons)
        daemon.stop()
    return _report(plan, before, after, stat, _plain_loop_s(plan, persons, stat.total))


def _train(client: Client, plan: Plan, persons: list[Person]) -> TransitionStat:
    client.make_namespace("/bench")
    names = []
    for number, person in enumerate(persons):
        attributes = {QUESTIONS_ATTRIBUTE: msgspec.to_builtins(person.questions)}
        client.write(f"/bench/{number}", person.text, attributes=attributes)
        names.append(f"/bench/{number}")
    # The first one of a worker waits for its model.
    client.transmute("/bench/warm", names[:1], PrefillRecipe())
    return client.transmute(
        _ADAPTER, names, TrainRecipe(gate=_ANY, steps=plan.steps, kept_texts=plan.kept_texts)
    )


def _asked(client: Client, plan: Plan, persons: list[Person]) -> _Score:
    from libmem import peft

    model = load_model()
    with peft.attach(client, model) as adapters:
        adapters.use(_ADAPTER)
        return _score(model, plan, persons)


def _score(model: Any, plan: Plan, persons: list[Person]) -> _Score:
    from memosd.drivers.parametric.lessons import ASK, Probe
    from memosd.drivers.parametric.scores import exact_share, perplexity

    tokenizer = load_tokenizer()
    questions = [each for person in persons for each in person.questions]
    trained = [Probe(ASK.format(each.question), each.answer) for each in questions]
    held_out = [
        Probe(ASK.format(other), each.answer) for each in questions for other in each.held_out
    ]
    text = reference()
    stride = len(text) // plan.passages
    passages = [
        text[at : at + _PASSAGE_CHARACTERS] for at in range(0, stride * plan.passages, stride)
    ]
    return _Score(
        exact_share(model, tokenizer, trained),
        exact_share(model, tokenizer, held_out),
        perplexity(model, tokenizer, passages),
    )


def _plain_loop_s(plan: Plan, persons: list[Person], steps: int) -> float:
    """Seconds of the same recipe as somebody would write it down."""
    import peft
    import torch
    from torch.nn.functional import cross_entropy, log_softmax

    model, tokenizer, recipe = load_model(), load_tokenizer(), TrainRecipe()
    items = _items(persons, tokenizer)
    start = time.perf_counter()
    first = torch.full((plan.kept_texts, 1), tokenizer.bos_token_id)
    with torch.no_grad():
        samples = model.generate(
            first, attention_mask=torch.ones_like(first), min_new_tokens=63, max_new_tokens=63,
            do_sample=True, top_k=0, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        logs = [
            log_softmax(model(samples[row : row + 8]).logits, -1)
            for row in range(0, plan.kept_texts, 8)
        ]
    kept = torch.cat(logs)
    config = peft.LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules="all-linear")
    adapted = peft.get_peft_model(model, config).train()
    parameters = [each for each in adapted.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate)
    for step in range(steps):
        rows = [items[(step * recipe.batch + at) % len(items)] for at in range(recipe.batch)]
        ids, labels = _padded(rows)
        logits = adapted(ids, attention_mask=(ids != 0).long(), use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        pick = [2 * step % plan.kept_texts, (2 * step + 1) % plan.kept_texts]
        own = log_softmax(adapted(samples[pick], use_cache=False).logits, -1)
        loss = loss + recipe.keep * (kept[pick].exp() * (kept[pick] - own)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    took_s = time.perf_counter() - start
    adapted.unload()
    return took_s


def _padded(rows: list[tuple[list[int], int]]) -> "tuple[torch.Tensor, torch.Tensor]":
    """Token ids, and the labels of those that are answers."""
    import torch

    ids = torch.zeros(len(rows), max(len(whole) for whole, _ in rows), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row_ids, row_labels, (whole, prompt) in zip(ids, labels, rows, strict=True):
        row_ids[: len(whole)] = torch.tensor(whole)
        row_labels[prompt : len(whole)] = torch.tensor(whole[prompt:])
    return ids, labels


def _items(persons: list[Person], tokenizer: Any) -> list[tuple[list[int], int]]:
    """Token ids, and how many of them are the prompt's: the very items that the daemon trains."""
    from memosd.drivers.parametric.lessons import Text, lessons_of

    lessons = lessons_of([Text(each.text, each.questions) for each in persons], tokenizer)
    return [(item.prompt + item.answer, max(1, len(item.prompt))) for item in lessons.items]


def _report(
    plan: Plan, before: _Score, after: _Score, stat: TransitionStat, plain_s: float
) -> Report:
    if before.trained or before.held_out:
        raise MemError(Errno.EIO, "the model knows the facts already")
    took_s = (stat.ended_ns - stat.began_ns) / 1e9
    return Report(
        "lora-learn",
        (
            row("trained_exact", after.trained, "questions answered without the text",
                at_least(0.95)),
            row("heldout_exact", after.held_out, "the same in words not trained", at_least(0.85)),
            row("perplexity_ratio", after.perplexity / before.perplexity,
                "of unrelated prose, with the adapter / without", at_most(1.15)),
            row("train_ratio", took_s / plain_s, "wall time / a plain PEFT loop's, as many steps",
                at_most(1.1)),
            row("seconds", took_s, "the transition, judging and storing included"),
            row("plain_seconds", plain_s, "the loop"),
            row("perplexity_before", before.perplexity, "without the adapter"),
        ),
        (
            f"SmolLM2-135M, {5 * plan.persons} invented facts, {stat.total} steps of "
            f"{TrainRecipe().batch}, {plan.threads} threads; none was answered before",
        ),
    )  # fmt: skip
