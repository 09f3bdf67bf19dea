"""Embedding: what waits gets its vectors, whatever becomes of a batch."""

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexDocument
from libmem.abi.jobs import EmbedRequest, EmbedResult, JobClass
from memosd.kernel.embedding import Embedding
from memosd.kernel.timers import Timers
from memosd.kernel.wait import Completion, spawn
from tests.kernel.fakeindex import FakeIndex
from tests.kernel.fakes import SECOND_NS, FakeClock

MODEL = "ab" * 32
OTHER = "cd" * 32


class SentJob:
    """A job that a test answers."""

    def __init__(self, job_class: JobClass, request: EmbedRequest) -> None:
        self.job_class, self.request = job_class, request
        self.done: Completion[bytes] = Completion()
        self.is_cancelled = False
        self.took_ns = self.turn = 1

    def cancel(self) -> None:
        self.is_cancelled = True

    @property
    def characters(self) -> int:
        return sum(map(len, self.request.texts))

    def answer(self, model: str = MODEL, dimensions: int = 2, took_ns: int = 1) -> None:
        self.took_ns = took_ns
        pieces = tuple(text.count(".") for text in self.request.texts)
        rows = sum(1 + count for count in pieces)
        values = struct.pack(f"<{rows * dimensions}f", *([0.5] * (rows * dimensions)))
        result = EmbedResult(model, dimensions, pieces, values)
        self.done.resolve(msgspec.msgpack.encode(result))


class FakeJobs:
    """The queue, in a test's hands."""

    def __init__(self) -> None:
        self.sent: list[SentJob] = []
        self.replaced: list[int] = []
        self.is_possible = True
        self.is_called_up = False
        self.problem = ""
        self.failure: MemError | None = None
        self.run_max_ns = 60 * SECOND_NS

    def call_up(self) -> None:
        self.is_called_up = True

    def submit(self, job_class: JobClass, namespace: int, request: EmbedRequest) -> SentJob:
        if self.failure is not None:
            raise self.failure
        job = SentJob(job_class, request)
        self.sent.append(job)
        return job

    def replace_worker(self, job: SentJob, reason: str) -> None:
        self.replaced.append(job.turn)

    def take(self) -> SentJob:
        return self.sent.pop(0)


class FakeIndexer:
    """An indexer whose index answers at once."""

    def __init__(self) -> None:
        self.index = FakeIndex()
        self.on_applied: list[object] = []

    async def ask(self, work: object, *args: object) -> object:
        return work(*args)  # type: ignore[operator]


class World:
    """Embedding over fakes."""

    def __init__(self) -> None:
        self.clock, self.jobs, self.indexer = FakeClock(), FakeJobs(), FakeIndexer()
        self.timers = Timers(self.clock)
        self.written = 0
        self.index = self.indexer.index
        self.embedding = Embedding(self.indexer, self.jobs, self.timers)  # type: ignore[arg-type]

    def write(self, texts: Sequence[str]) -> None:
        known = self.written
        self.written += len(texts)
        documents = [
            IndexDocument(1, (known + at).to_bytes(16, "big"), 1, f"/n/{known + at}", text)
            for at, text in enumerate(texts)
        ]
        self.index.apply(1, documents, [])
        self.embedding.kick()

    def pass_time(self, by_ns: int) -> None:
        self.clock.advance(by_ns)
        self.timers.run_due()

    def answer_all(self) -> None:
        while self.jobs.sent:
            self.jobs.take().answer()


@pytest.fixture
def world() -> World:
    return World()


def test_what_waits_gets_its_vectors(world: World) -> None:
    world.write(["one", "two. and three."])
    job = world.jobs.take()
    assert job.job_class is JobClass.EMBED
    assert job.request == EmbedRequest(texts=("one", "two. and three."))
    job.answer()
    sizes = [len(rows.values) for rows in world.index.vectors.values()]
    assert sizes == [8, 24]
    assert world.index.counts == (2, 0, MODEL)
    assert world.embedding.stat().waiting == 0
    assert world.jobs.sent == []


def test_one_batch_lies_ready_while_another_is_worked_on(world: World) -> None:
    world.write([f"text {number}" for number in range(200)])
    assert len(world.jobs.sent) == 2
    first, second = world.jobs.sent
    assert not set(first.request.texts) & set(second.request.texts)
    world.answer_all()
    assert world.index.counts.waiting == 0


def test_what_is_written_meanwhile_follows(world: World) -> None:
    world.write(["one"])
    world.write(["two"])
    world.answer_all()
    assert world.index.counts == (2, 0, MODEL)


def test_another_model_makes_all_wait_again(world: World) -> None:
    world.write(["one", "two"])
    world.answer_all()
    world.write(["three"])
    world.jobs.take().answer(OTHER)
    while world.jobs.sent:
        world.jobs.take().answer(OTHER)
    assert {rows.model for rows in world.index.vectors.values()} == {OTHER}
    assert world.index.counts == (3, 0, OTHER)


def test_a_text_that_cannot_be_embedded_stops_no_other(world: World) -> None:
    world.write(["good", "bad", "fine", "sound"])
    while world.jobs.sent:
        job = world.jobs.take()
        if "bad" in job.request.texts:
            job.done.fail(MemError(Errno.EIO, "the worker died twice"))
        else:
            job.answer()
    assert world.index.counts.waiting == 1
    assert len(world.index.vectors) == 3
    assert "1 passages could not be embedded" in world.embedding.stat().problem
    world.index.apply(2, [], [(1).to_bytes(16, "big")])  # the bad one is gone
    world.write(["more"])
    world.answer_all()
    assert world.index.counts.waiting == 0


@pytest.mark.parametrize("errno", [Errno.EAGAIN, Errno.ESHUTDOWN])
def test_what_passes_is_tried_again(world: World, errno: Errno) -> None:
    world.write(["one"])
    world.jobs.take().done.fail(MemError(errno, "no worker"))
    assert "no worker" in world.embedding.stat().problem
    assert world.jobs.sent == []
    world.pass_time(SECOND_NS)
    world.answer_all()
    assert world.embedding.stat().problem == ""
    assert world.index.counts.waiting == 0


@pytest.mark.parametrize("errno", [Errno.ENOSPC, Errno.EIO, Errno.ENOMEM])
def test_no_text_is_to_blame_for_an_index_that_cannot_keep(world: World, errno: Errno) -> None:
    world.write(["one", "two"])
    world.index.failure = MemError(errno, "of the index")
    world.jobs.take().answer()
    assert "of the index" in world.embedding.stat().problem
    world.pass_time(SECOND_NS)
    world.index.failure = None
    world.pass_time(SECOND_NS)
    world.answer_all()
    assert world.index.counts == (2, 0, MODEL)
    assert world.embedding.stat().problem == ""


def test_a_damaged_index_is_asked_again(world: World) -> None:
    world.index.failure = MemError(Errno.EAGAIN, "the index is damaged and will be rebuilt")
    world.index.counts = world.index.counts._replace(waiting=1)
    world.embedding.kick()
    assert world.jobs.sent == []
    world.index.failure = None
    world.write(["one"])
    world.pass_time(SECOND_NS)
    world.answer_all()
    assert world.index.counts == (1, 0, MODEL)


@pytest.mark.parametrize("errno", [Errno.ENOSPC, Errno.EIO])
def test_no_text_is_to_blame_for_an_index_that_keeps_nothing(world: World, errno: Errno) -> None:
    world.write(["one", "two"])
    world.index.failure = MemError(errno, "the disk")
    world.jobs.take().answer()
    assert world.jobs.sent == []
    assert "the disk" in world.embedding.stat().problem
    world.index.failure = None
    world.pass_time(SECOND_NS)
    world.answer_all()
    assert world.index.counts == (2, 0, MODEL)
    assert world.embedding.stat().problem == ""


def test_what_nobody_expected_is_tried_again(world: World, surprises: list[Any]) -> None:
    world.write(["one"])
    world.index.failure = MemoryError()  # type: ignore[assignment]
    world.jobs.take().answer()
    assert len(surprises) == 1
    surprises.clear()
    world.index.failure = None
    world.pass_time(SECOND_NS)
    world.answer_all()
    assert world.index.counts == (1, 0, MODEL)


def test_a_worker_is_called_before_anybody_asks(world: World) -> None:
    world.embedding.kick()
    assert not world.jobs.is_called_up, "there is nothing to search"
    world.write(["one"])
    world.answer_all()
    world.jobs.is_called_up = False
    world.embedding.kick()
    assert world.jobs.is_called_up


def test_a_query_by_another_model_makes_all_wait_again(world: World) -> None:
    world.write(["one", "two"])
    world.answer_all()
    coming = world.embedding.of_query("what", 7)
    world.jobs.take()
    spawn(world.embedding.use(MODEL, coming.job))
    assert world.jobs.sent == []
    spawn(world.embedding.use(OTHER, coming.job))
    while world.jobs.sent:
        world.jobs.take().answer(OTHER)
    assert world.index.counts == (2, 0, OTHER)


def test_workers_with_two_models_do_not_undo_each_others_work(world: World) -> None:
    """A model's folder was replaced: who began before has the old one."""
    world.write([f"text {number}" for number in range(300)])
    world.jobs.take().answer(MODEL)
    rounds = 0
    while world.jobs.sent and rounds < 100:
        rounds += 1
        job = world.jobs.take()
        is_old = rounds % 2 == 0 and not world.jobs.replaced
        job.turn = 2 if is_old else 3
        job.answer(MODEL if is_old else OTHER)
        if not world.jobs.sent:
            world.pass_time(SECOND_NS)
    assert world.jobs.replaced == [2]
    assert world.index.counts == (300, 0, OTHER)


def test_without_an_embedder_nothing_is_sent(world: World) -> None:
    world.jobs.is_possible = False
    world.jobs.problem = "there is no embedder"
    world.write(["one"])
    assert world.jobs.sent == []
    assert world.embedding.stat().problem == "there is no embedder"


RESULTS = [
    b"",
    b"\xc1",
    msgspec.msgpack.encode(EmbedResult(MODEL, 2, (), b"")),
    msgspec.msgpack.encode(EmbedResult(MODEL, 2, (0, 0), b"\0" * 16)),
    msgspec.msgpack.encode(EmbedResult(MODEL, 2, (-1,), b"")),
    msgspec.msgpack.encode(EmbedResult(MODEL, 0, (0,), b"")),
    msgspec.msgpack.encode(EmbedResult(MODEL, -2, (0,), b"")),
    msgspec.msgpack.encode(EmbedResult(MODEL, 2, (0,), b"\0" * 7)),
]


@pytest.mark.parametrize("body", RESULTS)
def test_a_result_of_another_shape_is_not_kept(world: World, body: bytes) -> None:
    world.write(["one"])
    world.jobs.take().done.resolve(body)
    assert world.index.vectors == {}
    assert "could not be embedded" in world.embedding.stat().problem


# -- the vector of a query -----------------------------------------------------------------------


def test_a_query_is_its_own_job(world: World) -> None:
    coming = world.embedding.of_query("what?", 7)
    job = world.jobs.take()
    assert (job.job_class, job.request) == (
        JobClass.QUERY,
        EmbedRequest(texts=("what?",), has_pieces=False),
    )
    job.answer()
    assert (coming.result().model, len(coming.result().values)) == (MODEL, 8)


def test_a_query_waits_so_long_and_no_longer(world: World) -> None:
    coming = world.embedding.of_query("what", 7)
    outcome: list[bool] = []

    async def wait() -> None:
        outcome.append(await coming.is_there_within(world.timers, SECOND_NS))

    spawn(wait())
    world.pass_time(SECOND_NS - 1)
    assert outcome == []
    world.pass_time(1)
    assert outcome == [False]
    world.jobs.take().answer()  # too late for this one; nothing breaks
    spawn(wait())
    assert outcome == [False, True]
