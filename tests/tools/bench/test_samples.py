"""The arithmetic under every benchmark."""

import math

from hypothesis import given
from hypothesis import strategies as st

from memosd.tools.bench.samples import interleave, percentile, ratios, sample

_TIMES = st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=50)


@given(_TIMES)
def test_a_sample_lies_between_its_extremes(values: list[float]) -> None:
    found = sample(values)
    assert found.low == min(values)
    assert found.high == max(values)
    assert found.low <= found.median <= found.high


@given(_TIMES, st.floats(min_value=0, max_value=1))
def test_a_percentile_is_the_smallest_value_with_that_share_below(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= math.ceil(share * len(values))
    assert sum(value < found for value in values) <= share * len(values)


def test_percentiles_of_a_hundred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100


def test_a_slow_spell_does_not_reach_the_ratio() -> None:
    # The machine is ten times slower in the second round, for both.
    found = ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found == (2.0, 2.0, 2.0)


def test_rounds_alternate_and_results_keep_their_order() -> None:
    calls: list[str] = []

    def body(name: str) -> str:
        calls.append(name)
        return f"{name}{calls.count(name)}"

    ours, peers = interleave(3, lambda: body("a"), lambda: body("b"))
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert ours == ["a1", "a2", "a3"]
    assert peers == ["b1", "b2", "b3"]
