"""What of a header's governance weighs in on who goes first: priority, half-life, lifespan."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Durability, Governance, TierName
from memosd.kernel.governance import Weight, weigh
from memosd.kernel.policies.policy import Entry
from memosd.kernel.rows import CubeRow, decode_row, encode_row, seal_value
from tests.kernel.conftest import MakeWorld
from tests.kernel.devices import DeviceWorker, let_go, on_device
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import KIB, PAGED, Client, World, charge_of, in_ram

SHORT = Governance(half_life_s=1.0)
"""For cubes that nobody uses for a minute."""


@pytest.fixture
def small(make_world: MakeWorld) -> World:
    """RAM for four payloads under the default policy."""
    world = make_world(policy="default", ram_budget_bytes=4 * PAGED)
    world.client().make("/n")
    return world


def entry_of(world: World, user: Client, name: str) -> Entry:
    """What the policy of RAM knows of a cube."""
    policy = world.kernel.parts.residents.policy
    entries: dict[bytes, Entry] = policy._entries  # type: ignore[attr-defined]
    return entries[user.stat(name).id]


def soon(world: World) -> Governance:
    """In a second."""
    return Governance(expires_ns=world.clock.wall_ns() + SECOND_NS)


def exist(user: Client, names: str) -> str:
    """Which of /n/a, /n/b, ... are still there."""
    return "".join(n for n in names if user.start(c.StatCube(name=f"/n/{n}")).errno() == 0)


# -- what a policy is told -----------------------------------------------------------------------


def test_an_expiry_is_told_by_the_policies_clock(world: World) -> None:
    world.clock.advance(90 * SECOND_NS)
    at = weigh(soon(world), world.clock)
    assert at.expires_s == pytest.approx(world.clock.monotonic_ns() / 1e9 + 1)
    assert weigh(Governance(expires_ns=1), world.clock).expires_s > 0, "0 would be never"
    assert weigh(Governance(priority=7, half_life_s=2.5), world.clock) == Weight(7, 2.5, 0.0)


def test_the_policy_is_told_of_what_is_new_read_back_and_changed(world: World) -> None:
    user = world.client()
    user.make("/n")
    rules = Governance(priority=7, half_life_s=90.0, expires_ns=soon(world).expires_ns)
    told = weigh(rules, world.clock)
    user.blob("/n/a", bytes(PAGED), governance=rules)

    def known() -> Weight:
        entry = entry_of(world, user, "/n/a")
        return Weight(entry.priority, entry.half_life_s, entry.expires_s)

    assert known() == told
    user.call(c.Evict(name="/n/a"))
    user.read("/n/a")
    assert known() == told
    user.call(c.SetHeader(name="/n/a", governance=Governance(half_life_s=5.0)))
    assert known() == Weight(half_life_s=5.0)


def test_a_header_that_changes_while_its_payload_is_read_counts(world: World) -> None:
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    reading = user.start(c.ReadCube(name="/n/a"))
    changing = user.start(c.SetHeader(name="/n/a", governance=SHORT))
    world.settle()
    assert (reading.errno(), changing.errno()) == (0, 0)
    assert entry_of(world, user, "/n/a").half_life_s == SHORT.half_life_s


# -- who goes ------------------------------------------------------------------------------------


def test_of_two_equals_the_one_that_decays_sooner_goes_first(small: World, owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED), governance=SHORT if name == "d" else None)
    small.clock.advance(60 * SECOND_NS)
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abcde") == "abce"


def test_a_use_makes_up_for_decay(small: World, owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED), governance=SHORT if name in "cd" else None)
    small.clock.advance(60 * SECOND_NS)
    owner.read("/n/c")
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abcde") == "abce"


def test_a_long_half_life_outlasts_the_uses_of_others(owner: Client) -> None:
    for name in "abcd":
        half_life_s = 1e6 if name == "a" else 0.0
        owner.blob(f"/n/{name}", bytes(PAGED), governance=Governance(half_life_s=half_life_s))
    for name in "efgh":
        owner.blob(f"/n/{name}", bytes(PAGED))
    assert in_ram(owner, "abcdefgh") == "afgh"


def test_a_half_life_that_is_taken_back_counts_no_more(small: World, owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED), governance=SHORT if name == "d" else None)
    owner.call(c.SetHeader(name="/n/d", governance=Governance()))
    small.clock.advance(60 * SECOND_NS)
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abcde") == "bcde"


def test_what_has_expired_goes_first_before_it_is_swept(small: World, owner: Client) -> None:
    for name in "abcd":
        owner.blob(f"/n/{name}", bytes(PAGED), governance=soon(small) if name == "d" else None)
    small.clock.advance(SECOND_NS)
    owner.blob("/n/e", bytes(PAGED))
    assert in_ram(owner, "abce") == "abce"
    assert owner.usage("/n").usage.cubes == 5, "not swept yet"


@pytest.mark.parametrize("how", ["born", "changed"])
def test_the_disk_knows_half_lives_too(make_world: MakeWorld, how: str) -> None:
    world = make_world(policy="default")
    room_bytes = 3 * charge_of(world, PAGED) + KIB  # and for another header
    world.kernel.parts.namespaces.budget_bytes = room_bytes
    user = world.client()
    user.make("/n")
    for name in "abcd":  # for the last one there is to be an order
        rules = SHORT if name == "c" and how == "born" else None
        user.blob(f"/n/{name}", bytes(PAGED), durability=Durability.CACHE, governance=rules)
        user.call(c.Evict(name=f"/n/{name}"))
        world.clock.advance(1000)
    assert exist(user, "abcd") == "bcd"
    if how == "changed":
        user.call(c.SetHeader(name="/n/c", governance=SHORT))
    world.clock.advance(60 * SECOND_NS)
    user.blob("/n/e", bytes(PAGED))
    assert exist(user, "abcde") == "bde"


def test_the_device_knows_a_changed_header_too(make_world: MakeWorld) -> None:
    world = make_world(policy="default", device="cpu", device_budget_bytes=3 * PAGED)
    worker, user = DeviceWorker(world), world.client()
    user.make("/n")
    for name in "abcd":
        user.blob(f"/n/{name}", bytes(PAGED))
    for name in "abc":
        let_go(user, on_device(user, worker, f"/n/{name}"))
    user.call(c.SetHeader(name="/n/c", governance=SHORT))
    world.clock.advance(60 * SECOND_NS)
    let_go(user, on_device(user, worker, "/n/d"))
    tiers = {name: user.stat(f"/n/{name}").tiers for name in "abcd"}
    assert [name for name in tiers if TierName.DEVICE in tiers[name]] == ["a", "b", "d"]


# -- how it lies ---------------------------------------------------------------------------------


def test_a_half_life_outlives_the_daemon(world: World, user: Client) -> None:
    user.write("/n/a", b"x", governance=Governance(half_life_s=90.5))
    world.crash()
    user = world.client()
    assert user.stat("/n/a").governance.half_life_s == 90.5
    user.write("/n/a", b"y")
    assert user.stat("/n/a").governance.half_life_s == 90.5, "a new version says nothing of it"
    user.fails(c.SetHeader(name="/n/a", governance=Governance(half_life_s=-1.0)), Errno.EINVAL)


def test_a_row_of_before_there_were_half_lives_is_read(world: World, user: Client) -> None:
    cube_id = user.write("/n/a", b"x", governance=Governance(half_life_s=90.5)).id
    row = world.kernel.parts.table.cube_row(cube_id)
    assert row is not None
    sealed = encode_row(cube_id, row)
    body = sealed[8:]
    assert (body[0], body[-9]) == (0x9E, 0xCB), "an array of 14 that ends with a float"
    old = seal_value(cube_id, b"\x9d" + body[1:-9])
    row.half_life_s = 0.0
    assert decode_row(CubeRow, "cubes", cube_id, old) == row
