"""Prefetch: loaded while nobody waits, bounded, refused with a reason, gone with its session."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.calls import AdviceOutcome, AdviseReply
from libmem.abi.errors import Errno
from libmem.abi.structs import Advice, Governance, Quota
from memosd.kernel.prefetch import DEADLINE_MAX_NS
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import PAGED, Client, World, in_ram


def willneed(name: str, **fields: Any) -> c.AdviseCube:
    """The hint."""
    return c.AdviseCube(name, Advice.WILLNEED, **fields)


def absent(user: Client, names: str, **fields: Any) -> None:
    """Cubes `/n/a`, ... on disk only."""
    for name in names:
        user.blob(f"/n/{name}", bytes(PAGED), **fields)
        user.call(c.Evict(f"/n/{name}"))


def loads(world: World) -> list[bytes]:
    """The payloads that are being read, oldest first."""
    return [job.args[0] for job in world.io.jobs if job.name == "load"]


def names_of(world: World, keys: list[bytes]) -> str:
    """Of cubes `/n/a`, ... by their payloads."""
    table = world.kernel.parts.table
    found = {}
    for name in "abcdef":
        cube_id = table.find_id(f"/n/{name}")
        row = table.cube_row(cube_id) if cube_id else None
        if row is not None:
            found[row.current.payload_id] = name
    return "".join(found[key] for key in keys)


def begin(world: World, client: Client, request: c.AdviseCube) -> Any:
    """Send a hint and do all but the loads."""
    pending = client.start(request)
    world.kernel.turn()
    return pending


# -- what becomes of a hint ----------------------------------------------------------------------


def test_a_hint_is_answered_at_once_and_carried_out_later(world: World, user: Client) -> None:
    absent(user, "a")
    pending = user.start(willneed("/n/a"))
    assert pending.result().outcome is AdviceOutcome.QUEUED
    assert user.start(c.Explain("/n/a")).result().is_waiting
    world.settle()
    assert in_ram(user, "a") == "a"
    assert len(world.kernel.prefetch) == 0
    assert user.call(willneed("/n/a")).outcome is AdviceOutcome.RESIDENT
    actions = [each.action for each in user.call(c.Explain("/n/a")).decisions]
    assert actions == ["evict", "fill", "prefetch"]


def test_who_waits_hears_what_came_of_it(world: World, user: Client) -> None:
    absent(user, "a")
    pending = user.start(willneed("/n/a", wait=True))
    assert not pending.is_answered
    world.clock.advance(3_000_000)
    world.settle()
    reply: AdviseReply = pending.result()
    assert (reply.outcome, reply.loaded_bytes) == (AdviceOutcome.DONE, PAGED)
    assert reply.took_ns == 3_000_000
    assert "3.0 ms" in reply.reason


def test_a_hint_is_no_use(world: World, user: Client) -> None:
    absent(user, "a")
    before = user.call(c.Info()).reclaim
    user.call(willneed("/n/a", wait=True))
    after = user.call(c.Info()).reclaim
    assert (after.hits - before.hits, after.faults - before.faults) == (0, 1)
    assert user.stat("/n/a").behaviour.last_access_ns == 0


def test_what_cannot_be_read_says_why(world: World, user: Client) -> None:
    absent(user, "a")
    world.plan.fail("load", Errno.EIO)
    reply = user.call(willneed("/n/a", wait=True))
    assert (reply.outcome, reply.errno) == (AdviceOutcome.FAILED, Errno.EIO)
    assert user.call(c.Explain("/n/a")).decisions[-1].action == "prefetch failed"
    assert user.call(willneed("/n/a", wait=True)).outcome is AdviceOutcome.DONE


def test_what_is_unlinked_meanwhile_is_not_loaded(world: World, user: Client) -> None:
    absent(user, "ab")
    begin(world, user, willneed("/n/a", wait=True))
    second = begin(world, user, willneed("/n/b", wait=True))
    user.unlink("/n/b")
    world.settle()
    assert (second.result().outcome, second.result().errno) == (AdviceOutcome.FAILED, Errno.ENOENT)


def test_an_empty_payload_is_as_good_as_there(user: Client) -> None:
    user.blob("/n/a", b"")
    assert user.call(willneed("/n/a", wait=True)).outcome is AdviceOutcome.RESIDENT


@pytest.mark.parametrize("deadline_ns", [-1, DEADLINE_MAX_NS + 1])
def test_a_deadline_is_a_time_from_now(user: Client, deadline_ns: int) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.fails(willneed("/n/a", deadline_ns=deadline_ns), Errno.EINVAL)


# -- order and patience --------------------------------------------------------------------------


def test_one_at_a_time_the_earliest_deadline_first(world: World, user: Client) -> None:
    absent(user, "abcd")
    for name, deadline_s in (("a", 50), ("b", 30), ("c", 0), ("d", 20)):
        begin(world, user, willneed(f"/n/{name}", deadline_ns=deadline_s * SECOND_NS))
    order = ""
    while keys := loads(world):
        order += names_of(world, keys)
        assert len(keys) == 1
        world.io.finish("load")
        world.kernel.turn()
    assert order == "adbc", "the first was under way already"


def test_nothing_is_begun_while_somebody_waits_for_the_disk(world: World, user: Client) -> None:
    absent(user, "abc")
    fault = user.start(c.PinCube("/n/a"))
    begin(world, user, willneed("/n/b"))
    assert names_of(world, loads(world)) == "a"
    world.io.finish("load")
    assert names_of(world, loads(world)) == "b"
    assert fault.is_answered
    user.start(c.PinCube("/n/c"))
    assert names_of(world, loads(world)) == "bc", "whoever faults waits for no hint"
    world.settle()


def test_who_faults_on_what_is_being_loaded_joins(world: World, user: Client) -> None:
    absent(user, "a")
    hint = begin(world, user, willneed("/n/a", wait=True))
    pin = user.start(c.PinCube("/n/a"))
    assert len(loads(world)) == 1
    world.settle()
    assert (pin.errno(), hint.result().outcome) == (0, AdviceOutcome.DONE)


def test_a_deadline_that_passes_ends_it(world: World, user: Client) -> None:
    absent(user, "ab")
    begin(world, user, willneed("/n/a"))
    late = begin(world, user, willneed("/n/b", deadline_ns=SECOND_NS, wait=True))
    world.clock.advance(SECOND_NS)
    world.kernel.turn()
    assert late.result().outcome is AdviceOutcome.LATE
    world.settle()
    assert in_ram(user, "ab") == "a"


def test_a_hint_without_a_deadline_does_not_wait_for_ever(world: World, user: Client) -> None:
    absent(user, "ab")
    user.start(c.PinCube("/n/a"))
    hint = begin(world, user, willneed("/n/b", wait=True))
    world.clock.advance(60 * SECOND_NS)
    world.kernel.turn()
    world.io.finish("commit")  # of what was observed so far, which is due by then as well
    assert hint.result().outcome is AdviceOutcome.LATE
    world.settle()


def test_hints_die_with_their_session(world: World, user: Client) -> None:
    absent(user, "abc")
    other = world.client()
    begin(world, user, willneed("/n/a"))
    begin(world, other, willneed("/n/b", wait=True))
    begin(world, user, willneed("/n/c"))
    other.die()
    assert len(world.kernel.prefetch) == 2
    world.settle()
    assert in_ram(user, "abc") == "ac"


def test_nobody_is_kept_waiting_by_the_end(world: World, user: Client) -> None:
    absent(user, "ab")
    begin(world, user, willneed("/n/a", wait=True))
    hint = begin(world, user, willneed("/n/b", wait=True, deadline_ns=3600 * SECOND_NS))
    stopped = world.stop()
    assert stopped.is_done
    assert hint.result().outcome is AdviceOutcome.LATE


def test_hints_that_ended_take_no_room_while_the_disk_is_busy(world: World, user: Client) -> None:
    absent(user, "ab")
    user.start(c.PinCube("/n/a"))
    for _ in range(1000):
        begin(world, user, willneed("/n/b", deadline_ns=1))
        world.clock.advance(1)
        world.kernel.turn()
    assert len(world.kernel.prefetch) == 0
    assert len(world.kernel.prefetch._queue) < 200
    world.settle()


def test_many_that_end_at_once_are_all_answered(make_world: MakeWorld) -> None:
    world = make_world(prefetches_per_session=1000, ram_budget_bytes=1000 * PAGED)
    user = world.client()
    user.make("/n")
    absent(user, "ab")
    user.start(c.PinCube("/n/a"))
    hints = [begin(world, user, willneed("/n/b", wait=True)) for _ in range(250)]
    user.unlink("/n/b")
    world.settle()
    assert {hint.result().errno for hint in hints} == {Errno.ENOENT}
    assert len(world.kernel.prefetch) == 0


# -- bounds --------------------------------------------------------------------------------------


def test_hints_of_a_session_are_bounded(make_world: MakeWorld) -> None:
    world = make_world(prefetches_per_session=2)
    user, other = world.client(), world.client()
    user.make("/n")
    absent(user, "abcd")
    for name in "ab":
        begin(world, user, willneed(f"/n/{name}"))
    reply = user.start(willneed("/n/c")).result()
    assert reply.outcome is AdviceOutcome.REFUSED
    assert "hints waiting" in reply.reason
    assert other.start(willneed("/n/d")).result().outcome is AdviceOutcome.QUEUED
    world.settle()
    assert in_ram(user, "abcd") == "abd"


def test_hints_get_what_is_below_the_low_watermark(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=10 * PAGED, ram_low=0.41)
    user = world.client()
    user.make("/n")
    absent(user, "abcdef")
    outcomes = [begin(world, user, willneed(f"/n/{name}")).result().outcome for name in "abcdef"]
    assert outcomes.count(AdviceOutcome.QUEUED) == 4, "promised bytes count too"
    world.settle()
    assert in_ram(user, "abcdef") == "abcd"


def test_what_is_about_to_be_given_back_is_room(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=2 * PAGED, ram_low=0.5, free_at_once_bytes=0)
    user = world.client()
    user.make("/n")
    absent(user, "a")
    user.blob("/n/b", bytes(PAGED))
    user.start(c.Evict("/n/b"))
    assert [job.name for job in world.io.jobs] == ["discard"], "charged until it is done"
    assert user.start(willneed("/n/a")).result().outcome is AdviceOutcome.QUEUED
    world.settle()
    assert in_ram(user, "ab") == "a"


def test_what_was_used_lately_does_not_go_for_a_hint(small: World, owner: Client) -> None:
    absent(owner, "e")
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    reply = owner.call(willneed("/n/e", wait=True))
    assert reply.outcome is AdviceOutcome.REFUSED
    assert "of more use" in reply.reason
    small.clock.advance(20 * SECOND_NS)
    assert owner.call(willneed("/n/e", wait=True)).outcome is AdviceOutcome.DONE


def test_the_further_the_deadline_the_longer_others_must_have_been_idle(
    small: World, owner: Client
) -> None:
    absent(owner, "e")
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    small.clock.advance(20 * SECOND_NS)
    for deadline_s, wanted in ((30, AdviceOutcome.REFUSED), (10, AdviceOutcome.DONE)):
        request = willneed("/n/e", wait=True, deadline_ns=deadline_s * SECOND_NS)
        assert owner.call(request).outcome is wanted


@pytest.mark.parametrize(("priority", "wanted"), [(40, "refused"), (60, "done")])
def test_priority_comes_before_idleness(
    small: World, owner: Client, priority: int, wanted: str
) -> None:
    absent(owner, "e", governance=Governance(priority=priority))
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    small.clock.advance(20 * SECOND_NS if wanted == "refused" else 0)
    assert owner.call(willneed("/n/e", wait=True)).outcome == wanted


def test_more_than_the_namespace_may_hold_is_refused(world: World, user: Client) -> None:
    absent(user, "a")
    world.root.call(c.SetQuota("/n", Quota(ram_bytes=PAGED - 1)))
    reply = user.call(willneed("/n/a", wait=True))
    assert reply.outcome is AdviceOutcome.REFUSED
    assert "may ever hold" in reply.reason


def test_a_repeated_refusal_is_one_decision(small: World, owner: Client) -> None:
    absent(owner, "e")
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    for _ in range(5):
        assert owner.call(willneed("/n/e")).outcome is AdviceOutcome.REFUSED
    actions = [each.action for each in owner.call(c.Explain("/n/e")).decisions]
    assert actions.count("prefetch refused") == 1


def test_somebody_may_object(world: World, user: Client) -> None:
    absent(user, "a")
    world.kernel.prefetch.object_to = lambda cube, need: f"{need} bytes of {cube.row.name}"
    reply = user.call(willneed("/n/a", wait=True))
    assert (reply.outcome, reply.reason) == (AdviceOutcome.REFUSED, f"{PAGED} bytes of /n/a")


# -- the other hints -----------------------------------------------------------------------------


def test_cold_counts_once_the_holder_lets_go(small: World, owner: Client) -> None:
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    handle = owner.call(c.PinCube("/n/c")).handle
    reply = owner.call(c.AdviseCube("/n/c", Advice.COLD))
    assert "once it is let go" in reply.reason
    owner.call(c.UnpinCube(handle))
    owner.blob("/n/d", bytes(PAGED))
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abcde") == "abde"
    assert owner.read("/n/c") == bytes(PAGED)
    owner.blob("/n/f", bytes(PAGED))
    assert "c" in in_ram(owner, "abcdef"), "it was cold once"


def test_willneed_takes_cold_back(small: World, owner: Client) -> None:
    for name in "abc":
        owner.blob(f"/n/{name}", bytes(PAGED))
    for advice in (Advice.COLD, Advice.SEQUENTIAL, Advice.WILLNEED):
        owner.call(c.AdviseCube("/n/c", advice))
    for name in "de":
        owner.blob(f"/n/{name}", bytes(PAGED))
    assert in_ram(owner, "abcde") == "bcde"


def test_dontneed_tells_what_it_freed(user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    reply = user.call(c.AdviseCube("/n/a", Advice.DONTNEED))
    assert (reply.outcome, reply.freed_bytes) == (AdviceOutcome.DONE, PAGED)
    again = user.call(c.AdviseCube("/n/a", Advice.DONTNEED))
    assert (again.reason, again.freed_bytes) == ("not in RAM", 0)
