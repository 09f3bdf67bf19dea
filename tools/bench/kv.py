"""`kv`: a prefix that another process prefilled, against computing it and against a copy.

One process prefills a prompt of real text with a real model and commits it. Another, which had no
part in it, finds and maps it and computes the first token of an answer to a question behind it. The
peers, in the same process and the same rounds, are the full prefill, and the same question on a
cache of its own in its own memory (a transformers DynamicCache with the prefix already in it). The
logits of the two must be equal to the last bit.
"""

import copy
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import libmem
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import pack_tokens
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
        with workers(_prefiller, args) as [prefiller]:
            store = _store_rows(plan, prefiller)
        with workers(_reader, args) as [reader]:
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
            f"{plan.rounds} rounds, alternating ({plan.full_rounds} of the full prefill); "
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
    full = [reader.ask("full") for _ in range(plan.full_rounds)]
    difference = reader.ask("compare")
    mapped, owned = interleave(
        plan.rounds, lambda: reader.ask("mapped"), lambda: reader.ask("owned")
    )
    seconds, own_s = [each.seconds for each in mapped], [each.seconds for each in owned]
    speedups = [sample(full).median / each for each in seconds]
    return [
        row("max_logit_diff", difference, "mapped - in-process, all logits", at_most(0.0)),
        row("ttft_speedup", sample(speedups), "full prefill / find + map + first", at_least(25)),
        row("overhead_ratio", ratios(seconds, own_s), "the same / in-process cache", at_most(1.10)),
        row("ttft_mapped_ms", _ms(seconds), "find + map + first token"),
        row("ttft_in_process_ms", _ms(own_s), "first token on a cache of its own"),
        row("ttft_full_s", sample(full), "full prefill to the first token"),
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


@contextmanager
def _prefiller(runtime_dir: Path, plan: Plan) -> Iterator[Callable[[Any], Any]]:
    """Computes the prefix and commits it; a number makes a cube of so many arbitrary rows."""
    import torch
    from transformers import DynamicCache

    from libmem import hf

    model, prompt = load_model(), prompt_of(plan.tokens)
    cache = DynamicCache(config=model.config)
    hf.fingerprint(model)  # once a process, as for whoever attaches
    with libmem.connect(runtime_dir, timeout_s=60) as client, torch.inference_mode():

        def prefill() -> float:
            before = time.perf_counter()
            model(prompt, past_key_values=cache, logits_to_keep=1)
            return time.perf_counter() - before

        def commit() -> float:
            before = time.perf_counter()
            hf.save_cache(client, _PREFIX, model, cache, prompt)
            seconds = time.perf_counter() - before
            # One version is left, for the other process.
            newest = client.stat(_PREFIX).version
            if newest > 1:
                client.unlink(f"{_PREFIX}@v{newest - 1}")
            return seconds

        def arbitrary(tokens: int) -> None:
            ids = torch.arange(tokens)[None] + 1  # no text: the prefix must not be found here
            rows = DynamicCache(config=model.config)
            for index, layer in enumerate(cache.layers):
                shape = (*layer.keys.shape[:2], tokens, layer.keys.shape[3])
                rows.update(torch.rand(shape), torch.rand(shape), index)
            hf.save_cache(client, f"{_NAMESPACE}/{tokens}", model, rows, ids)

        orders: dict[Any, Callable[[], Any]] = {
            "prefill": prefill,
            "commit": commit,
            "memcpy": lambda: _memcpy(cache),
            _SHORT: lambda: arbitrary(_SHORT),
            _LONG: lambda: arbitrary(_LONG),
        }
        yield lambda order: orders[order]()


def _memcpy(cache: Any) -> float:
    """Copy all tensors, one behind the other, into a fresh memfd: s. The limit for a commit."""
    import torch

    tensors = [each for layer in cache.layers for each in (layer.keys, layer.values)]
    size_bytes = sum(each.numel() * each.element_size() for each in tensors)
    before = time.perf_counter()
    fd = os.memfd_create("memos-bench", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
        with mmap.mmap(fd, size_bytes) as memory:
            flat, at = torch.frombuffer(memory, dtype=tensors[0].dtype), 0
            for each in tensors:
                flat[at : at + each.numel()].view(each.shape).copy_(each)
                at += each.numel()
            del flat
        return time.perf_counter() - before
    finally:
        os.close(fd)


@contextmanager
def _reader(runtime_dir: Path, plan: Plan) -> Iterator[Callable[[Any], Any]]:
    """Finds, maps and asks; a number maps the cube of so many rows."""
    import torch
    from transformers import DynamicCache

    from libmem import hf

    model, prompt, question = load_model(), prompt_of(plan.tokens), question_of()
    ids = torch.cat([prompt, question], dim=1)
    packed = pack_tokens(ids[0].tolist())
    digest = hf.fingerprint(model)
    own = DynamicCache(config=model.config)
    with libmem.connect(runtime_dir, timeout_s=60) as client, torch.inference_mode():
        model(prompt, past_key_values=own, logits_to_keep=1)  # also warms the model up

        def full() -> float:
            before = time.perf_counter()
            model(ids, past_key_values=DynamicCache(config=model.config), logits_to_keep=1)
            return time.perf_counter() - before

        def first_mapped() -> tuple[First, Any]:
            begin = time.perf_counter()
            found = client.find_prefix(digest, packed)
            if found.tokens != plan.tokens:
                raise MemError(Errno.EIO, f"{found.tokens} tokens were found")
            found_at = time.perf_counter()
            cache = hf.map_cache(client, found.name, model, tokens=found.tokens, token_ids=ids)
            mapped_at = time.perf_counter()
            logits = model(question, past_key_values=cache).logits
            end = time.perf_counter()
            return First(end - begin, found_at - begin, mapped_at - found_at), logits

        def first_owned() -> tuple[First, Any]:
            cache = copy.deepcopy(own)
            before = time.perf_counter()
            logits = model(question, past_key_values=cache).logits
            return First(time.perf_counter() - before), logits

        def attach(tokens: int) -> list[float]:
            times = []
            for _ in range(plan.attaches):
                before = time.perf_counter()
                cache = hf.map_cache(client, f"{_NAMESPACE}/{tokens}", model)
                times.append(time.perf_counter() - before)
                if cache.get_seq_length() != tokens:
                    raise MemError(Errno.EIO, f"not {tokens} tokens were mapped")
            return times

        orders: dict[Any, Callable[[], Any]] = {
            "full": full,
            "compare": lambda: float((first_mapped()[1] - first_owned()[1]).abs().max()),
            "mapped": lambda: first_mapped()[0],
            "owned": lambda: first_owned()[0],
            _SHORT: lambda: attach(_SHORT),
            _LONG: lambda: attach(_LONG),
        }
        yield lambda order: orders[order]()
