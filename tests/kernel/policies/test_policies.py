"""Every policy: an order over what is evictable, complete, without anything else."""

import pickle
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Clock, Entry, Policy
from memosd.kernel.policies.population import Node
from memosd.kernel.policies.table import POLICIES, make_policy

KEYS = [bytes([number]) * 16 for number in range(5)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["insert", "touch", "cool", "hold", "release", "update", "evict", "remove"]
        ),
        st.sampled_from(KEYS),
        st.integers(0, 2),
        st.integers(1, 2),
    ),
    max_size=60,
)
"""What happens, to whom, its priority and its group."""


def still() -> float:
    """Time that stands."""
    return 0.0


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_made_by_its_name(name: str) -> None:
    assert make_policy(name, still).name == name


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MemError) as caught:
        make_policy("clairvoyant", still)
    assert caught.value.errno is Errno.EINVAL
    assert "lru" in caught.value.message


class Model:
    """What is under a policy, told from its calls alone."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.held: set[bytes] = set()

    def step(self, policy: Policy, step: str, entry: Entry) -> None:
        """Do it to both."""
        if step in ("insert", "update"):
            getattr(policy, step)(entry)
            if step == "insert":
                self.held.discard(entry.key)
            if step == "insert" or entry.key in self.entries:
                self.entries[entry.key] = entry
            return
        getattr(policy, step)(entry.key)
        if step in ("evict", "remove"):
            self.entries.pop(entry.key, None)
            self.held.discard(entry.key)
        elif step in ("hold", "release") and entry.key in self.entries:
            (self.held.add if step == "hold" else self.held.discard)(entry.key)

    def free(self, group: int) -> set[bytes]:
        """Who may go."""
        return {
            key
            for key, entry in self.entries.items()
            if entry.group == group and key not in self.held
        }


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
@given(steps=STEPS)
def test_a_policy_orders_exactly_what_may_go(
    make: Callable[[Clock], Policy], steps: list[tuple[str, bytes, int, int]]
) -> None:
    policy, model = make(still), Model()
    for step, key, priority, group in steps:
        model.step(policy, step, Entry(key, 10, group=group, priority=priority))
        for each in (1, 2):
            order = list(policy.candidates(each))
            assert order == sorted(order)
            assert len(order) == len({candidate.key for candidate in order})
            assert {candidate.key for candidate in order} == model.free(each)


@given(steps=STEPS, above=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(KEYS)))
def test_the_default_keeps_what_others_stand_on(
    steps: list[tuple[str, bytes, int, int]], above: dict[bytes, bytes]
) -> None:
    policy, model = make_policy("default", still), Model()
    for step, key, priority, group in steps:
        parent = min(key, above.get(key, b""))  # whoever stands on another has the greater key
        parent = b"" if parent == key else parent
        model.step(policy, step, Entry(key, 10, group=group, priority=priority, parent=parent))
        ranks = {each.key: each.rank for group in (1, 2) for each in policy.candidates(group)}
        assert set(ranks) == model.free(1) | model.free(2)
        for child, entry in model.entries.items():
            if child in ranks and entry.parent in ranks:
                assert ranks[entry.parent] > ranks[child]


@given(steps=STEPS, above=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(KEYS)))
def test_rings_of_parents_do_no_harm(
    steps: list[tuple[str, bytes, int, int]], above: dict[bytes, bytes]
) -> None:
    policy, model = make_policy("default", still), Model()
    for step, key, priority, group in steps:
        entry = Entry(key, 10, group=group, priority=priority, parent=above.get(key, b""))
        model.step(policy, step, entry)
        for each in (1, 2):
            assert {candidate.key for candidate in policy.candidates(each)} == model.free(each)


def test_what_a_held_leaf_stands_on_goes_after_all_other_leaves() -> None:
    policy = make_policy("default", still)
    for key, parent in ((b"root", b""), (b"stem", b"root"), (b"leaf", b"stem"), (b"other", b"")):
        policy.insert(Entry(key, 10, parent=parent))
    policy.hold(b"leaf")
    assert [each.key for each in policy.candidates(0)] == [b"other", b"stem", b"root"]


def test_what_is_of_no_use_any_more_goes_first() -> None:
    now = 0.0
    policy = make_policy("default", lambda: now)
    policy.insert(Entry(b"old", 10))
    policy.insert(Entry(b"brief", 10, expires_s=5.0))
    assert next(policy.candidates(0)).key == b"old"
    now = 6.0
    assert next(policy.candidates(0)).key == b"brief"
    policy.touch(b"brief")
    assert next(policy.candidates(0)).key == b"brief"


def test_what_decays_sooner_goes_sooner() -> None:
    now = 0.0
    policy = make_policy("default", lambda: now)
    policy.insert(Entry(b"lasting", 10))
    policy.insert(Entry(b"decaying", 10, half_life_s=1.0))
    assert next(policy.candidates(0)).key == b"lasting"
    now = 10.0
    assert next(policy.candidates(0)).key == b"decaying"


def test_a_half_life_given_later_counts_from_then() -> None:
    now = 100.0
    policy = make_policy("default", lambda: now)
    policy.insert(Entry(b"plain", 10))
    policy.insert(Entry(b"given later", 10))
    policy.update(Entry(b"given later", 10, half_life_s=1.0))
    assert next(policy.candidates(0)).key == b"plain"
    now = 110.0
    assert next(policy.candidates(0)).key == b"given later"


def test_the_end_of_a_use_is_a_use_for_decay() -> None:
    now = 0.0
    policy = make_policy("default", lambda: now)
    policy.insert(Entry(b"held", 10, half_life_s=1.0))
    policy.insert(Entry(b"plain", 10))
    policy.hold(b"held")
    now = 10.0
    policy.release(b"held")
    assert next(policy.candidates(0)).key == b"plain"


def test_an_expiry_that_is_put_off_is_none() -> None:
    now = 0.0
    policy = make_policy("default", lambda: now)
    policy.insert(Entry(b"put off", 10, expires_s=5.0))
    policy.insert(Entry(b"plain", 10))
    policy.touch(b"put off")
    now = 6.0
    assert next(policy.candidates(0)).key == b"put off"
    policy.update(Entry(b"put off", 10, expires_s=50.0))
    assert next(policy.candidates(0)).key == b"plain"
    now = 51.0
    assert next(policy.candidates(0)).key == b"put off"


@pytest.mark.parametrize("first", ["cheap", "low"])
def test_the_default_weighs_cost_and_priority(first: str) -> None:
    policy = make_policy("default", still)
    policy.insert(Entry(b"first", 10, restore_s=0.001, priority=30 if first == "low" else 50))
    policy.insert(Entry(b"dear", 10, restore_s=1.0 if first == "cheap" else 0.001, priority=50))
    policy.touch(b"first")
    assert next(policy.candidates(0)).key == b"first"


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_memory_is_bounded_by_what_the_tier_holds(make: Callable[[Clock], Policy]) -> None:
    policy = make(still)
    for number in range(20_000):
        policy.insert(Entry(number.to_bytes(16, "big"), 10, expires_s=1e9))
        policy.touch(number.to_bytes(16, "big"))
        if number >= 50:
            policy.evict(next(policy.candidates(0)).key)
    assert len(pickle.dumps(_held_by(policy))) < 400_000


def _held_by(policy: Policy) -> list[object]:
    """The containers that it keeps, however deep, as plain lists."""
    found: list[object] = []
    waiting: list[object] = [policy]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, bytes | int | float):
            found.append(each)
        elif isinstance(each, Entry | Node):
            found.append(0)
        elif isinstance(each, dict):
            waiting.extend([*each, *each.values()])
        elif isinstance(each, list | tuple | set | deque):
            waiting.extend(each)
        else:
            waiting.extend(getattr(each, "__dict__", {}).values())
            slots = [slot for kind in type(each).__mro__ for slot in getattr(kind, "__slots__", ())]
            waiting.extend(getattr(each, slot, None) for slot in slots)
    return found


@given(steps=STEPS)
def test_lru_is_by_priority_and_then_by_last_use(
    steps: list[tuple[str, bytes, int, int]],
) -> None:
    policy, model = Lru(still), Model()
    used: dict[bytes, int] = {}
    cold: set[bytes] = set()
    for now, (step, key, priority, group) in enumerate(steps, 1):
        model.step(policy, step, Entry(key, 10, group=group, priority=priority))
        if step in ("insert", "touch"):
            cold.discard(key)
        elif step == "cool" and key in model.entries:
            cold.add(key)
        if step in ("insert", "touch", "release"):
            used[key] = now
        if key in cold and step in ("cool", "release", "update"):
            used[key] = now - 1000  # before all of its priority, in the order of being told
        for each in (1, 2):
            expected = sorted(
                model.free(each), key=lambda key: (model.entries[key].priority, used[key])
            )
            assert [candidate.key for candidate in policy.candidates(each)] == expected
