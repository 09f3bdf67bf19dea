"""Embedding: vectors for what the index has without one, and for what somebody asks.

Follows the index as the indexer follows the log: whatever waits there is fetched in batches, given
to a worker as a job, and what comes back is kept. No write waits for it and nothing is queued
here, so a crash of anybody loses nothing: what has no vector waits still. A batch that fails is
halved until the text that does it stands alone; that one is found by its words until the next
boot. One that overruns the time limit is cut to what fits into it by now, and a text that does so
alone has one more chance. Kernel thread only.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexPassage, IndexVectors
from libmem.abi.jobs import EmbedRequest, EmbedResult, JobClass
from libmem.abi.state import RecallStat
from memosd.kernel.indexer import Indexer
from memosd.kernel.jobs import Job, Jobs
from memosd.kernel.pace import Pace
from memosd.kernel.timers import Timers
from memosd.kernel.wait import Completion, detach

__all__ = ["Embedding", "QueryVector"]

_BATCH: Final = 64
"""Passages of a job."""
_AT_ONCE: Final = 2
"""Batches under way: one is worked on while the next lies ready."""
_RETRY_NS: Final = 1_000_000_000
_VALUE_BYTES: Final = 4
_DIMENSIONS_MAX: Final = 1 << 16
_TRANSIENT: Final = (Errno.EAGAIN, Errno.EOPNOTSUPP, Errno.ESHUTDOWN)
"""What says nothing of the texts."""


class QueryVector:
    """The vector of a query, on its way."""

    def __init__(self, job: Job) -> None:
        self._job = job

    async def is_there_within(self, timers: Timers, delay_ns: int) -> bool:
        """Wait for it, or for its failure, so long at most."""
        woken = Completion[None]()

        def wake() -> None:
            if not woken.is_done:
                woken.resolve(None)

        timer = timers.after(delay_ns, wake)
        self._job.done.on_done(wake)
        await woken
        timer.cancel()
        return self._job.done.is_done

    def result(self) -> IndexVectors:
        """Once it is there. Errors: whatever the job failed with; EIO, it is no vector."""
        return _vectors(self._job.done.result(), 1)[0]

    @property
    def job(self) -> Job:
        return self._job

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._job.cancel()


class Embedding:
    """See the head of this file."""

    def __init__(self, indexer: Indexer, jobs: Jobs, timers: Timers) -> None:
        self._indexer = indexer
        self._jobs = jobs
        self._timers = timers
        self._in_hand: set[int] = set()
        self._pace = Pace(jobs.run_max_ns)
        self._overran: set[int] = set()
        """Passages that overran the time limit alone, once."""
        self._refused: set[int] = set()
        self._refusal = ""
        """Why the last of them."""
        self._newest = 0
        """The turn of the newest worker that any vector came from."""
        self._halves: list[list[IndexPassage]] = []
        """Batches that failed, to be tried again in parts."""
        self._running = 0
        self._is_retrying = False
        self._problem = ""
        indexer.on_applied.append(self.kick)

    def stat(self) -> RecallStat:
        """How far it is, for `info`."""
        counts = self._indexer.index.counts
        return RecallStat(
            embedder=counts.model,
            passages=counts.passages,
            waiting=counts.waiting,
            problem=self._jobs.problem or self._problem,
        )

    @property
    def problem(self) -> str:
        """Why a search may have no vector, for people; empty when all is well."""
        return self._jobs.problem

    def of_query(self, text: str, uid: int) -> QueryVector:
        """Ask for the vector of a user's query, on that user's account.

        Errors: EAGAIN, EOPNOTSUPP (there is no embedder).
        """
        request = EmbedRequest(texts=(text,), has_pieces=False)
        return QueryVector(self._jobs.submit(JobClass.QUERY, uid, request))

    async def use(self, model: str, job: Job) -> None:
        """A job made vectors of this model; where the index has others', they are made anew.

        Workers load what lies in the model's folder when they begin, so the newest has what is
        meant; one that has another is replaced. Errors: EAGAIN (that one made these), the index's.
        """
        index = self._indexer.index
        if model != index.counts.model and job.turn < self._newest:
            reason = "its model is not the one that newer workers have"
            self._jobs.replace_worker(job, reason)
            raise MemError(Errno.EAGAIN, f"a worker is replaced: {reason}")
        self._newest = max(self._newest, job.turn)
        if model != index.counts.model:
            await self._indexer.ask(index.use_model, model)
            self._refused.clear()  # what one model cannot take another may
            self._overran.clear()
            self.kick()

    def kick(self) -> None:
        """There may be something to do."""
        if not self._jobs.is_possible:
            return
        if self._indexer.index.counts.passages:
            self._jobs.call_up()  # before the first query comes: to load a model takes seconds
        if self._running < _AT_ONCE and not self._is_retrying:
            self._running += 1
            detach(self._run()).on_done(self._stopped)

    def _stopped(self) -> None:
        self._running -= 1

    async def _run(self) -> None:
        try:
            while batch := await self._next():
                self.kick()
                await self._embed(batch)
                self._problem = self._refusals()
        except Exception as error:
            self._problem = f"no vectors are made: {error}"
            self._retry()
            if not isinstance(error, MemError):
                raise

    def _retry(self) -> None:
        if not self._is_retrying:
            self._is_retrying = True
            self._timers.after(_RETRY_NS, self._try_again)

    def _try_again(self) -> None:
        self._is_retrying = False
        self.kick()

    def _refusals(self) -> str:
        count = len(self._refused)
        what = f"{count} passages could not be embedded; words find them"
        return f"{what}; the last one: {self._refusal}" if count else ""

    async def _next(self) -> list[IndexPassage]:
        """A batch that is in hand from now on; empty where there is nothing to do."""
        index = self._indexer.index
        if self._halves:
            batch = self._cut(self._halves.pop())
        elif index.counts.waiting > len(self._in_hand):
            skipped = self._in_hand | self._refused
            found = await self._indexer.ask(index.waiting, _BATCH, self._pace.characters, skipped)
            # Somebody else may have asked at the same time.
            batch = [passage for passage in found if passage.number not in self._in_hand]
        else:
            batch = []
        self._in_hand.update(passage.number for passage in batch)
        return batch

    async def _embed(self, batch: list[IndexPassage]) -> None:
        try:
            job = self._submit(batch)
            vectors = _vectors(await job.done, len(batch))
            self._pace.learn(vectors[0].model, _characters(batch), job.took_ns)
            await self._keep(batch, vectors, job)
        except MemError as error:
            if error.errno in _TRANSIENT:
                self._halves.append(batch)  # as small as it is by now
                raise
            self._part(batch, error)
        finally:
            self._in_hand.difference_update(passage.number for passage in batch)

    def _submit(self, batch: list[IndexPassage]) -> Job:
        """Errors: EAGAIN, whatever it is: no text is to blame for it."""
        request = EmbedRequest(texts=tuple(passage.text for passage in batch))
        try:
            return self._jobs.submit(JobClass.EMBED, batch[0].namespace, request)
        except MemError as error:
            raise MemError(Errno.EAGAIN, error.message) from None

    async def _keep(self, batch: list[IndexPassage], vectors: list[IndexVectors], job: Job) -> None:
        """Errors: EINVAL (they are no vectors), EAGAIN (all else: no text is to blame for it)."""
        kept = {passage.number: rows for passage, rows in zip(batch, vectors, strict=True)}
        try:
            await self.use(vectors[0].model, job)
            await self._indexer.ask(self._indexer.index.keep, kept)
        except MemError as error:
            if error.errno is Errno.EINVAL:
                raise
            raise MemError(Errno.EAGAIN, error.message) from None

    def _part(self, batch: list[IndexPassage], error: MemError) -> None:
        number, is_late = batch[0].number, error.errno is Errno.ETIMEDOUT
        if is_late:
            self._pace.overran(_characters(batch))
        if len(batch) > 1:
            middle = len(batch) // 2
            self._halves += [batch[middle:], batch[:middle]]
        elif is_late and number not in self._overran:
            self._overran.add(number)  # the machine may have been at fault
            self._halves.insert(0, batch)
        else:
            self._refused.add(number)
            self._refusal = error.message

    def _cut(self, batch: list[IndexPassage]) -> list[IndexPassage]:
        """The beginning of a batch that may be too long by now; the rest waits its turn."""
        left, end = self._pace.characters - len(batch[0].text), 1
        while end < len(batch) and (left := left - len(batch[end].text)) >= 0:
            end += 1
        if end < len(batch):
            self._halves.append(batch[end:])
        return batch[:end]


def _characters(batch: Sequence[IndexPassage]) -> int:
    return sum(len(passage.text) for passage in batch)


def _vectors(body: bytes, texts: int) -> list[IndexVectors]:
    """What a worker returned, text by text. Errors: EIO, it is not what was asked for."""
    try:
        result = msgspec.msgpack.decode(body, type=EmbedResult)
    except msgspec.DecodeError as error:
        raise MemError(Errno.EIO, f"a worker returned no vectors: {error}") from None
    width = result.dimensions * _VALUE_BYTES
    rows = sum(1 + pieces for pieces in result.pieces)
    is_sound = (
        len(result.pieces) == texts
        and 0 < result.dimensions <= _DIMENSIONS_MAX
        and min(result.pieces, default=0) >= 0
        and rows * width == len(result.vectors)
    )
    if not is_sound:
        raise MemError(Errno.EIO, "a worker returned vectors of another shape than asked for")
    vectors, at = [], 0
    for pieces in result.pieces:
        end = at + (1 + pieces) * width
        values = result.vectors[at:end]
        vectors.append(IndexVectors(result.model, result.dimensions, values))
        at = end
    return vectors
