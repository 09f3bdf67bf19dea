"""`min`, `low` and `high`: the sums against a recomputation, and whom reclaim takes from."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.control import Limits, TierLimits
from libmem.abi.errors import Errno, MemError
from memosd.kernel.accounts import TierAccount
from memosd.kernel.control import ROOT, Group
from memosd.kernel.protection import Sums, protected
from tests.kernel.conftest import MakeWorld
from tests.kernel.test_grants import held, put, ram, show, tier
from tests.kernel.world import KIB, PAGED, Client, World, cache, in_ram

BUDGET = 100
sizes = st.integers(0, 60)


class Tree(NamedTuple):
    """Groups by number, `/` first; each lies in one before it."""

    groups: list[Group]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any tree, with any limits, contradictory ones included."""
    groups = [Group(ROOT, "/", space=ROOT, parent=None)]
    for number in range(1, draw(st.integers(1, 8)) + 1):
        parent = groups[draw(st.integers(0, number - 1))]
        group = Group(number, f"{parent.path.rstrip('/')}/{number}", space=number, parent=parent)
        least, low, high = draw(sizes), draw(sizes), draw(sizes)
        most = draw(st.sampled_from([0, 0, 20, 50]))
        group.limits = Limits(ram=TierLimits(least, low, high, most))
        groups.append(group)
    return Tree(groups)


steps = st.lists(
    st.tuples(
        st.sampled_from(["charge", "release", "move", "shrink", "forget"]),
        st.integers(0, 8), st.integers(0, 8), st.integers(1, 30),
    ),
    max_size=40,
)  # fmt: skip


def brute(tree: Tree, charges: list[tuple[Group, int]], group: Group) -> int:
    """What lies in a group's subtree."""
    return sum(size for each, size in charges if group in each.lineage)


def refused(tree: Tree, charges: list[tuple[Group, int]], group: Group, size: int) -> Errno | None:
    for each in group.lineage:
        most = each.limits.ram.max_bytes
        if most and brute(tree, charges, each) + size > most:
            return Errno.EDQUOT
    return Errno.ENOMEM if sum(held for _, held in charges) + size > BUDGET else None


def moved(account: TierAccount, groups: tuple[Group, Group], size: int) -> Errno | None:
    """Move a charge; what it was refused with."""
    try:
        account.move(*groups, size)
    except MemError as error:
        return error.errno
    return None


@given(trees(), steps)
def test_an_account_is_the_sum_of_its_charges(
    tree: Tree, taken: list[tuple[str, int, int, int]]
) -> None:
    account = TierAccount("ram", BUDGET)
    charges: list[tuple[Group, int]] = []
    for step, first, second, size in taken:
        group = tree.groups[first % len(tree.groups)]
        if step == "charge":
            shortage = account.shortage(group, size)
            assert (shortage.errno if shortage else None) is refused(tree, charges, group, size)
            if shortage is None:
                account.charge(group, size)
                charges.append((group, size))
        elif charges:
            index = second % len(charges)
            old, held_bytes = charges.pop(index)
            if step == "release":
                account.release(old, held_bytes)
            elif step == "shrink":
                less = min(size, held_bytes - 1)
                account.shrink(old, less)
                charges.append((old, held_bytes - less))
            elif step == "move":
                expected = refused(tree, charges, group, held_bytes)
                found = moved(account, (old, group), held_bytes)
                assert found is expected
                charges.append((old if found else group, held_bytes))
            else:
                charges.append((old, held_bytes))
                account.rearrange()
        for each in tree.groups:
            assert account.used_by(each) == brute(tree, charges, each)
            assert account.own_by(each) == sum(size for one, size in charges if one is each)
        assert account.used_bytes == sum(size for _, size in charges)
        assert account.used_frames == len(charges)


@given(trees(), st.lists(st.tuples(st.integers(0, 8), st.integers(1, 20)), max_size=12))
def test_protection_is_shared_out_and_never_more_than_there_is(
    tree: Tree, charged: list[tuple[int, int]]
) -> None:
    account = TierAccount("ram", BUDGET)
    for index, size in charged:
        group = tree.groups[index % len(tree.groups)]
        if account.shortage(group, size) is None:
            account.charge(group, size)
    groups = {each.number: each for each in tree.groups if account.own_by(each)}
    own = {number: account.own_by(each) for number, each in groups.items()}
    used = {each.number: account.used_by(each) for each in tree.groups}
    found = protected(Sums("ram", BUDGET, groups, own, used), tree.groups[0], "min_bytes")
    for number, kept in found.items():
        assert 0 <= kept <= own.get(number, 0) + 1e-9
    assert found[ROOT] == 0, "nothing protects from what is above all"
    for child in tree.groups[0].children.values():
        # A group alone at the top keeps exactly what it uses of its min, whoever is in it.
        kept = sum(found.get(each.number, 0) for each in child.subtree())
        claim = min(used[child.number], child.limits.ram.min_bytes)
        assert kept <= claim + 1e-9
        claims = sum(
            min(used[each.number], each.limits.ram.min_bytes)
            for each in tree.groups[0].children.values()
        )
        if claims <= BUDGET:
            assert abs(kept - claim) < 1e-6
    within = {n for n, size in own.items() if size <= found.get(n, 0)}
    for level in account.reclaim_levels(None):
        assert not within & set(level), "what is within its min does not go for others"


def test_without_limits_all_are_one_level() -> None:
    account = TierAccount("ram", BUDGET)
    top = Group(ROOT, "/", space=ROOT, parent=None)
    for number in (1, 2):
        account.charge(Group(number, f"/{number}", space=number, parent=top), 10)
    assert account.reclaim_levels(None) == [[1, 2]]


def test_siblings_that_claim_too_much_get_their_shares() -> None:
    top = Group(ROOT, "/", space=ROOT, parent=None)
    team = Group(1, "/team", space=1, parent=top)
    team.limits = Limits(ram=TierLimits(min_bytes=30))
    members = [Group(number, f"/team/{number}", space=1, parent=team) for number in (2, 3)]
    members[0].limits = Limits(ram=TierLimits(min_bytes=20))
    members[1].limits = Limits(ram=TierLimits(min_bytes=40))
    own = {2: 20, 3: 40}
    sums = Sums("ram", BUDGET, {2: members[0], 3: members[1]}, own, {0: 60, 1: 60, **own})
    assert protected(sums, top, "min_bytes") == {0: 0, 1: 0, 2: 10, 3: 20}


# -- the kernel ----------------------------------------------------------------------------------


def test_what_is_within_its_min_stays_while_others_flood(world: World, user: Client) -> None:
    user.make("/calm")
    put(world.root, "/calm", ram(min=4 * PAGED))
    for number in range(4):
        user.blob(f"/calm/{number}", bytes(PAGED))
    for number in range(60):
        user.blob(f"/n/{number}", bytes(PAGED))
    assert held(user, "/calm") == (4 * PAGED, 4 * PAGED)
    assert tier(show(user, "/calm"), "ram").reclaims == 0
    user.blob("/calm/4", bytes(PAGED))
    user.blob("/n/last", bytes(PAGED))
    assert held(user, "/calm")[1] in (4 * PAGED, 5 * PAGED)


def test_a_group_within_its_min_may_take_from_itself(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=4 * PAGED)
    user = world.client()
    for name in ("/a", "/b"):
        user.make(name)
        put(world.root, name, ram(min=2 * PAGED))
    for name in ("/a/1", "/a/2", "/b/1", "/b/2", "/a/3"):
        user.blob(name, bytes(PAGED))
    assert held(user, "/b") == (2 * PAGED, 2 * PAGED)
    assert user.read("/a/1") == bytes(PAGED)


def test_low_goes_before_min_and_after_all_else(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=6 * PAGED)
    user = world.client()
    for name in ("/low", "/min", "/n"):
        user.make(name)
    put(world.root, "/low", ram(low=2 * PAGED))
    put(world.root, "/min", ram(min=2 * PAGED))
    for name in ("/low/1", "/low/2", "/min/1", "/min/2", "/n/a", "/n/b"):
        user.blob(name, bytes(PAGED))
    user.blob("/n/c", bytes(PAGED))
    assert in_ram(user, "abc") == "bc", "first what nothing protects"
    user.call(c.PinCube(name="/n/b"))
    user.call(c.PinCube(name="/n/c"))
    user.blob("/n/d", bytes(PAGED))
    assert held(user, "/low") == (PAGED, PAGED)
    assert held(user, "/min") == (2 * PAGED, 2 * PAGED)


def test_what_is_above_its_high_goes_first(make_world: MakeWorld) -> None:
    world = make_world(ram_budget_bytes=6 * PAGED)
    user = world.client()
    user.make("/n")
    for name in ("/n/a", "/n/b", "/n/high/1", "/n/high/2", "/n/high/3"):
        user.blob(name, bytes(PAGED))
    pins = [user.call(c.PinCube(name=f"/n/high/{number}")).handle for number in (1, 2, 3)]
    put(user, "/n/high", ram(high=2 * PAGED))
    for pin in pins:
        user.call(c.UnpinCube(handle=pin))
    user.blob("/n/big", bytes(2 * PAGED))
    assert in_ram(user, "ab") == "ab"
    assert held(user, "/n/high")[1] == 2 * PAGED


# -- throttling ----------------------------------------------------------------------------------


def test_above_high_the_group_is_reclaimed_at_once(world: World, user: Client) -> None:
    put(user, "/n/a", ram(high=2 * PAGED))
    for number in range(5):
        user.blob(f"/n/a/{number}", bytes(PAGED))
    assert held(user, "/n/a") == (2 * PAGED, 2 * PAGED)
    assert tier(show(user, "/n/a"), "ram").throttles == 0, "that took no waiting"


def test_setting_high_reclaims_what_is_above_it(world: World, user: Client) -> None:
    for number in range(5):
        user.blob(f"/n/a/{number}", bytes(PAGED))
    put(user, "/n/a", ram(high=2 * PAGED))
    assert held(user, "/n/a") == (2 * PAGED, 2 * PAGED)


def test_who_stays_above_high_waits_ever_longer_but_never_long(world: World, user: Client) -> None:
    put(user, "/n/a", ram(high=PAGED))
    user.blob("/n/a/0", bytes(PAGED))
    user.call(c.PinCube(name="/n/a/0"))
    waited = []
    for number in range(1, 12):
        create = user.start(c.CreateCube(name=f"/n/a/{number}", size_bytes=PAGED))
        world.settle()
        waited.append(0)
        while not create.is_answered:
            world.pass_time(1_000_000)
            waited[-1] += 1
        user.call(c.AbortCube(handle=create.result().handle))
    assert waited == [1, 2, 4, 8, 16, 32, 64, 100, 100, 100, 100]
    assert tier(show(user, "/n/a"), "ram").throttles == 11
    user.blob("/n/beside", bytes(PAGED))
    assert world.kernel.parts.residents.account.used_bytes == 2 * PAGED


def test_a_throttled_call_goes_on_as_soon_as_the_reclaim_helped(world: World, user: Client) -> None:
    put(user, "/n/a", ram(high=PAGED))
    cache(user, "/n/a/0")
    create = user.start(c.CreateCube(name="/n/a/1", size_bytes=PAGED))
    assert len(world.gate.fds) == 0, "the other one must be written back first"
    world.io.finish("store")
    assert len(world.gate.fds) == 1, "no time has passed"
    world.settle()
    assert create.is_answered
    assert held(user, "/n/a") == (PAGED, PAGED)


def test_limits_of_one_do_not_slow_down_others(world: World, user: Client) -> None:
    put(user, "/n/a", ram(high=1 * KIB))
    user.blob("/n/b", bytes(PAGED))
    assert tier(show(user, "/n"), "ram").throttles == 0
