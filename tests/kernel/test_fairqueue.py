"""Turns at I/O: by weight among siblings while there is contention, at once without."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.control import Limits
from memosd.kernel.control import ROOT, Group
from memosd.kernel.fairqueue import FairQueue
from memosd.kernel.wait import Completion
from tests.kernel.conftest import MakeWorld
from tests.kernel.world import PAGED


def group(number: int, parent: Group, weight: int = 100) -> Group:
    made = Group(number, f"/{number}", space=number, parent=parent)
    made.limits = Limits(io_weight=weight)
    return made


@pytest.fixture
def top() -> Group:
    return Group(ROOT, "/", space=ROOT, parent=None)


class Crowd:
    """Calls that wait, and the order they are served in."""

    def __init__(self, depth: int = 1) -> None:
        self.queue = FairQueue(depth)
        self.served: list[tuple[int, int]] = []

    def wait(self, who: Group, size_bytes: int = 10) -> Completion[None]:
        turn = self.queue.enter(who, size_bytes)
        turn.on_done(lambda: self.served.append((who.number, size_bytes)))
        return turn

    def serve(self, count: int) -> Counter[int]:
        """End so many turns; the bytes that each group got since the start."""
        for _ in range(count):
            self.queue.leave()
        found: Counter[int] = Counter()
        for number, size_bytes in self.served:
            found[number] += size_bytes
        return found


def test_without_contention_nobody_waits(top: Group) -> None:
    crowd = Crowd(depth=2)
    one = group(1, top)
    assert crowd.wait(one).is_done
    assert crowd.wait(one).is_done
    assert not crowd.wait(one).is_done
    crowd.serve(1)
    assert len(crowd.served) == 3


def test_a_flood_does_not_hold_up_another_group(top: Group) -> None:
    crowd = Crowd()
    flood, calm = group(1, top), group(2, top)
    for _ in range(100):
        crowd.wait(flood)
    turn = crowd.wait(calm)
    crowd.serve(2)
    assert turn.is_done


@pytest.mark.parametrize(("weight", "share"), [(100, 50), (300, 75), (25, 20)])
def test_bytes_are_shared_out_by_weight(top: Group, weight: int, share: int) -> None:
    crowd = Crowd()
    first, second = group(1, top, weight), group(2, top)
    for _ in range(300):
        crowd.wait(first, 10)
        crowd.wait(second, 30)
    got = crowd.serve(200)
    assert abs(100 * got[1] / (got[1] + got[2]) - share) <= 2


def test_a_weight_counts_among_siblings_only(top: Group) -> None:
    crowd = Crowd()
    greedy, other = group(1, top), group(2, top)
    inner = [group(number, greedy, 10_000) for number in (3, 4, 5)]
    for _ in range(100):
        for each in (*inner, other):
            crowd.wait(each)
    got = crowd.serve(100)
    assert abs(got[2] - sum(got[each.number] for each in inner)) <= 20


def test_who_was_idle_has_no_claim_to_the_past(top: Group) -> None:
    crowd = Crowd()
    busy, late = group(1, top), group(2, top)
    for _ in range(100):
        crowd.wait(busy)
    crowd.serve(50)
    for _ in range(100):
        crowd.wait(late)
    crowd.served.clear()
    got = crowd.serve(20)
    assert abs(got[1] - got[2]) <= 10


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 9)), max_size=80))
def test_every_call_gets_one_turn_and_never_more_than_there_are(
    steps: list[tuple[bool, int, int]],
) -> None:
    root = Group(ROOT, "/", space=ROOT, parent=None)
    groups = [root, group(1, root), group(2, root, 7)]
    groups.append(group(3, groups[1]))
    groups.append(group(4, groups[3], 900))
    crowd, asked, ended = Crowd(depth=3), 0, 0
    for is_leaving, index, size_bytes in steps:
        if is_leaving and len(crowd.served) > ended:
            ended += 1
            crowd.queue.leave()
        elif not is_leaving:
            asked += 1
            crowd.wait(groups[index], size_bytes)
        assert len(crowd.served) - ended == min(3, asked - ended)
    for _ in range(asked - ended):
        crowd.queue.leave()
    assert len(crowd.served) == asked


def test_faults_of_one_namespace_are_not_behind_all_of_anothers(make_world: MakeWorld) -> None:
    world = make_world(io_threads=1)
    user = world.client()
    for name in ("/flood", "/calm"):
        user.make(name)
    names = [*(f"/flood/{number}" for number in range(5)), "/calm/1"]
    for name in names:
        user.blob(name, bytes(PAGED))
        user.call(c.Evict(name=name))
    reads = {name: user.start(c.ReadCube(name=name)) for name in names}
    assert world.io.names() == ["load"]
    for _ in range(2):
        world.io.finish("load")
        world.io.finish("pread")
    assert [name for name in names if reads[name].is_answered] == ["/flood/0", "/calm/1"]
    world.settle()
    assert all(read.result() for read in reads.values())
