"""The default orders payloads of many kinds by worth, at a cost that is not that of the kinds."""

import random
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from math import log2
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memosd.kernel.policies.leaffirst import LeafFirst
from memosd.kernel.policies.policy import Entry, Policy
from memosd.kernel.policies.table import make_policy
from memosd.kernel.policies.value import cost_density

KEYS = [bytes([number]) * 16 for number in range(9)]
ENTRIES = st.builds(
    lambda key, parent, **kind: Entry(key, parent=parent if parent < key else b"", **kind),
    st.sampled_from(KEYS),
    st.sampled_from([b"", *KEYS]),
    group=st.integers(1, 2),
    size_bytes=st.sampled_from([1, 4096, 1 << 20, 1 << 30]),
    priority=st.sampled_from([0, 43, 50, 51, 100]),
    restore_s=st.sampled_from([0.0, 1e-5, 0.1, 100.0]),
    half_life_s=st.sampled_from([0.0, 0.0, 2.0, 64.0]),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["insert", "insert", "touch", "cool", "hold", "release", "update", "evict", "remove"]
        ),
        ENTRIES,
    ),
    max_size=60,
)


class Reference:
    """What each payload is worth, from what was told and learned, one by one."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now_s = 0.0
        self.entries: dict[bytes, Entry] = {}
        self.cold: set[bytes] = set()
        self.used_s: dict[bytes, float] = {}

    def step(self, step: str, entry: Entry) -> None:
        """Do it to both."""
        key = entry.key
        self.now_s += 1.0
        takes_entry = step in ("insert", "update")
        getattr(self.policy, step)(entry if takes_entry else key)
        if step == "insert" or (step == "update" and key in self.entries):
            self.entries[key] = entry
        if step in ("insert", "touch"):
            self.cold.discard(key)
            self.used_s[key] = self.now_s
        elif step == "cool":
            self.cold.add(key)
        elif step in ("evict", "remove"):
            self.entries.pop(key, None)

    def order(self, group: int) -> list[tuple[float, float]]:
        """The ranks of all that may go, lowest first."""
        mine = [each for each in self.entries.values() if each.group == group]
        return sorted(self.rank(each.key) for each in mine if self.policy.explain(each.key))

    def rank(self, key: bytes) -> tuple[float, float]:
        """By the definition at the head of `leaffirst.py`."""
        told: dict[str, Any] = self.policy.explain(key)
        if told["depends_on_it"]:
            return 1.0, told["rank"]
        if key in self.cold:
            return -1.0, -told["uses_since"]
        entry = self.entries[key]
        octaves = (entry.priority - 50) / 16
        worth = told["reuse_octaves"] + round(log2(cost_density(entry)))
        octaves += told["weight"] * worth
        if entry.half_life_s:
            age = (self.now_s - self.used_s[key]) / entry.half_life_s
        else:
            age = told["uses_since"] / told["octave_uses"]
        return 0.0, round(told["octave_uses"] * (octaves - age), 6)


def made() -> Reference:
    """The default, beside what it should say."""
    reference: Reference
    policy = make_policy("default", lambda: reference.now_s)
    reference = Reference(policy)
    return reference


@given(steps=STEPS)
def test_the_order_is_that_of_worth(steps: list[tuple[str, Entry]]) -> None:
    reference = made()
    for step, entry in steps:
        reference.step(step, entry)
        for group in (1, 2):
            order = list(reference.policy.candidates(group))
            # Of equal ranks any may be first.
            assert [reference.rank(each.key) for each in order] == reference.order(group)


def mixed(draw: random.Random, number: int) -> Entry:
    """Of a kind of its own, nearly, and perhaps on one that came shortly before."""
    return Entry(
        number.to_bytes(16, "big"),
        int(2 ** draw.uniform(0, 30)),
        priority=draw.randint(0, 100),
        parent=max(0, number - draw.randint(1, 9)).to_bytes(16, "big") if number % 4 > 2 else b"",
        restore_s=10 ** draw.uniform(-5, 1),
    )


def test_each_victim_of_a_full_tier_is_one_of_least_worth() -> None:
    draw = random.Random(5)
    reference = made()
    for number in range(2000):
        reference.step("insert", mixed(draw, number))
        reference.step("touch", mixed(draw, draw.randrange(number + 1)))
        if number >= 200:
            for _ in range(draw.choice((0, 0, 1, 1, 3))):  # so that the tier grows and shrinks
                victim = next(reference.policy.candidates(0)).key
                if number % 20 == 0:
                    assert reference.rank(victim) == reference.order(0)[0]
                reference.policy.evict(victim)
                del reference.entries[victim]


def test_an_octave_is_about_as_many_uses_as_there_are_entries() -> None:
    policy = make_policy("default", lambda: 0.0)
    draw = random.Random(6)
    for count in range(1, 700):
        policy.insert(mixed(draw, 4 * count))
        first = next(policy.candidates(0)).key
        assert policy.explain(first)["octave_uses"] == pytest.approx(count, rel=1 / 16)
    for count in range(699, 0, -1):
        first = next(policy.candidates(0)).key
        assert policy.explain(first)["octave_uses"] == pytest.approx(count, rel=1 / 15)
        policy.evict(first)


def calls(work: Callable[[], Any]) -> int:
    """How many functions it calls: what it costs, but for the machine."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def of_kinds(kinds: int) -> LeafFirst:
    """A full tier of 4,000, of so many kinds."""
    policy = LeafFirst(lambda: 0.0, lambda standing: standing[0] / 2, 1.0)
    for entry in entries_of(kinds, 0, 4000):
        policy.insert(entry)
    list(policy.candidates(0))
    return policy


def entries_of(kinds: int, start: int, count: int) -> Iterator[Entry]:
    """Each kind in its turn."""
    for number in range(start, start + count):
        kind = number % kinds
        yield Entry(
            number.to_bytes(16, "big"), 1, priority=kind % 100, restore_s=2.0 ** (kind // 100)
        )


def steady(kinds: int) -> int:
    """What decisions cost, victims that are passed over included."""
    policy = of_kinds(kinds)
    fresh = list(entries_of(kinds, 4000, 400))

    def work() -> None:
        for entry in fresh:
            list(islice(policy.candidates(0), 4))
            policy.evict(next(policy.candidates(0)).key)
            policy.touch((int.from_bytes(entry.key, "big") // 2).to_bytes(16, "big"))
            policy.insert(entry)

    return calls(work)


def test_a_decision_costs_the_same_however_many_kinds_there_are() -> None:
    assert steady(2000) < 2 * steady(10)


def test_groups_whose_kinds_are_gone_leave_nothing_behind() -> None:
    policy = of_kinds(2000)
    for number in range(4000):
        policy.evict(number.to_bytes(16, "big"))
    assert not list(policy.candidates(0))
    policy.insert(Entry(b"only", 1))
    assert calls(lambda: list(policy.candidates(0))) < 200
