"""`embed`: how fast texts become vectors.

Ours is the worker's `Embedder`, the vectors of all sentences included. The peer is `encode` of
sentence-transformers as it comes: float32, batches of 32, one vector a text. Where that package is
not installed, the peer is its loop with the same tokenizer and model, step by step. Both run in
one process with as many threads, on the same texts.
"""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from libmem.abi.jobs import EmbedResult
from memosd.tools.bench.corpus import paragraphs
from memosd.tools.bench.report import Report, at_least, at_most, row
from memosd.tools.bench.samples import interleave, percentile, ratios, sample
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import MINILM

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_STRIDE: Final = 7
"""Prime: texts from all pages, of all lengths."""
_QUERY_WORDS: Final = 10
_PEER_BATCH: Final = 32
_PEER_TOKENS: Final = 256
"""What the model's own settings for sentence-transformers say."""


@dataclass(frozen=True)
class Plan:
    rounds: int
    texts: int
    queries: int
    """In one round."""
    threads: int = 1


FULL = Plan(rounds=5, texts=256, queries=40)
QUICK = Plan(rounds=3, texts=96, queries=20)


def measure(plan: Plan, directory: Path) -> Report:
    """Interleave rounds; nothing is written to `directory`. Errors: ENOENT (no model)."""
    from memosd.drivers.plaintext.bottom import Embedder

    folder = str(find_model(MINILM))
    texts = paragraphs()[::_STRIDE][: plan.texts]
    questions = [" ".join(text.split()[:_QUERY_WORDS]) + "?" for text in texts[: plan.queries]]
    ours = Embedder(folder, plan.threads)
    encode, peer = _peer(folder)
    cosine = _cosine(ours.embed(texts, has_pieces=False), encode(texts))
    mine, theirs, queries, peer_queries = interleave(
        plan.rounds,
        lambda: _times_s(lambda _: ours.embed(texts, has_pieces=True), [""]),
        lambda: _times_s(lambda _: encode(texts), [""]),
        lambda: _times_s(lambda text: ours.embed([text], has_pieces=False), questions),
        lambda: _times_s(lambda text: encode([text]), questions),
    )
    rates = [[len(texts) / times[0] for times in side] for side in (mine, theirs)]
    waits = [[percentile(times, 0.5) * 1e3 for times in each] for each in (queries, peer_queries)]
    return Report(
        "embed",
        (
            row("embed_ratio", ratios(*rates), "texts per second / the peer's", at_least(2)),
            row("query_ms_p50", sample(waits[0]), "one short question", at_most(15)),
            row("embed_per_s", sample(rates[0]), f"whole and sentences, {ours.precision}"),
            row("peer_per_s", sample(rates[1]), f"whole, {peer}"),
            row("query_peer_ms_p50", sample(waits[1]), peer),
            row("cosine", cosine, "mean, our vectors and the peer's"),
        ),
        (
            f"MiniLM-L6-v2, {plan.threads} thread; {len(texts)} paragraphs of Python's reference, "
            f"20 to 1,000 characters; {plan.rounds} rounds, alternating; ratios per round",
        ),
    )


def _times_s(call: Callable[[str], object], texts: Sequence[str]) -> list[float]:
    times = []
    for text in texts:
        before = time.perf_counter()
        call(text)
        times.append(time.perf_counter() - before)
    return times


def _cosine(ours: EmbedResult, peers: Any) -> float:
    mine = np.frombuffer(ours.vectors, "<f4").reshape(len(peers), -1)
    return float((mine * peers).sum(1).mean())


def _peer(folder: str) -> tuple[Callable[[Sequence[str]], Any], str]:
    """Texts to unit vectors, and who does it."""
    try:
        package = importlib.import_module("sentence_transformers")
    except ImportError:
        return _peer_loop(folder), "sentence-transformers' loop"
    model = package.SentenceTransformer(folder, device="cpu")
    return lambda texts: model.encode(list(texts)), "sentence-transformers"


def _peer_loop(folder: str) -> Callable[[Sequence[str]], Any]:
    """What `SentenceTransformer.encode` does with its defaults."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.eval()

    def encode(texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        rows = []
        with torch.inference_mode():
            for start in range(0, len(order), _PEER_BATCH):
                batch = tokenizer(
                    [texts[index] for index in order[start : start + _PEER_BATCH]],
                    padding=True,
                    truncation="longest_first",
                    max_length=_PEER_TOKENS,
                    return_tensors="pt",
                )
                hidden = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).expand(hidden.shape).float()
                mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
                rows.append(torch.nn.functional.normalize(mean, p=2, dim=1))
        found = torch.cat(rows).numpy()
        return found[np.argsort(order)]

    return encode
