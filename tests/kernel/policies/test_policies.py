"""Every policy: an order over what is evictable, complete, without anything else."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Policy
from memosd.kernel.policies.table import POLICIES, make_policy

KEYS = [bytes([number]) * 16 for number in range(5)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "touch", "demote", "remove"]),
        st.sampled_from(KEYS),
        st.integers(0, 2),
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_made_by_its_name(name: str) -> None:
    assert make_policy(name).name == name


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MemError) as caught:
        make_policy("clairvoyant")
    assert caught.value.errno is Errno.EINVAL
    assert "lru" in caught.value.message


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
@given(steps=STEPS)
def test_a_policy_orders_exactly_what_is_under_it(
    make: Callable[[], Policy], steps: list[tuple[str, bytes, int]]
) -> None:
    policy = make()
    under: set[bytes] = set()
    for step, key, priority in steps:
        if step == "insert":
            policy.insert(key, priority)
            under.add(key)
        else:
            getattr(policy, step)(key)
            if step == "remove":
                under.discard(key)
        order = list(policy.candidates())
        assert len(order) == len(set(order))
        assert set(order) == under


@given(steps=STEPS)
def test_lru_is_by_priority_and_then_by_last_use(steps: list[tuple[str, bytes, int]]) -> None:
    policy = Lru()
    order: dict[bytes, tuple[int, int]] = {}
    for now, (step, key, priority) in enumerate(steps, 1):
        if step == "insert":
            policy.insert(key, priority)
            order[key] = priority, now
            continue
        getattr(policy, step)(key)
        if key not in order:
            continue
        if step == "remove":
            del order[key]
        else:
            order[key] = order[key][0], now if step == "touch" else -now
    assert list(policy.candidates()) == sorted(order, key=order.__getitem__)
