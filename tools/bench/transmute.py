"""`transmute`: a text becomes a KV cache in the daemon, against a prefill in a plain process.

In each round the daemon's worker makes a cube of a text it has not read before, from the request to
the reply, storing included; and this process has its own model, with as many threads, read the same
tokens into a cache of its own. The two take turns, and never work at the same time.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from libmem import Client
from libmem.abi.transitions import PrefillRecipe, ReciteRecipe
from memosd.tools.bench.corpus import reference
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.prompts import load_model, load_tokenizer
from memosd.tools.bench.report import Report, at_least, at_most, row
from memosd.tools.bench.samples import sample
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_PATIENCE_S: Final = 600.0


@dataclass(frozen=True)
class Plan:
    characters: int = 4000
    """Of a text; a token has about four."""
    rounds: int = 9
    threads: int = 2


FULL = Plan()
QUICK = Plan(characters=400, rounds=2, threads=1)


def measure(plan: Plan, directory: Path) -> Report:
    """Take turns."""
    import torch

    torch.set_num_threads(plan.threads)
    config = (
        f'[transitions]\nlanguage_model = "{find_model(SMOLLM2)}"\ndtype = "float32"\n'
        f'threads = {plan.threads}\nnice = 0\n[listen]\nmode = "0600"\n'
    )
    daemon_s, plain_s, exact, tokens = [], [], 0, 0
    text = reference()
    with private_daemon(directory, config=config) as daemon:
        daemon.start()
        with daemon.connect(_PATIENCE_S) as client:
            client.make_namespace("/bench")
            for turn in range(plan.rounds + 1):
                part = text[turn * plan.characters : (turn + 1) * plan.characters]
                took_s, made = _through_daemon(client, part, turn)
                own_s, tokens = _plainly(part)
                exact += made
                if turn:  # the first one loads models, and touches memory for the first time
                    daemon_s.append(took_s)
                    plain_s.append(own_s)
        daemon.stop()
    through, plain = sample(daemon_s), sample(plain_s)
    return Report(
        "transmute",
        (
            row("prefill_ratio", through.median / plain.median,
                "text to KV by the daemon / a prefill in a plain process, p50", at_most(1.15)),
            row("recited", exact / (plan.rounds + 1), "caches whose text came back exactly",
                at_least(1)),
            row("daemon_ms", through.median * 1e3, "from the request to the cube"),
            row("plain_ms", plain.median * 1e3, "the model's own prefill"),
        ),
        (f"SmolLM2-135M, float32, some {tokens} tokens, {plan.rounds} rounds in turn, "
         f"{plan.threads} threads",),
    )  # fmt: skip


def _through_daemon(client: Client, text: str, turn: int) -> tuple[float, bool]:
    """Seconds of a prefill, and whether the cache recites its text."""
    client.write(f"/bench/text{turn}", text)
    start = time.perf_counter()
    client.transmute(f"/bench/kv{turn}", [f"/bench/text{turn}"], PrefillRecipe())
    took_s = time.perf_counter() - start
    client.transmute(f"/bench/back{turn}", [f"/bench/kv{turn}"], ReciteRecipe())
    return took_s, client.read(f"/bench/back{turn}").decode() == text


def _plainly(text: str) -> tuple[float, int]:
    """Seconds of the same in this process, and how many tokens it has."""
    import torch

    model, tokenizer = load_model(), load_tokenizer()
    start = time.perf_counter()
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        model(ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start, ids.shape[1]
