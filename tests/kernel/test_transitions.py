"""Transitions: done by a worker, as the user who asked, and over exactly once."""

from pathlib import Path
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.jobs import JobClass, TransmuteRequest, TransmuteResult
from libmem.abi.structs import CubeType
from libmem.abi.transitions import PrefillRecipe, TransitionStat, TransitionState
from libmem.abi.wire import args_decoder, encode
from memosd.kernel.access import Identity
from tests.kernel.world import ROOT, USER, Client, World

SECOND_NS = 1_000_000_000
STRANGER = 2000
_request = args_decoder(TransmuteRequest)


class Worker:
    """The process that has the model, moved by a test."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pid = world.transition_workers.pids[-1]
        self.client = self.connect()

    def connect(self, transition: int = 0) -> Client:
        """A session of its; for a transition, the user's."""
        client = Client(self.world, Identity(ROOT, ROOT, self.pid))
        reply = client.start(c.Hello("worker", transition)).result()
        assert self.world.kernel.bind(reply.token, client.identity) is client.session
        return client

    def take(self) -> tuple[int, TransmuteRequest]:
        """The next job, and what it is about."""
        job = self.client.call(c.TakeJob(classes=(JobClass.TRANSMUTE,)))
        assert job.id, "there is no job"
        return job.id, _request.decode(job.body)

    def finish(self, job: int, version: int = 1) -> None:
        self.client.call(c.FinishJob(job, encode(TransmuteResult(version))))

    def die(self) -> None:
        self.world.transition_workers.finish(self.pid)
        self.client.die()
        self.world.settle()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, transition_workers=1)


@pytest.fixture
def user(world: World) -> Client:
    user = world.client()
    user.make("/n")
    user.write("/n/text", b"what is so")
    return user


def ask(user: Client, name: str = "/n/kv", *sources: str, **settings: Any) -> TransitionStat:
    return user.call(c.Transmute(name, sources or ("/n/text",), PrefillRecipe(**settings)))


def look(user: Client, number: int) -> TransitionStat:
    return user.call(c.WaitTransition(number))


def begun(world: World, user: Client) -> tuple[int, Worker, int]:
    """A transition that a worker has in hand: its number, the worker, the job."""
    number = ask(user).number
    worker = Worker(world)
    return number, worker, worker.take()[0]


def test_a_worker_gets_what_was_asked_for(world: World, user: Client) -> None:
    user.write("/n/more", b"more")
    stat = ask(user, "/n/kv", "/n/text", "/n/more@v1", is_chat=True)
    assert (stat.state, stat.sources) == (TransitionState.WAITING, ("/n/text@v1", "/n/more@v1"))
    worker = Worker(world)
    job, request = worker.take()
    assert request == TransmuteRequest(
        stat.number, "/n/kv", ("/n/text@v1", "/n/more@v1"), PrefillRecipe(is_chat=True)
    )
    assert look(user, stat.number).state is TransitionState.RUNNING
    worker.finish(job, version=3)
    over = look(user, stat.number)
    assert (over.state, over.version, over.errno) == (TransitionState.DONE, 3, 0)
    assert over.began_ns
    assert over.ended_ns


def test_its_session_is_the_users(world: World, user: Client) -> None:
    number, worker, job = begun(world, user)
    acting = worker.connect(number)
    assert acting.read("/n/text") == b"what is so"
    acting.write("/n/made", b"made", parents=("/n/text@v1",))
    assert user.stat("/n/made").governance.owner_uid == USER
    stranger = world.client(STRANGER)
    stranger.make("/closed")
    acting.fails(c.WriteCube(name="/closed/x", payload=b""), Errno.EACCES)
    acting.fails(c.SetPolicy("lru"), Errno.EPERM)
    worker.finish(job)
    assert acting.session.is_ended
    acting.fails(c.ReadCube(name="/n/text"), Errno.ESTALE)
    assert not worker.client.session.is_ended


def test_nobody_else_gets_that_session(world: World, user: Client) -> None:
    number, worker, job = begun(world, user)
    for identity in (Identity(ROOT, ROOT, 99), Identity(STRANGER, STRANGER, 98)):
        other = Client(world, identity)
        other.start(c.Hello("x", number)).failure(Errno.EPERM)
    mistaken = Client(world, worker.client.identity)
    mistaken.start(c.Hello("x", number + 1)).failure(Errno.EPERM)
    worker.finish(job)
    mistaken.start(c.Hello("x", number)).failure(Errno.EPERM)


def test_without_a_model_there_are_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    user = world.client()
    user.make("/n")
    user.write("/n/text", b"x")
    user.fails(c.Transmute("/n/kv", ("/n/text",), PrefillRecipe()), Errno.EOPNOTSUPP)
    assert user.call(c.ListTransitions()).transitions == ()


def test_what_cannot_be_is_refused_at_once(world: World, user: Client) -> None:
    stranger = world.client(STRANGER)
    stranger.make("/theirs")
    stranger.write("/theirs/text", b"secret")
    for name, sources, errno in (
        ("/n/kv", ("/theirs/text",), Errno.EACCES),
        ("/theirs/kv", ("/n/text",), Errno.EACCES),
        ("/n/kv", ("/n/none",), Errno.ENOENT),
        ("/none/kv", ("/n/text",), Errno.ENOENT),
        ("/n/kv", (), Errno.EINVAL),
        ("/n/kv@v1", ("/n/text",), Errno.EINVAL),
        ("/n/text", ("/n/text",), Errno.EINVAL),
        ("kv", ("/n/text",), Errno.EINVAL),
    ):
        user.fails(c.Transmute(name, sources, PrefillRecipe()), errno)
    user.write("/n/text", b"other")
    user.fails(c.Transmute("/n/kv", ("/n/text@v1",), PrefillRecipe()), Errno.EOUTDATED)
    assert world.transition_workers.pids == []


def test_a_worker_that_dies_once_is_replaced(world: World, user: Client) -> None:
    number, worker, _ = begun(world, user)
    acting = worker.connect(number)
    fill = acting.call(c.CreateCube(name="/n/kv", size_bytes=8192, type=CubeType.BLOB))
    assert fill.handle
    acting.die()
    worker.die()
    assert look(user, number).state is TransitionState.RUNNING
    world.pass_time(SECOND_NS)
    second = Worker(world)
    assert second.pid != worker.pid
    job, request = second.take()
    assert request.number == number
    user.fails(c.StatCube(name="/n/kv"), Errno.ENOENT)
    second.finish(job)
    assert look(user, number).state is TransitionState.DONE


def test_one_that_kills_its_workers_fails(world: World, user: Client) -> None:
    number, worker, _ = begun(world, user)
    worker.die()
    world.pass_time(SECOND_NS)
    second = Worker(world)
    second.take()
    second.die()
    stat = look(user, number)
    assert (stat.state, stat.errno) == (TransitionState.FAILED, Errno.EIO)
    assert "died twice" in stat.message


def test_where_no_worker_can_begin_nobody_waits(world: World, user: Client) -> None:
    number = ask(user).number
    pid = world.transition_workers.pids[-1]
    client = Client(world, Identity(ROOT, ROOT, pid))
    client.hello()
    client.call(c.FinishJob(0, errno=int(Errno.EINVAL), message="there is no such model"))
    world.transition_workers.finish(pid)
    stat = look(user, number)
    assert (stat.state, stat.errno) == (TransitionState.FAILED, Errno.EOPNOTSUPP)
    assert "there is no such model" in stat.message
    assert any("no such model" in notice for notice in user.call(c.Info()).notices)
    told = user.fails(c.Transmute("/n/kv", ("/n/text",), PrefillRecipe()), Errno.EOPNOTSUPP)
    assert "there is no such model" in told.message


def test_a_failure_is_told(world: World, user: Client) -> None:
    number, worker, job = begun(world, user)
    worker.client.call(c.ReportJob(number, 3, 5, "scoring", {"score": 0.5}))
    worker.client.call(c.FinishJob(job, errno=int(Errno.EMODEL), message="of another model"))
    stat = look(user, number)
    assert (stat.state, stat.errno) == (TransitionState.FAILED, Errno.EMODEL)
    assert (stat.message, stat.quality) == ("of another model", {"score": 0.5})


def test_nonsense_for_a_result_is_a_failure(world: World, user: Client) -> None:
    number, worker, job = begun(world, user)
    worker.client.call(c.FinishJob(job, b"\xc1"))
    assert look(user, number).errno == Errno.EIO


def test_a_hanging_one_is_ended(tmp_path: Path) -> None:
    world = World(tmp_path, transition_workers=1, transition_timeout_ns=5 * SECOND_NS)
    user = world.client()
    user.make("/n")
    user.write("/n/text", b"x")
    number, worker, _ = begun(world, user)
    world.pass_time(6 * SECOND_NS)
    assert look(user, number).errno == Errno.ETIMEDOUT
    assert world.transition_workers.killed == [worker.pid]


def test_progress_wakes_who_waits(world: World, user: Client) -> None:
    number, worker, job = begun(world, user)
    seen = look(user, number).changes
    waiting = user.start(c.WaitTransition(number, seen, 60_000))
    assert not waiting.is_answered
    assert worker.client.call(c.ReportJob(number, 1, 4, "training")).is_wanted
    stat = waiting.result()
    assert (stat.done, stat.total, stat.note) == (1, 4, "training")
    patient = user.start(c.WaitTransition(number, stat.changes, 2_000))
    world.pass_time(3 * SECOND_NS)
    assert patient.result().changes == stat.changes
    last = user.start(c.WaitTransition(number, stat.changes, 60_000))
    worker.finish(job)
    assert last.result().is_over
    assert user.start(c.WaitTransition(number, 1 << 40, 60_000)).result().is_over


def test_a_cancelled_one_ends_and_its_worker_hears(world: World, user: Client) -> None:
    number, worker, job = begun(world, user)
    acting = worker.connect(number)
    user.call(c.CancelTransition(number))
    assert look(user, number).state is TransitionState.CANCELED
    assert acting.session.is_ended
    assert not worker.client.call(c.ReportJob(number, 1, 2)).is_wanted
    worker.client.call(c.FinishJob(job, errno=int(Errno.ECANCELED), message="so be it"))
    user.call(c.CancelTransition(number))
    waiting = ask(user)
    user.call(c.CancelTransition(waiting.number))
    assert look(user, waiting.number).state is TransitionState.CANCELED
    assert not worker.client.call(c.TakeJob(classes=(JobClass.TRANSMUTE,))).id


def test_each_user_sees_his_own(world: World, user: Client) -> None:
    number = ask(user).number
    stranger = world.client(STRANGER)
    stranger.fails(c.WaitTransition(number), Errno.EPERM)
    stranger.fails(c.CancelTransition(number), Errno.EPERM)
    stranger.fails(c.WaitTransition(77), Errno.ENOENT)
    assert stranger.call(c.ListTransitions()).transitions == ()
    assert [stat.number for stat in world.root.call(c.ListTransitions()).transitions] == [number]
    stranger.fails(c.ReportJob(number), Errno.EPERM)
    world.root.fails(c.ReportJob(number), Errno.EPERM)


def test_listings_have_pages_and_an_end(world: World, user: Client) -> None:
    numbers = [ask(user, f"/n/kv{place}").number for place in range(5)]
    page = user.call(c.ListTransitions(limit=2))
    assert [stat.number for stat in page.transitions] == numbers[:2]
    rest = user.call(c.ListTransitions(after=page.next_after))
    assert [stat.number for stat in rest.transitions] == numbers[2:]
    assert rest.next_after == 0
    user.fails(c.ListTransitions(limit=0), Errno.EINVAL)
    user.fails(c.WaitTransition(numbers[0], timeout_ms=-1), Errno.EINVAL)


def test_one_user_has_so_many_under_way(world: World, user: Client) -> None:
    for place in range(64):
        ask(user, f"/n/kv{place}")
    user.fails(c.Transmute("/n/kv", ("/n/text",), PrefillRecipe()), Errno.EAGAIN)
    stranger = world.client(STRANGER)
    stranger.make("/s")
    stranger.write("/s/text", b"x")
    ask(stranger, "/s/kv", "/s/text")


def test_of_those_that_are_over_the_latest_are_known(world: World, user: Client) -> None:
    first = ask(user).number
    stranger = world.client(STRANGER)
    stranger.make("/s")
    stranger.write("/s/text", b"x")
    theirs = ask(stranger, "/s/kv", "/s/text").number
    stranger.call(c.CancelTransition(theirs))
    for _ in range(66):
        user.call(c.CancelTransition(ask(user).number))
    known = [stat.number for stat in user.call(c.ListTransitions(limit=1000)).transitions]
    assert len(known) == 65
    assert first in known, "it is not over"
    assert look(stranger, theirs).is_over, "another user's do not push it out"


def test_a_listing_names_a_few_sources(world: World, user: Client) -> None:
    names = tuple(f"/n/{place}" for place in range(257))
    for name in names:
        user.write(name, b"x")
    number = ask(user, "/n/kv", *names[:256]).number
    (listed,) = user.call(c.ListTransitions()).transitions
    assert listed.sources == tuple(f"{name}@v1" for name in names[:8])
    assert len(look(user, number).sources) == 256
    user.fails(c.Transmute("/n/kv", names, PrefillRecipe()), Errno.EINVAL)


def test_the_end_of_the_daemon_ends_them(world: World, user: Client) -> None:
    number, _, _ = begun(world, user)
    waiting = user.start(c.WaitTransition(number, 1 << 40, 60_000))
    world.kernel.transitions.jobs.close()
    assert waiting.result().errno == Errno.ESHUTDOWN
