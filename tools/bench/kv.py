"""`kv`: a prefix that another process prefilled, against computing it and against a copy.

One process prefills a prompt of real text with a real model and commits it. Another, which had no
part in it, finds and maps it and computes the first token of an answer to a question behind it. The
peers, in the same process and the same rounds, are the full prefill, and the same question on a
cache of its own in its own memory (a transformers DynamicCache with the prefix already in it). The
logits of the two must be equal to the last bit.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import libmem
from libmem import hf
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import pack_tokens
from memosd.tools.bench import memfd
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.process import Worker, workers
from memosd.tools.bench.prompts import QUESTION_TOKENS, load_model, prompt_of, question_of
from memosd.tools.bench.report import Report, Row, at_least, at_most, row
from memosd.tools.bench.samples import Sample, interleave, percentile, ratios, sample

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NAMESPACE: Final = "/bench"
_PREFIX: Final = f"{_NAMESPACE}/prefix"
_SHORT, _LONG = 512, 4096


@dataclass(frozen=True)
class Plan:
    rounds: int
    full_rounds: int
    """Rounds of the full prefill, which takes seconds."""
    attaches: int
    """Of each length, in one round."""
    tokens: int = 2048


FULL = Plan(rounds=9, full_rounds=3, attaches=25)
QUICK = Plan(rounds=3, full_rounds=1, attaches=10, tokens=512)


class First(NamedTuple):
    """A first token: how long it took, and of which the parts."""

    seconds: float
    find_s: float = 0.0
    map_s: float = 0.0


def measure(plan: Plan, directory: Path) -> Report:
    """Prefill and commit in one process, map and ask in another."""
    with private_daemon(directory) as daemon:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace(_NAMESPACE)
        args = (daemon.runtime_dir, plan)
        with workers(_prefilling, args) as [prefiller]:
            store = _store_rows(plan, prefiller)
        with workers(_reading, args) as [reader]:
            first = _first_rows(plan, reader)
            attach = _attach_rows(plan, reader)
        daemon.stop()
    rows = sorted((*first, *attach, *store), key=lambda each: each.bar is None)
    return Report(
        "kv",
        tuple(rows),
        (
            f"SmolLM2-135M-Instruct, float32; a prefix of {plan.tokens:,} tokens of English, "
            f"prefilled by another process; a question of {QUESTION_TOKENS} tokens",
            f"{plan.rounds} rounds, alternating ({plan.full_rounds} more with the full prefill); "
            "ratios per round",
            "first token: to the logits of the last token of the question, in memory",
        ),
    )


# -- rows ------------------------------------------------------------------------------------


def _store_rows(plan: Plan, prefiller: Worker) -> list[Row]:
    prefill_s = prefiller.ask("prefill")
    commits, copies = interleave(
        plan.rounds, lambda: prefiller.ask("commit"), lambda: prefiller.ask("memcpy")
    )
    for length in (_SHORT, _LONG):
        prefiller.ask(length)
    return [
        row("store_ratio", ratios(commits, copies), "commit / memcpy", at_most(1.5)),
        row("commit_ms", _ms(commits), "the cache into a new cube, committed (class cache)"),
        row("memcpy_ms", _ms(copies), "the same tensors into a fresh memfd"),
        row("other_prefill_s", prefill_s, "the prefill of the process that commits"),
    ]


def _first_rows(plan: Plan, reader: Worker) -> list[Row]:
    difference = reader.ask("compare")
    full, beside_full = interleave(
        plan.full_rounds, lambda: reader.ask("full"), lambda: reader.ask("mapped")
    )
    mapped, owned = interleave(
        plan.rounds, lambda: reader.ask("mapped"), lambda: reader.ask("owned")
    )
    full_s, full_peer_s, seconds, own_s = (
        [each.seconds for each in firsts] for firsts in (full, beside_full, mapped, owned)
    )
    return [
        row("max_logit_diff", difference, "mapped - in-process, all logits", at_most(0.0)),
        row("ttft_speedup", ratios(full_s, full_peer_s), "full / find + map + first", at_least(25)),
        row("overhead_ratio", ratios(seconds, own_s), "the same / in-process cache", at_most(1.10)),
        row("ttft_mapped_ms", _ms(seconds), "find + map + first token"),
        row("ttft_in_process_ms", _ms(own_s), "first token on a cache of its own"),
        row("ttft_full_s", sample(full_s), "full prefill to the first token"),
        row("find_ms", _ms([each.find_s for each in mapped]), "of these: find_prefix"),
        row("map_ms", _ms([each.map_s for each in mapped]), "of these: map_cache"),
    ]


def _attach_rows(plan: Plan, reader: Worker) -> list[Row]:
    short, long = interleave(plan.rounds, lambda: reader.ask(_SHORT), lambda: reader.ask(_LONG))
    p50 = [[percentile(times, 0.5) for times in each] for each in (short, long)]
    return [
        row("attach_growth", ratios(p50[1], p50[0]), f"{_LONG:,} / {_SHORT} tokens", at_most(1.5)),
        row("attach_ms_p50", _ms(p50[1]), f"map_cache of {_LONG:,} tokens"),
        row(f"attach_{_SHORT}_ms_p50", _ms(p50[0]), f"map_cache of {_SHORT} tokens"),
    ]


def _ms(seconds: list[float]) -> Sample:
    return sample([each * 1e3 for each in seconds])


# -- the two processes -----------------------------------------------------------------------


class _Prefiller:
    """Computes the prefix and commits it."""

    def __init__(self, client: libmem.Client, plan: Plan) -> None:
        from transformers import DynamicCache

        self._client = client
        self._model, self._prompt = load_model(), prompt_of(plan.tokens)
        self._cache = DynamicCache(config=self._model.config)
        hf.fingerprint(self._model)  # once a process, as for whoever attaches

    def prefill(self) -> float:
        """Seconds."""
        before = time.perf_counter()
        self._model(self._prompt, past_key_values=self._cache, logits_to_keep=1)
        return time.perf_counter() - before

    def commit(self) -> float:
        """Seconds."""
        before = time.perf_counter()
        hf.save_cache(self._client, _PREFIX, self._model, self._cache, self._prompt)
        seconds = time.perf_counter() - before
        # One version is left, for the other process.
        newest = self._client.stat(_PREFIX).version
        if newest > 1:
            self._client.unlink(f"{_PREFIX}@v{newest - 1}")
        self._client.sync()  # or the write to disk would run beside the next round
        return seconds

    def memcpy(self) -> float:
        """Copy all tensors, one behind the other, into a fresh memfd: s. The limit."""
        import torch

        tensors = [each for layer in self._cache.layers for each in (layer.keys, layer.values)]

        def copy_all(memory: memoryview) -> None:
            flat, at = torch.frombuffer(memory, dtype=tensors[0].dtype), 0
            for each in tensors:
                flat[at : at + each.numel()].view(each.shape).copy_(each)
                at += each.numel()

        return memfd.timed(sum(each.nbytes for each in tensors), copy_all)

    def arbitrary(self, tokens: int) -> None:
        """A cube of so many rows that no model computed, of no text: it must not be found."""
        import torch
        from transformers import DynamicCache

        rows = DynamicCache(config=self._model.config)
        for index, layer in enumerate(self._cache.layers):
            shape = (*layer.keys.shape[:2], tokens, layer.keys.shape[3])
            rows.update(torch.rand(shape), torch.rand(shape), index)
        ids = list(range(1, tokens + 1))
        hf.save_cache(self._client, f"{_NAMESPACE}/{tokens}", self._model, rows, ids)


class _Reader:
    """Finds, maps and asks; had no part in the prefix."""

    def __init__(self, client: libmem.Client, plan: Plan) -> None:
        import torch
        from transformers import DynamicCache

        self._client, self._plan = client, plan
        self._model, self._question = load_model(), question_of()
        prompt = prompt_of(plan.tokens)
        self._ids = torch.cat([prompt, self._question], dim=1)
        self._packed = pack_tokens(self._ids[0].tolist())
        self._digest = hf.fingerprint(self._model)
        self._own = DynamicCache(config=self._model.config)
        # Also warms the model up.
        self._model(prompt, past_key_values=self._own, logits_to_keep=1)

    def full(self) -> First:
        """To the first token without any cache."""
        from transformers import DynamicCache

        empty = DynamicCache(config=self._model.config)
        before = time.perf_counter()
        self._model(self._ids, past_key_values=empty, logits_to_keep=1)
        return First(time.perf_counter() - before)

    def first_mapped(self) -> tuple[First, Any]:
        """Find, map, compute; with the logits."""
        begin = time.perf_counter()
        found = self._client.find_prefix(self._digest, self._packed)
        if found.tokens != self._plan.tokens:
            raise MemError(Errno.EIO, f"{found.tokens} tokens were found")
        found_at = time.perf_counter()
        cache = hf.map_cache(
            self._client, found.name, self._model, tokens=found.tokens, token_ids=self._ids
        )
        mapped_at = time.perf_counter()
        logits = self._model(self._question, past_key_values=cache).logits
        end = time.perf_counter()
        return First(end - begin, found_at - begin, mapped_at - found_at), logits

    def first_owned(self) -> tuple[First, Any]:
        """The same on a copy of a cache in this process's own memory."""
        cache = copy.deepcopy(self._own)
        before = time.perf_counter()
        logits = self._model(self._question, past_key_values=cache).logits
        return First(time.perf_counter() - before), logits

    def difference(self) -> float:
        """The largest difference between any two logits of the two."""
        return float((self.first_mapped()[1] - self.first_owned()[1]).abs().max())

    def attach(self, tokens: int) -> list[float]:
        """Seconds of each."""
        times = []
        for _ in range(self._plan.attaches):
            before = time.perf_counter()
            cache = hf.map_cache(self._client, f"{_NAMESPACE}/{tokens}", self._model)
            times.append(time.perf_counter() - before)
            if cache.get_seq_length() != tokens:
                raise MemError(Errno.EIO, f"not {tokens} tokens were mapped")
        return times


@contextmanager
def _prefilling(runtime_dir: Path, plan: Plan) -> Iterator[Callable[[Any], Any]]:
    """A process; an order is a method's name, or a number of arbitrary rows to commit."""
    import torch

    load_model()  # not under inference_mode: its weights could not be told to be the same
    with libmem.connect(runtime_dir, timeout_s=60) as client, torch.inference_mode():
        mind = _Prefiller(client, plan)
        orders: dict[str, Callable[[], Any]] = {
            "prefill": mind.prefill,
            "commit": mind.commit,
            "memcpy": mind.memcpy,
        }
        yield lambda order: orders[order]() if order in orders else mind.arbitrary(order)


@contextmanager
def _reading(runtime_dir: Path, plan: Plan) -> Iterator[Callable[[Any], Any]]:
    """Another process; an order is one of these, or the length of a cube to map."""
    import torch

    load_model()  # not under inference_mode: its weights could not be told to be the same
    with libmem.connect(runtime_dir, timeout_s=60) as client, torch.inference_mode():
        mind = _Reader(client, plan)
        orders: dict[str, Callable[[], Any]] = {
            "full": mind.full,
            "compare": mind.difference,
            "mapped": lambda: mind.first_mapped()[0],
            "owned": lambda: mind.first_owned()[0],
        }
        yield lambda order: orders[order]() if order in orders else mind.attach(order)
