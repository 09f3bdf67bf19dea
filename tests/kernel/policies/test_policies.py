"""Every policy: an order over what is evictable, complete, without anything else."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Clock, Entry, Policy
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


@given(steps=STEPS)
def test_lru_is_by_priority_and_then_by_last_use(
    steps: list[tuple[str, bytes, int, int]],
) -> None:
    policy, model = Lru(still), Model()
    used: dict[bytes, int] = {}
    for now, (step, key, priority, group) in enumerate(steps, 1):
        before = model.entries.get(key)
        was_held = key in model.held
        model.step(policy, step, Entry(key, 10, group=group, priority=priority))
        if step in ("insert", "release") or (step == "touch" and not was_held):
            used[key] = now
        elif step == "cool" and not was_held:
            used[key] = -now
        elif step == "update" and before is not None and not was_held:
            is_moved = (before.group, before.priority) != (group, priority)
            used[key] = now if is_moved else used[key]  # into another queue as one just used
        for each in (1, 2):
            expected = sorted(
                model.free(each), key=lambda key: (model.entries[key].priority, used[key])
            )
            assert [candidate.key for candidate in policy.candidates(each)] == expected
