"""Heat: what is observed and decided, shown by stat, log and explain, kept without writes."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Advice, Behaviour, Durability, TierName
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import KIB, Client, World

PAGED = 8 * KIB


def actions(user: Client, name: str) -> list[str]:
    """What was decided about a cube, oldest first."""
    return [decision.action for decision in user.call(c.Explain(name=name)).decisions]


def test_every_use_is_counted(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    assert user.stat("/n/a").behaviour == Behaviour()
    user.read("/n/a")
    user.mapped("/n/a")
    user.call(c.Evict(name="/n/a"))
    world.clock.advance(SECOND_NS)
    user.mapped("/n/a")
    assert user.stat("/n/a").behaviour == Behaviour(
        reads=1, maps=2, faults=1, evictions=1, last_access_ns=world.clock.wall_ns()
    )


def test_reading_writes_nothing(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    before = world.store.commits
    for _ in range(100):
        user.read("/n/a")
        user.stat("/n/a")
    assert world.store.commits == before
    world.pass_time(world.parameters.heat_flush_ns)
    assert world.store.commits == before + 1, "all in one commit, in its time"
    world.pass_time(10 * world.parameters.heat_flush_ns)
    assert world.store.commits == before + 1, "nothing new, nothing written"


def test_observations_survive_a_restart_up_to_the_last_flush(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    user.read("/n/a")
    world.pass_time(world.parameters.heat_flush_ns)
    user.read("/n/a")
    world.crash()
    user = world.client()
    assert user.stat("/n/a").behaviour.reads == 1
    assert actions(user, "/n/a") == ["evict", "fill"]


def test_an_orderly_end_keeps_the_last_observation(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    user.read("/n/a")
    world.stop()
    world.crash()
    assert world.client().stat("/n/a").behaviour.reads == 1


def test_a_full_disk_does_not_keep_the_daemon_from_ending(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    user.read("/n/a")
    world.store.fail_commit(Errno.ENOSPC)
    world.stop().result()
    world.crash()
    assert world.client().stat("/n/a").behaviour.reads == 0


def test_observations_belong_to_the_cube_not_to_its_name(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    user.read("/n/a")
    user.call(c.RenameCube(name="/n/a", new_name="/n/b"))
    user.write("/n/a", b"y")
    assert user.stat("/n/b").behaviour.reads == 1
    assert user.stat("/n/a").behaviour.reads == 0
    world.pass_time(world.parameters.heat_flush_ns)
    user.unlink("/n/b")
    user.write("/n/b", b"z")
    assert user.stat("/n/b").behaviour == Behaviour()


def test_a_damaged_observation_starts_anew(world: World, user: Client) -> None:
    cube_id = user.write("/n/a", b"x").id
    user.read("/n/a")
    world.pass_time(world.parameters.heat_flush_ns)
    world.damage("heat", cube_id)
    assert user.stat("/n/a").behaviour == Behaviour()
    assert user.read("/n/a") == b"x"
    assert user.stat("/n/a").behaviour.reads == 1


def test_what_is_observed_of_the_gone_is_not_kept(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    mapping = user.start(c.MmapCube(name="/n/a"))
    user.start(c.UnlinkCube(name="/n/a"))
    world.settle()
    assert mapping.errno() != 0
    world.pass_time(world.parameters.heat_flush_ns)
    assert list(world.kernel.parts.table.ledger.scan("heat", b"")) == []


# -- decisions -----------------------------------------------------------------------------------


def test_every_decision_is_recorded_with_its_numbers(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 * PAGED)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(PAGED), durability=Durability.CACHE)
    user.call(c.MigrateCube(name="/n/a", tier=TierName.DISK))
    user.mapped("/n/a")
    user.blob("/n/b", bytes(4 * PAGED))
    assert actions(user, "/n/a") == ["write-back", "evict", "migrate", "fill", "evict"]
    *_, fill, evict = user.call(c.Explain(name="/n/a")).decisions
    assert fill.reason == "page file"
    assert fill.numbers["size_bytes"] == PAGED
    assert evict.reason == "direct reclaim"
    assert evict.numbers == {
        "freed_bytes": PAGED,
        "used_bytes": PAGED,
        "budget_bytes": 4 * PAGED,
        "need_bytes": 4 * PAGED,
        "free_bytes": 3 * PAGED,
    }
    assert evict.time_ns == world.clock.wall_ns()


def test_only_the_latest_decisions_are_kept(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    for _ in range(20):
        user.call(c.MigrateCube(name="/n/a", tier=TierName.DISK))
        user.call(c.MigrateCube(name="/n/a", tier=TierName.RAM))
    kept = actions(user, "/n/a")
    assert len(kept) == 16
    assert kept[-2:] == ["fill", "migrate"]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("small", "on disk, in the table"),
        ("paged", "on disk, in a page file"),
        ("clean", "in RAM (clean, also on disk); evictable, priority 50"),
        ("dirty", "in RAM (dirty, to be written back); evictable"),
        ("held", "held by 1 pin and 2 mappings"),
    ],
)
def test_explain_says_where_a_payload_is(world: World, user: Client, state: str, told: str) -> None:
    size = 10 if state == "small" else PAGED
    user.blob("/n/a", bytes(size), durability="cache" if state == "dirty" else None)
    if state == "paged":
        user.call(c.Evict(name="/n/a"))
    if state == "held":
        user.call(c.PinCube(name="/n/a"))
        for _ in range(2):
            user.call(c.MmapCube(name="/n/a"))
    assert told in user.call(c.Explain(name="/n/a")).residency


def test_the_log_shows_the_latest_decisions_over_all_cubes(world: World, user: Client) -> None:
    for name in "abc":
        user.blob(f"/n/{name}", bytes(PAGED))
        user.call(c.AdviseCube(name=f"/n/{name}", advice=Advice.DONTNEED))
    shown = user.call(c.Log(limit=2)).decisions
    assert [(name, decision.action) for name, decision in shown] == [
        ("/n/c", "evict"),
        ("/n/b", "evict"),
    ]
    gone = user.stat("/n/b").id
    user.unlink("/n/b")
    assert [name for name, _ in user.call(c.Log()).decisions] == ["/n/c", "/n/a"]
    names = [name for name, _ in world.root.call(c.Log()).decisions]
    assert names == ["/n/c", gone.hex(), "/n/a"]
