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
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple

import torch
from blake3 import blake3
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache

from libmem.abi.calls import FindPrefix, MakeNamespace, PrefixReply, UnlinkCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import pack_tokens
from libmem.hf.cache import KvClient, MappedCache, map_cache, new_cache
from libmem.hf.fingerprint import fingerprint
from libmem.hf.kinds import windows_of
from libmem.hf.request import Request, read_request
from libmem.hf.store import Rows, rows_of, save_rows

__all__ = ["Attached", "Stats", "attach"]

_AWAY: Final = {Errno.ECONNREFUSED, Errno.ECONNRESET, Errno.ETIMEDOUT, Errno.ESHUTDOWN}
_PATIENCE_S: Final = 2.0
"""How long a generation waits for an answer: as long as a daemon may take to be restarted."""
_AWAY_S: Final = 5.0
"""How long a daemon that did not answer is left alone."""
_GLANCE_S: Final = 0.2
"""How long one that did not answer is waited for from then on, until it does."""
_MEASURED_TOKENS: Final = 16
"""A prefill of fewer says little about the time of a token."""
_RECENT: Final = 0.3
"""Weight of the latest measurement."""
_DIGEST_CHARS: Final = 32
_TOKEN_BYTES: Final = 4


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
    problems: int = 0
    last_error: MemError | None = None
    prefill_s_per_token: float = 0.0
    store_s_per_token: float = 0.0


class _Start(NamedTuple):
    """What a generation starts from."""

    cache: Cache
    model_digest: str
    known_tokens: int
    """How many of the prompt's tokens are stored already."""
    mapped_tokens: int


def attach(
    model: PreTrainedModel,
    client: KvClient,
    *,
    namespace: str = "/kv",
    min_tokens: int = 64,
) -> "Attached":
    """Let `model.generate` use stored prefixes, and keep new ones under `namespace`.

    Units:  min_tokens: fewer are neither mapped nor stored.
    Errors: EOPNOTSUPP (a layer whose cache cannot be stored), EINVAL (attached already). No
    trouble with the daemon: that is counted in `stats`.
    """
    windows_of(model.config)
    if isinstance(getattr(vars(model).get("generate"), "__self__", None), Attached):
        raise MemError(Errno.EINVAL, "this model is attached already")
    return Attached(model, client, namespace, max(1, min_tokens))


class Attached:
    """A model whose `generate` has a memory, until `detach()` or the end of the `with` block."""

    def __init__(self, model: Any, client: KvClient, namespace: str, min_tokens: int) -> None:
        self.stats = Stats()
        self._model, self._client = model, client
        self._namespace, self._min_tokens = namespace, min_tokens
        self._counting = threading.Lock()
        self._away_until = 0.0
        """0: it answered when it was last asked."""
        self._start_worker()
        self._original = self._model.generate
        self._was_own = vars(model).get("generate")
        self._make_namespace()
        self._model.generate = self._generate

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
        if vars(self._model).get("generate") == self._generate:
            if self._was_own is None:
                del self._model.generate
            else:
                self._model.generate = self._was_own
        self._worker.shutdown(wait=self._pid == os.getpid())

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is being stored; False when that takes longer."""
        storing = self._storing
        if storing is None or self._pid != os.getpid():
            return True
        if wait([storing], timeout_s).not_done:
            return False
        storing.result()  # a mistake of ours must not stay unseen
        return True

    def _start_worker(self) -> None:
        self._pid = os.getpid()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="libmem-store")
        self._storing: Future[None] | None = None

    def _make_namespace(self) -> None:
        try:
            self._client.call(MakeNamespace(self._namespace), timeout_s=_PATIENCE_S)
        except MemError as error:
            if error.errno is not Errno.EEXIST:
                self._note(error)

    def _generate(self, *args: Any, **options: Any) -> Any:
        try:
            return self._generating(args, options)
        finally:
            # The next prompt may be long in coming: nothing stays mapped until then.
            self._client.post_released()

    def _generating(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        request = read_request(self._model, args, options)
        start = self._start(request) if request is not None else None
        if request is None or start is None:
            self.stats.passed_through += request is None
            return self._original(*args, **options)
        clock = _FirstToken()
        criteria = StoppingCriteriaList([*(options.get("stopping_criteria") or []), clock])
        ours = {**options, "past_key_values": start.cache, "stopping_criteria": criteria}
        try:
            result = self._original(*args, **ours)
        except MemError as error:  # no room for a new token
            self._note(error)
            if request.streams:
                raise  # what was streamed cannot be taken back
            return self._original(*args, **options)
        self._count(request, start, clock)
        self._keep(request, start, result)
        return result

    def _start(self, request: Request) -> _Start | None:
        """None where the daemon, the system or the model does not allow it."""
        if time.monotonic() < self._away_until:
            return None
        tokens = request.token_ids.shape[1]
        ids = request.token_ids[0, : request.common_tokens].tolist()
        try:
            digest = fingerprint(self._model)
            found = self._find(digest, pack_tokens(ids))
            mapped = min(found.tokens, tokens - 1)  # the last one's logits are wanted
            if mapped < self._min_tokens:
                cache = new_cache(self._model, room_tokens=request.room_tokens)
                return _Start(cache, digest, found.tokens, 0)
            cache = map_cache(
                self._client,
                found.name,
                self._model,
                tokens=mapped,
                token_ids=ids,
                rows=request.rows,
                room_tokens=request.room_tokens,
            )
            return _Start(cache, digest, found.tokens, mapped)
        except MemError as error:
            self._note(error)
            if error.errno is Errno.ENOENT:  # another store, or none was there when we began
                self._make_namespace()
            return None

    def _find(self, model_digest: str, tokens: bytes) -> PrefixReply:
        patience_s = _GLANCE_S if self._away_until else _PATIENCE_S
        request = FindPrefix(model=model_digest, tokens=tokens, under=self._namespace)
        found = self._client.call(request, timeout_s=patience_s)
        self._away_until = 0.0
        return found

    def _count(self, request: Request, start: _Start, clock: "_FirstToken") -> None:
        stats = self.stats
        prefilled = request.token_ids.shape[1] - start.mapped_tokens
        stats.hits += start.mapped_tokens > 0
        stats.tokens_mapped += start.mapped_tokens
        stats.tokens_prefilled += prefilled
        if clock.seconds is not None and prefilled >= _MEASURED_TOKENS:
            each = clock.seconds / prefilled / request.rows
            stats.prefill_s_per_token = _recent(stats.prefill_s_per_token, each)

    def _keep(self, request: Request, start: _Start, result: Any) -> None:
        """Store what is new, in the background, when computing it again would cost more."""
        if self._pid != os.getpid():  # a fork has no threads
            self._start_worker()
        if self._storing is not None and not self._storing.done():
            return  # one at a time: what is skipped comes again, or was not needed
        ids = self._known_ids(request, start.cache, result)
        new_tokens = len(ids) - start.known_tokens
        if new_tokens < self._min_tokens:
            return
        base = start.cache if isinstance(start.cache, MappedCache) else None
        try:
            rows = rows_of(self._model, start.cache, ids, tokens=len(ids), base=base)
        except MemError as error:
            self._note(error)
            return
        stats, stored_tokens = self.stats, len(rows.token_ids)
        pays = new_tokens * stats.prefill_s_per_token > stored_tokens * stats.store_s_per_token
        if rows.header.model != start.model_digest or (stats.prefill_s_per_token and not pays):
            return
        packed = pack_tokens(ids)
        name = blake3(packed).hexdigest()[:_DIGEST_CHARS]
        # Users who share a namespace cannot write over each other's cubes, nor read them.
        folder = f"{self._namespace}/{start.model_digest[:_DIGEST_CHARS]}/{os.geteuid()}"
        self._storing = self._worker.submit(self._store, f"{folder}/{name}", packed, [rows])
        if base is not None:
            base.mapped_layers[0].readers.add(self._storing)

    def _known_ids(self, request: Request, cache: Cache, result: Any) -> list[int]:
        """The tokens whose rows the cache's first row certainly holds."""
        held = cache.get_seq_length()
        if request.rows == 1:  # nothing was reordered: the answer's tokens are behind the prompt's
            sequence = (result if isinstance(result, torch.Tensor) else result.sequences)[0]
            return sequence[:held].tolist()
        return request.token_ids[0, : min(held, request.common_tokens)].tolist()

    def _store(self, name: str, tokens: bytes, handed_over: list[Rows]) -> None:
        # Taken out: the executor keeps its arguments a moment longer than the work lasts, and
        # with them a cache that everybody thinks is gone.
        try:
            self._save(name, tokens, handed_over.pop())
        finally:
            self._client.post_released()

    def _save(self, name: str, tokens: bytes, rows: Rows) -> None:
        begun = time.perf_counter()
        try:
            if not self._commit(name, tokens, rows):
                return
        except MemError as error:
            self._note(error)
            return
        each = (time.perf_counter() - begun) / len(rows.token_ids)
        with self._counting:
            self.stats.stored += 1
            self.stats.store_s_per_token = _recent(self.stats.store_s_per_token, each)

    def _commit(self, name: str, tokens: bytes, rows: Rows) -> bool:
        """False: another process stored the same."""
        try:
            save_rows(self._client, name, rows, expected_version=0)
        except MemError as error:
            if error.errno is not Errno.EVERSION:
                raise
        else:
            return True
        if self._find(rows.header.model, tokens).tokens * _TOKEN_BYTES == len(tokens):
            return False
        # What lies there is damaged, or what it stands on: it would be in the way for ever.
        self._client.call(UnlinkCube(name))
        save_rows(self._client, name, rows, expected_version=0)
        return True

    def _note(self, error: MemError) -> None:
        with self._counting:
            self.stats.problems += 1
            # Without its frames: they hold a cache.
            self.stats.last_error = error.with_traceback(None)
        if error.errno in _AWAY:
            self._away_until = time.monotonic() + _AWAY_S


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
