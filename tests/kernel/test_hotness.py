"""Hotness: a rate that forgets, bounded, and shown to those who may read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Governance
from memosd.kernel.hotness import _CUBES_MAX, _HALF_LIFE_NS, Hotness
from tests.kernel.fakes import SECOND_NS, FakeClock
from tests.kernel.world import PAGED, Client, World


def test_a_steady_rate_is_found(world: World) -> None:
    clock = FakeClock()
    hotness = Hotness(clock)
    for _ in range(6000):
        clock.advance(SECOND_NS // 10)
        hotness.count(b"x")
    ((_, per_second),) = hotness.hottest(1)
    assert per_second == pytest.approx(10, rel=0.02)
    clock.advance(_HALF_LIFE_NS)
    ((_, later),) = hotness.hottest(1)
    assert later == pytest.approx(per_second / 2, rel=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), max_size=60))
def test_it_is_the_decayed_count(uses: list[tuple[int, int]]) -> None:
    clock = FakeClock()
    hotness = Hotness(clock)
    counts: dict[bytes, float] = {}
    for cube, pause_s in uses:
        clock.advance(pause_s * SECOND_NS)
        fade = 2 ** (-pause_s * SECOND_NS / _HALF_LIFE_NS)
        counts = {each: count * fade for each, count in counts.items()}
        counts[bytes([cube])] = counts.get(bytes([cube]), 0.0) + 1.0
        hotness.count(bytes([cube]))
    found = dict(hotness.hottest(10))
    assert found.keys() == counts.keys()
    scale = 0.6931471805599453 / (_HALF_LIFE_NS / 1e9)
    for each, count in counts.items():
        assert found[each] == pytest.approx(count * scale, rel=1e-9)


def test_ages_do_not_overflow() -> None:
    clock = FakeClock()
    hotness = Hotness(clock)
    hotness.count(b"x")
    clock.advance(10**9 * SECOND_NS)
    hotness.count(b"y")
    hotness.count(b"x")
    assert {cube for cube, _ in hotness.hottest(2)} == {b"x", b"y"}


def test_it_is_bounded_and_keeps_the_hottest() -> None:
    hotness = Hotness(FakeClock())
    for _ in range(3):
        hotness.count(b"hot")
    for number in range(3 * _CUBES_MAX):
        hotness.count(number.to_bytes(4, "big"))
        assert len(hotness._scores) <= _CUBES_MAX
    assert hotness.hottest(1)[0][0] == b"hot"


def test_reads_and_mappings_make_a_cube_hot(world: World, user: Client) -> None:
    for name in "ab":
        user.blob(f"/n/{name}", bytes(PAGED))
    for _ in range(3):
        user.read("/n/b")
    user.mapped("/n/a")
    first, second = user.call(c.Hottest()).cubes
    assert (first.name, first.reads, first.maps) == ("/n/b", 3, 0)
    assert (second.name, second.reads, second.maps) == ("/n/a", 0, 1)
    assert first.tiers == ("ram", "disk")
    assert first.size_bytes == PAGED
    assert first.uses_per_s == pytest.approx(3 * second.uses_per_s)
    user.unlink("/n/b")
    assert [each.name for each in user.call(c.Hottest()).cubes] == ["/n/a"]


def test_what_may_not_be_read_leaves_no_trace(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED), governance=Governance(mode=0o600))
    user.read("/n/a")
    assert world.client(2000).call(c.Hottest()).cubes == ()
    assert len(world.root.call(c.Hottest(limit=1)).cubes) == 1
    for limit in (0, 101):
        user.fails(c.Hottest(limit=limit), Errno.EINVAL)
