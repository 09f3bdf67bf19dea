"""A policy that fails is replaced by LRU over all that is there, and says why."""

from collections.abc import Iterator
from typing import Any

import pytest

from memosd.kernel.policies.guarded import Guarded
from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Candidate, Entry
from memosd.kernel.ports import PayloadKey


def still() -> float:
    """Time that stands."""
    return 0.0


class Broken(Lru):
    """Raises where it is told to, or names what is not there."""

    name = "broken"
    where = ""

    def touch(self, key: PayloadKey) -> None:
        if self.where == "touch":
            raise ZeroDivisionError("no uses")
        super().touch(key)

    def candidates(self, group: int) -> Iterator[Candidate]:
        if self.where == "candidates":
            raise KeyError("lost")
        if self.where == "invents":
            yield Candidate((0.0,), b"nobody")
        if self.where == "repeats":
            for candidate in super().candidates(group):
                yield candidate
                yield candidate
        yield from super().candidates(group)


@pytest.mark.parametrize("where", ["touch", "candidates", "invents", "repeats"])
def test_a_policy_that_fails_is_replaced(where: str, surprises: list[Any]) -> None:
    told: list[str] = []
    broken = Broken(still)
    policy = Guarded(broken, still, told.append)
    for key in (b"a", b"b", b"c"):
        policy.insert(Entry(key, 10))
    policy.hold(b"b")
    broken.where = where
    policy.touch(b"a")
    assert {each.key for each in policy.candidates(0)} == {b"a", b"c"}
    assert len(told) == 1
    assert "broken" in told[0]
    assert policy.name == "lru"
    policy.release(b"b")
    policy.evict(b"a")
    assert {each.key for each in policy.candidates(0)} == {b"b", b"c"}
    assert len(told) == 1
    assert [each["event"] for each in surprises] == ["a policy failed"]
    surprises.clear()


def test_a_policy_that_works_stays() -> None:
    told: list[str] = []
    policy = Guarded(Lru(still), still, told.append)
    policy.insert(Entry(b"a", 10))
    policy.insert(Entry(b"b", 10))
    policy.touch(b"a")
    assert [each.key for each in policy.candidates(0)] == [b"b", b"a"]
    assert policy.explain(b"a")
    assert not told
