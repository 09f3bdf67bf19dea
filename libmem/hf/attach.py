"""`model.generate` with a memory: prefixes that somebody computed are mapped, new ones are kept.

Owns the wrapped `generate` of one model and one thread that stores. Invariants: what generate
returns is what it would return without (up to the last bits, where a row was computed in another
batch); no trouble with the daemon ever fails a generation; and nothing is stored that its own
token ids did not produce. One `generate` at a time for each model, as ever.

Public through `libmem.hf`.
"""

import os
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import MethodType, TracebackType
from typing import Any, Final, NamedTuple, Unpack

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache

from libmem.abi.calls import PlanReply
from libmem.abi.costs import PrefillSample
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import pack_tokens
from libmem.hf.cache import (
    CopiedCache,
    KvClient,
    MapOptions,
    MappedCache,
    map_prefix,
    new_cache,
    refuse_unknown,
)
from libmem.hf.fingerprint import identify
from libmem.hf.kinds import windows_of
from libmem.hf.request import Request, read_request
from libmem.hf.samples import Batch, Samples
from libmem.hf.shelf import AttachOptions, Shelf
from libmem.hf.store import Rows, rows_of

__all__ = ["Attached", "Stats", "attach"]

_MEASURED_TOKENS: Final = 16
"""A prefill of fewer says little about the time of a token."""
_RECENT: Final = 0.3
"""Weight of the latest measurement."""
_MIN_TOKENS: Final = 64


@dataclass
class Stats:
    """What an attached model did; counts since `attach`."""

    hits: int = 0
    """Generations that started from a stored prefix."""
    tokens_mapped: int = 0
    tokens_prefilled: int = 0
    """Of prompts, in plain calls: those that no stored prefix had."""
    stored: int = 0
    passed_through: int = 0
    """Calls that are none of our business: see `libmem.hf.request`."""
    recomputed: int = 0
    """Generations that computed a stored prefix, or a part of it: that was to be quicker."""
    tokens_recomputed: int = 0
    problems: int = 0
    last_error: MemError | None = None
    prefill_s_per_token: float = 0.0
    store_s_per_token: float = 0.0
    last_plan: PlanReply | None = None
    """What the daemon said of the latest prompt: what loading and what computing would take."""


class _Start(NamedTuple):
    """What a generation starts from."""

    cache: Cache
    model_digest: str
    plan: PlanReply
    """`plan.tokens` of the prompt's tokens are stored already."""
    mapped_tokens: int
    map_s: float = 0.0


def attach(
    model: PreTrainedModel, client: KvClient, **options: Unpack[AttachOptions]
) -> "Attached":
    """Let `model.generate` use stored prefixes, and keep new ones in a namespace of the user's.

    A copy of the model, or what is unpickled of it, has no memory.
    Errors: EOPNOTSUPP (a layer whose cache cannot be stored), EINVAL (attached already), EPERM
    (the namespace is another user's). No trouble with the daemon: that is counted in `stats`.
    """
    refuse_unknown("attach", AttachOptions, options)
    windows_of(model.config)
    if isinstance(vars(model).get("generate"), _Entry):
        raise MemError(Errno.EINVAL, "this model is attached already")
    shelf = Shelf(client, options)
    attached = Attached(model, shelf, max(1, options.get("min_tokens", _MIN_TOKENS)))
    try:
        attached.enter()
    except BaseException:
        shelf.close()
        raise
    return attached


class Attached:
    """A model whose `generate` has a memory, until `detach()` or the end of the `with` block.

    Does not keep the model alive.
    """

    def __init__(self, model: Any, shelf: Shelf, min_tokens: int) -> None:
        self.stats = Stats()
        self._samples = Samples()
        self._model = weakref.ref(model)
        self._shelf, self._min_tokens = shelf, min_tokens
        self._start_worker()
        self._is_detached = False
        self._replaced = vars(model).get("generate")
        # Of a wrapper it may be the wrapped model's; that keeps the model alive.
        is_its_own = self._replaced is None and hasattr(type(model), "generate")
        self._bound = None if is_its_own else model.generate

    def enter(self) -> None:
        """Take the place of the model's `generate`. Errors: EPERM."""
        try:
            self._shelf.enter()
        except MemError as error:
            if error.errno is Errno.EPERM:
                raise
            self._note(error)
        self._live_model().generate = _Entry(self)

    def __enter__(self) -> "Attached":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Give the model its own `generate` back, when what is being stored is. Idempotent."""
        model: Any = self._model()
        entry = None if model is None else vars(model).get("generate")
        if isinstance(entry, _Entry) and entry.attached is self:
            if self._replaced is None:
                del model.generate
            else:
                model.generate = self._replaced
        if self._pid == os.getpid():
            self._report(is_last=True)
        with self._handing_over:
            self._is_detached = True
        self._worker.shutdown(wait=self._pid == os.getpid())
        self._shelf.close()

    def plain_generate(self) -> Any:
        """What the model would do without. Errors: EINVAL (the model is gone)."""
        if self._bound is not None:
            return self._bound
        model = self._live_model()
        return MethodType(type(model).generate, model)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is being stored, and all that was measured is told; False when that
        takes longer."""
        if self._pid != os.getpid():
            return True
        self._report(is_last=True)
        working = [each for each in (self._storing, self._reporting) if each is not None]
        if wait(working, timeout_s).not_done:
            return False
        for each in working:
            each.result()  # a mistake of ours must not stay unseen
        return True

    def generate(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What the model's `generate` is called with."""
        if self._pid != os.getpid():
            self._start_worker()
        try:
            return self._generating(args, options)
        finally:
            # The next prompt may be long in coming: nothing stays mapped until then.
            self._shelf.post_released()

    def _start_worker(self) -> None:
        # A fork has none of its parent's threads, and locks that one of them may have held.
        self._pid = os.getpid()
        self._counting, self._handing_over = threading.Lock(), threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="libmem-store")
        self._storing: Future[None] | None = None
        self._reporting: Future[None] | None = None

    def _live_model(self) -> Any:
        model = self._model()
        if model is None:
            raise MemError(Errno.EINVAL, "the model that was attached is gone")
        return model

    def _generating(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        plain = self.plain_generate()
        if self._is_detached:  # somebody kept what `model.generate` was
            return plain(*args, **options)
        request = read_request(self._live_model(), args, options)
        start = self._start(request) if request is not None else None
        if request is None or start is None:
            self.stats.passed_through += request is None
            return plain(*args, **options)
        clock, random = _FirstToken(), torch.get_rng_state()
        criteria = StoppingCriteriaList([*(options.get("stopping_criteria") or []), clock])
        ours = {**options, "past_key_values": start.cache, "stopping_criteria": criteria}
        try:
            result = plain(*args, **ours)
        except MemError as error:  # no room for a new token
            self._note(error)
            if request.streams:
                raise  # what was streamed cannot be taken back
            torch.set_rng_state(random)  # the tokens that it would have drawn at once
            return plain(*args, **options)
        self._count(request, start, clock)
        self._keep(request, start, result)
        return result

    def _start(self, request: Request) -> _Start | None:
        """None where the daemon, the system or the model does not allow it."""
        if self._shelf.is_away:
            return None
        model = self._live_model()
        tokens = request.token_ids.shape[1]
        ids = request.token_ids[0, : request.common_tokens].tolist()
        try:
            identified = identify(model)
            plan = self._shelf.plan(
                identified.digest, pack_tokens(ids), prompt_tokens=tokens, rows=request.rows
            )
            self.stats.last_plan = plan
            mapped = min(plan.load_tokens, tokens - 1)  # the last one's logits are wanted
            if mapped < self._min_tokens:
                cache = new_cache(model, room_tokens=request.room_tokens)
                return _Start(cache, identified.digest, plan, 0)
            options = MapOptions(
                tokens=mapped,
                token_ids=ids,
                rows=request.rows,
                room_tokens=request.room_tokens,
            )
            begun = time.perf_counter()
            cache = map_prefix(self._shelf.client, plan.load_name, identified, options)
            map_s = time.perf_counter() - begun
            return _Start(cache, identified.digest, plan, mapped, map_s)
        except MemError as error:
            self._note(error)
            return None

    def _count(self, request: Request, start: _Start, clock: "_FirstToken") -> None:
        stats = self.stats
        prefilled = request.token_ids.shape[1] - start.mapped_tokens
        stats.hits += start.mapped_tokens > 0
        stats.tokens_mapped += start.mapped_tokens
        stats.tokens_prefilled += prefilled
        stored = min(start.plan.tokens, request.token_ids.shape[1] - 1)
        if start.mapped_tokens < stored and stored >= self._min_tokens:
            stats.recomputed += 1
            stats.tokens_recomputed += stored - start.mapped_tokens
        if clock.seconds is None:
            return
        # What loading took as well, the daemon measured by itself.
        map_s = start.map_s if start.plan.fault_s == 0.0 else 0.0
        sample = PrefillSample(prefilled, start.mapped_tokens, request.rows, clock.seconds, map_s)
        self._samples.add(start.model_digest, sample)
        self._report()
        if prefilled >= _MEASURED_TOKENS:
            each = clock.seconds / prefilled / request.rows
            stats.prefill_s_per_token = _recent(stats.prefill_s_per_token, each)

    def _report(self, *, is_last: bool = False) -> None:
        """Tell the daemon what was measured, now and then, in the background."""
        batch = None if self._shelf.is_away else self._samples.take(is_last=is_last)
        if batch is None:
            return
        with self._handing_over:
            if not self._is_detached:
                self._reporting = self._worker.submit(self._send, batch)

    def _send(self, batch: Batch) -> None:
        try:
            self._shelf.report(*batch)
        except MemError as error:
            self._shelf.failed(error)

    def _keep(self, request: Request, start: _Start, result: Any) -> None:
        """Store what is new, in the background, when computing it again would cost more."""
        ids = self._known_ids(request, start.cache, result)
        new_tokens = len(ids) - start.plan.tokens
        if new_tokens < self._min_tokens:
            return
        cache = start.cache
        base = cache if isinstance(cache, MappedCache | CopiedCache) else None
        try:
            now = identify(self._live_model())
            rows = rows_of(now, start.cache, ids, tokens=len(ids), base=base)
        except MemError as error:
            self._note(error)
            return
        stats, stored_tokens = self.stats, len(rows.token_ids)
        pays = new_tokens * stats.prefill_s_per_token > stored_tokens * stats.store_s_per_token
        if rows.header.model != start.model_digest or (stats.prefill_s_per_token and not pays):
            return
        with self._handing_over:
            if self._is_detached or (self._storing is not None and not self._storing.done()):
                return  # one at a time: what is skipped comes again, or was not needed
            self._storing = self._worker.submit(self._store, pack_tokens(ids), [rows])
            if isinstance(base, MappedCache):
                base.mapped_layers[0].readers.add(self._storing)

    def _known_ids(self, request: Request, cache: Cache, result: Any) -> list[int]:
        """The tokens whose rows the cache's first row certainly holds."""
        held = cache.get_seq_length()
        if request.rows == 1:  # nothing was reordered: the answer's tokens are behind the prompt's
            sequence = (result if isinstance(result, torch.Tensor) else result.sequences)[0]
            return sequence[:held].tolist()
        return request.token_ids[0, : min(held, request.common_tokens)].tolist()

    def _store(self, tokens: bytes, handed_over: list[Rows]) -> None:
        # Taken out: the executor keeps its arguments a moment longer than the work lasts, and
        # with them a cache that everybody thinks is gone.
        try:
            self._save(tokens, handed_over.pop())
        finally:
            self._shelf.post_released()

    def _save(self, tokens: bytes, rows: Rows) -> None:
        begun = time.perf_counter()
        try:
            if not self._shelf.keep(rows, tokens):
                return
        except MemError as error:
            self._note(error)
            return
        each = (time.perf_counter() - begun) / len(rows.token_ids)
        with self._counting:
            self.stats.stored += 1
            self.stats.store_s_per_token = _recent(self.stats.store_s_per_token, each)

    def _note(self, error: MemError) -> None:
        with self._counting:
            self.stats.problems += 1
            # Without its frames: they hold a cache.
            self.stats.last_error = error.with_traceback(None)
        self._shelf.failed(error)


class _Entry:
    """What stands in the place of a model's `generate`; a copy of the model has its own again."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.attached.generate(args, options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.attached.plain_generate(),)


def _itself(generate: Any) -> Any:
    return generate


class _FirstToken(StoppingCriteria):
    """Stops nothing: looks at the clock when the first token is there."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._begun = time.perf_counter()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self.seconds is None:
            self.seconds = time.perf_counter() - self._begun
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _recent(before: float, latest: float) -> float:
    return latest if before == 0.0 else before + _RECENT * (latest - before)
