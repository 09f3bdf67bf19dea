"""Search: the query's vector, what is understood, what a caller sees and how much of it."""

import struct

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexQuestion, IndexVectors
from libmem.abi.jobs import EmbedRequest, EmbedResult, JobClass
from libmem.abi.structs import Descriptive, Governance, SearchMode
from memosd.kernel.access import Identity
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakeindex import FakePlan
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import ROOT, Client, World

MODEL = "ab" * 32
QUERY = (JobClass.QUERY,)
VECTOR = struct.pack("<2f", 0.6, 0.8)
MS = 1_000_000


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """With an embedder, whose worker is a client in the test's hands."""
    world = make_world(workers=1)
    user = world.client()
    user.make("/n")
    user.write("/n/a", b"apple apple")
    user.write("/n/b", b"apple")
    return world


@pytest.fixture
def user(world: World) -> Client:
    return world.client()


def worker_of(world: World) -> Client:
    """The newest worker process, connected."""
    worker = Client(world, Identity(ROOT, ROOT, world.workers.pids[-1]))
    worker.hello()
    return worker


def answer(worker: Client, **failure: object) -> c.JobReply:
    """Do the query that waits."""
    job = worker.call(c.TakeJob(QUERY))
    assert job.id, "no query waits"
    body = b"" if failure else msgspec.msgpack.encode(EmbedResult(MODEL, 2, (0,), VECTOR))
    worker.call(c.FinishJob(job.id, body, **failure))  # type: ignore[arg-type]
    return job


def names(reply: c.SearchReply) -> list[str]:
    return [hit.name for hit in reply.hits]


# -- the query's vector --------------------------------------------------------------------------


def test_a_search_is_ranked_with_the_vector_of_what_is_left_of_the_query(
    world: World, user: Client
) -> None:
    user.call(c.Search(query="apple", mode=SearchMode.WORDS))  # it is all indexed from now on
    world.index.use_model(MODEL)
    waiting = world.index.waiting(10, 1 << 20, set())
    world.index.keep({each.number: IndexVectors(MODEL, 2, VECTOR) for each in waiting})
    search = user.start(c.Search(query="apple"))
    world.settle()
    assert not search.is_answered
    job = answer(worker_of(world))
    world.settle()
    reply = search.result()
    assert names(reply) == ["/n/a", "/n/b"]
    assert (reply.notice, reply.understood.text) == ("", "apple")
    assert world.index.ranked_with == IndexVectors(MODEL, 2, VECTOR)
    request = msgspec.msgpack.decode(job.body, type=EmbedRequest)
    assert request == EmbedRequest(("apple",), has_pieces=False)


def test_a_query_tells_of_another_model(world: World, user: Client) -> None:
    world.index.use_model("cd" * 32)
    search = user.start(c.Search(query="apple"))
    world.settle()
    answer(worker_of(world))
    world.settle()
    reply = search.result()
    assert names(reply) == ["/n/a", "/n/b"]
    assert reply.notice == "ranked by words alone: what was searched has no vectors yet"
    assert world.index.counts == (2, 2, MODEL), "all are made anew from now on"


def test_words_decide_when_the_vector_is_late(world: World, user: Client) -> None:
    search = user.start(c.Search(query="apple", wait_ms=300))
    world.settle()
    world.pass_time(299 * MS)
    assert not search.is_answered
    world.pass_time(1 * MS)
    reply = search.result()
    assert names(reply) == ["/n/a", "/n/b"]
    assert reply.notice == "ranked by words alone: no vector within 300 ms"
    assert world.index.ranked_with is None
    # Nobody waits for it any more: the worker is not given it.
    assert worker_of(world).call(c.TakeJob(QUERY)).id == 0


def test_a_query_leaves_with_its_client(world: World, user: Client) -> None:
    user.start(c.Search(query="apple", wait_ms=60_000))
    world.settle()
    user.die()
    assert worker_of(world).call(c.TakeJob(QUERY)).id == 0


def test_searches_that_wait_are_no_watches(world: World, user: Client) -> None:
    for _ in range(20):
        user.start(c.Search(query="apple", wait_ms=60_000))
    world.settle()
    watch = user.start(c.Watch(under="/", timeout_ms=1000))
    world.settle()
    assert not watch.is_answered


def test_one_users_queries_leave_room_for_anothers(world: World, user: Client) -> None:
    sessions = [world.client() for _ in range(5)]
    crowd = [
        each.start(c.Search(query="apple", under="/n", wait_ms=60_000))
        for each in sessions
        for _ in range(60)
    ]
    world.settle()
    assert "too many jobs wait" in next(each for each in crowd if each.is_answered).result().notice
    other = world.client(2000)
    other.make("/o")
    search = other.start(c.Search(query="apple", wait_ms=60_000))
    world.settle()
    assert not search.is_answered


def test_words_decide_when_there_is_none(world: World, user: Client) -> None:
    search = user.start(c.Search(query="apple"))
    world.settle()
    answer(worker_of(world), errno=int(Errno.ENOMEM), message="out of memory")
    world.settle()
    reply = search.result()
    assert names(reply) == ["/n/a", "/n/b"]
    assert reply.notice == "ranked by words alone: out of memory"


def test_without_an_embedder_words_decide_at_once(make_world: MakeWorld) -> None:
    world = make_world(workers=0, no_workers="no embedder is configured")
    user = world.client()
    user.make("/n")
    user.write("/n/a", b"apple")
    reply = user.call(c.Search(query="apple"))
    assert names(reply) == ["/n/a"]
    assert reply.notice == "ranked by words alone: no embedder is configured"
    by_meaning = c.Search(query="apple", mode=SearchMode.MEANING)
    user.fails(by_meaning, Errno.EOPNOTSUPP)


def test_nobody_is_told_of_what_was_configured(make_world: MakeWorld) -> None:
    world = make_world(workers=0, is_words_only=True)
    user = world.client()
    user.make("/n")
    user.write("/n/a", b"apple")
    reply = user.call(c.Search(query="apple"))
    assert (names(reply), reply.notice) == (["/n/a"], "")


def test_meaning_alone_takes_no_words_instead(world: World, user: Client) -> None:
    search = user.start(c.Search(query="apple", mode=SearchMode.MEANING, wait_ms=100))
    world.settle()
    world.pass_time(100 * MS)
    assert "no vector within 100 ms" in search.failure(Errno.EAGAIN).message


@pytest.mark.parametrize("query", ["apple", "", "   "])
def test_words_alone_ask_for_no_vector(world: World, user: Client, query: str) -> None:
    mode = SearchMode.WORDS if query == "apple" else SearchMode.HYBRID
    reply = user.call(c.Search(query=query, mode=mode))
    assert reply.notice == ""
    assert len(reply.hits) == (2 if query == "apple" else 0)
    assert worker_of(world).call(c.TakeJob(QUERY)).id == 0


def test_a_vector_of_no_shape_is_none(world: World, user: Client) -> None:
    search = user.start(c.Search(query="apple"))
    world.settle()
    worker = worker_of(world)
    job = worker.call(c.TakeJob(QUERY))
    worker.call(c.FinishJob(job.id, b"\xc1"))
    world.settle()
    assert search.result().notice.startswith("ranked by words alone: a worker returned no vectors")


# -- what the index is asked ---------------------------------------------------------------------


def asked(world: World, monkeypatch: pytest.MonkeyPatch, request: c.Search) -> IndexQuestion:
    """The question that the index got."""
    seen: list[IndexQuestion] = []
    plan = world.index.plan

    def noted(question: IndexQuestion) -> FakePlan:
        seen.append(question)
        return plan(question)

    with monkeypatch.context() as patch:
        patch.setattr(world.index, "plan", noted)
        world.client().call(msgspec.structs.replace(request, mode=SearchMode.WORDS))
    return seen[0]


def test_the_index_is_asked_what_the_caller_asks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = c.Search(
        query="apple", under="/n/a", producers=("Ann",), sessions=("s",), semantic_types=("fact",),
        event_from_ns=1, event_to_ns=2, as_of_ns=3, now_ns=4, recency=0.5, half_life_s=1.5,
        importance=0.25, beside=2,
    )  # fmt: skip
    question = asked(world, monkeypatch, request)
    assert set(question.spaces.values()) == {"/n/a"}
    assert question.filter == ((), ("fact",), ("Ann",), ("s",), 1, 2, 3)
    assert question.weights == (0.5, 1_500_000_000, 0.25, 4)
    assert (question.now_ns, question.beside) == (4, 2)


def test_what_is_valid_now_is_asked_for_unless_another_time_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = asked(world, monkeypatch, c.Search(query="apple"))
    assert now.filter.valid_at_ns == world.clock.wall_ns()
    ever = asked(world, monkeypatch, c.Search(query="apple", as_of_ns=-1))
    assert ever.filter.valid_at_ns == 0


def test_what_is_known_of_a_cube_reaches_the_index(world: World, user: Client) -> None:
    described = Descriptive(
        producer="Ann", session="s", position=7, event_time_ns=1, valid_from_ns=2, valid_to_ns=3,
        semantic_type="fact",
    )  # fmt: skip
    governance = Governance(mode=0o640, priority=80)
    user.write("/n/c", b"pear", descriptive=described, governance=governance)
    user.call(c.Search(query="pear", mode=SearchMode.WORDS))
    facets = next(d.facets for d in world.index.documents.values() if d.name == "/n/c")
    assert (facets.mode, facets.priority, facets.owner) == (0o640, 80, (1000, 1000))
    assert (facets.producer, facets.session, facets.position) == ("Ann", "s", 7)
    assert (facets.event_time_ns, facets.valid_from_ns, facets.valid_to_ns) == (1, 2, 3)
    assert facets.written_ns == world.clock.wall_ns()


def test_another_header_reaches_the_index_too(world: World, user: Client) -> None:
    user.call(c.SetHeader(name="/n/a", governance=Governance(mode=0o604)))
    user.call(c.Search(query="apple", mode=SearchMode.WORDS))
    assert next(d.facets.mode for d in world.index.documents.values() if d.name == "/n/a") == 0o604


# -- what a caller sees --------------------------------------------------------------------------


def test_what_went_since_the_index_saw_it_takes_no_place(world: World, user: Client) -> None:
    for number in range(40):
        user.write(f"/n/{number:02}", b"apple apple apple")
    user.call(c.Search(query="apple", mode=SearchMode.WORDS))
    search = user.start(c.Search(query="apple", k=2, mode=SearchMode.WORDS))
    world.index_io.finish("plan")
    for number in range(40):
        user.start(c.UnlinkCube(name=f"/n/{number:02}"))
    world.kernel.turn()
    world.io.finish("commit")
    world.settle()
    assert names(search.result()) == ["/n/a", "/n/b"]


def test_what_left_the_subtree_since_the_index_saw_it_is_no_hit(world: World, user: Client) -> None:
    user.write("/n/in/a", b"apple apple apple")
    user.write("/n/in/b", b"apple")
    query = c.Search(query="apple", under="/n/in", mode=SearchMode.WORDS)
    assert names(user.call(query)) == ["/n/in/a", "/n/in/b"]
    search = user.start(query)
    world.index_io.finish("plan")
    user.start(c.RenameCube(name="/n/in/a", new_name="/n/out"))
    world.kernel.turn()
    world.io.finish("commit")
    for step in ("match", "rank"):
        world.index_io.finish(step)
    assert names(search.result()) == ["/n/in/b"]


def test_a_search_through_an_index_that_is_discarded_is_no_half_answer(
    world: World, user: Client
) -> None:
    query = c.Search(query="apple", mode=SearchMode.WORDS)
    user.call(query)
    early, late = user.start(query), user.start(query)
    world.index_io.finish("plan")
    world.index.failure = MemError(Errno.ECORRUPT, "malformed")
    world.index_io.finish("plan")
    late.failure(Errno.EAGAIN)
    world.index.failure = None
    world.index.stamp = 0
    world.index.documents.clear()
    world.settle()
    assert early.errno() == Errno.EAGAIN or len(names(early.result())) == 2
    assert len(names(user.call(query))) == 2


def test_a_budget_of_tokens_takes_the_best_that_fit(world: World, user: Client) -> None:
    user.write("/n/long", b"apple " * 100)
    reply = user.call(c.Search(query="apple", mode=SearchMode.WORDS))
    assert [hit.tokens for hit in reply.hits] == [150, 3, 2]
    for budget, expected in ((155, 3), (154, 2), (5, 2), (4, 1), (1, 0)):
        request = c.Search(query="apple", mode=SearchMode.WORDS, budget_tokens=budget)
        hits = user.call(request).hits
        assert len(hits) == expected
        assert sum(hit.tokens for hit in hits) <= budget


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"k": -1},
        {"k": 1_000_000_000},
        {"beside": -1},
        {"beside": 33},
        {"wait_ms": -1},
        {"wait_ms": 60_001},
        {"budget_tokens": -1},
        {"as_of_ns": -2},
        {"now_ns": 1 << 63},
        {"recency": 1.5},
        {"recency": float("nan")},
        {"importance": -0.1},
        {"half_life_s": 0.0},
        {"half_life_s": float("inf")},
        {"query": "a" * 10_001},
        {"under": "n"},
    ],
)
def test_what_makes_no_sense_is_refused(user: Client, wrong: dict[str, object]) -> None:
    request = msgspec.structs.replace(c.Search(query="apple"), **wrong)
    user.fails(request, Errno.EINVAL)


def test_how_far_the_vectors_are_shows_in_info(world: World, user: Client) -> None:
    user.call(c.Search(query="apple", mode=SearchMode.WORDS))
    recall = user.call(c.Info()).recall
    assert (recall.passages, recall.waiting, recall.problem) == (2, 2, "")
    worker = worker_of(world)
    job = worker.call(c.TakeJob((JobClass.EMBED,)))
    texts = msgspec.msgpack.decode(job.body, type=EmbedRequest).texts
    result = EmbedResult(MODEL, 2, (0,) * len(texts), VECTOR * len(texts))
    worker.call(c.FinishJob(job.id, msgspec.msgpack.encode(result)))
    recall = user.call(c.Info()).recall
    assert (recall.embedder, recall.waiting) == (MODEL, 0)
    assert {rows.values for rows in world.index.vectors.values()} == {VECTOR}


def test_a_damaged_cube_is_no_hit_and_no_error(world: World, user: Client) -> None:
    user.call(c.Search(query="apple", mode=SearchMode.WORDS))
    damaged = next(d.id for d in world.index.documents.values() if d.name == "/n/a")
    real = world.kernel.parts.table.cube_row

    def cube_row(cube_id: bytes) -> object:
        if cube_id == damaged:
            raise MemError(Errno.ECORRUPT, "damaged")
        return real(cube_id)

    world.kernel.parts.table.cube_row = cube_row  # type: ignore[assignment,method-assign]
    reply = user.call(c.Search(query="apple", mode=SearchMode.WORDS))
    assert names(reply) == ["/n/b"]


def test_time_spent_on_words_counts_as_waiting(world: World, user: Client) -> None:
    user.call(c.Search(query="apple", mode=SearchMode.WORDS))  # it is indexed
    search = user.start(c.Search(query="apple", wait_ms=1000))
    world.index_io.finish("plan")
    world.clock.advance(2 * SECOND_NS)
    world.settle()
    assert search.result().notice == "ranked by words alone: no vector within 1000 ms"
