"""Fits: learned from few measurements, moved by no single one, forgotten when the world changes."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memosd.kernel.fits import ENOUGH, Fit
from memosd.kernel.rows import CostRow, decode_row, encode_row
from tests.kernel.fakes import SECOND_NS

PRIOR = (1e-3, 1 / 500e6)
MIB = 1 << 20
HOUR_NS = 3600 * 1_000_000_000


def transfers() -> Fit:
    return Fit(PRIOR, returns=True)


def feed(fit: Fit, latency_s: float, bytes_per_s: float, sizes_mib: list[int]) -> None:
    noise = random.Random(1)
    for size in sizes_mib:
        seconds = (latency_s + size * MIB / bytes_per_s) * noise.lognormvariate(0, 0.1)
        fit.observe((1.0, size * MIB), seconds, 0)


def test_without_a_measurement_it_is_the_guess() -> None:
    fit = transfers()
    assert fit.seconds((1.0, 500e6), 0) == pytest.approx(1.001)
    assert not fit.is_measured
    for _ in range(ENOUGH):
        assert not fit.is_measured
        fit.observe((1.0, MIB), 0.1, 0)
    assert fit.is_measured


def test_one_size_corrects_all_sizes() -> None:
    fit = transfers()
    feed(fit, 1e-2, 50e6, [64] * 4)
    assert fit.seconds((1.0, 256 * MIB), 0) == pytest.approx(256 * MIB / 50e6, rel=0.15)


def test_latency_and_bandwidth_are_told_apart() -> None:
    fit = transfers()
    feed(fit, 0.4, 50e6, [4, 64, 16, 90, 4, 50, 25, 8, 90, 4])
    assert fit.seconds((1.0, 0.0), 0) == pytest.approx(0.4, rel=0.4)
    assert fit.seconds((1.0, 200 * MIB), 0) == pytest.approx(0.4 + 200 * MIB / 50e6, rel=0.2)


def test_three_features() -> None:
    fit = Fit((1e-2, 1e-3, 1e-7), returns=False)
    truth = (0.03, 2e-3, 5e-7)
    for tokens in (12, 300, 1000, 12, 100, 500, 1000, 12, 300):
        features = (1.0, float(tokens), tokens * tokens / 2)
        fit.observe(features, sum(a * b for a, b in zip(truth, features, strict=True)), 0)
    far = (1.0, 4000.0, 4000.0 * 2000)
    expected = sum(a * b for a, b in zip(truth, far, strict=True))
    assert fit.seconds(far, 0) == pytest.approx(expected, rel=0.2)


def test_many_short_ones_do_not_make_it_forget_the_long_ones() -> None:
    fit = Fit((1e-2, 1e-3, 1e-7), returns=False)
    long = (1.0, 1000.0, 500_000.0)
    for features, seconds in [(long, 0.2)] * 3 + [((1.0, 12.0, 72.0), 0.05)] * 300:
        fit.observe(features, seconds, 0)
    assert fit.seconds(long, 0) == pytest.approx(0.2, rel=0.25)
    for _ in range(12):  # but what is measured now counts
        fit.observe(long, 0.4, 0)
    assert fit.seconds(long, 0) == pytest.approx(0.4, rel=0.15)


def test_one_outlier_moves_little() -> None:
    fit = transfers()
    feed(fit, 0.0, 500e6, [16] * 8)
    before = fit.seconds((1.0, 16 * MIB), 0)
    fit.observe((1.0, 16 * MIB), 100 * before, 0)
    assert fit.seconds((1.0, 16 * MIB), 0) < 2 * before
    fit.observe((1.0, 16 * MIB), before, 0)
    assert fit.seconds((1.0, 16 * MIB), 0) < 2 * before


@pytest.mark.parametrize("times", [50.0, 1 / 50])
def test_a_change_is_believed_the_second_time(times: float) -> None:
    fit = transfers()
    feed(fit, 0.0, 500e6, [16] * 8)
    changed = fit.seconds((1.0, 16 * MIB), 0) * times
    fit.observe((1.0, 16 * MIB), changed, 0)
    fit.observe((1.0, 16 * MIB), changed, 0)
    assert fit.seconds((1.0, 16 * MIB), 0) == pytest.approx(changed, rel=0.1)


def test_what_was_slow_is_tried_again_some_day() -> None:
    slow, kept = transfers(), Fit(PRIOR, returns=False)
    for fit in (slow, kept):
        feed(fit, 0.0, 5e6, [16] * 4)
    features = (1.0, 16.0 * MIB)
    assert slow.seconds(features, 0) == pytest.approx(kept.seconds(features, 0))
    assert slow.seconds(features, 3 * HOUR_NS) == pytest.approx(slow.guess(features), rel=0.1)
    assert kept.seconds(features, 3 * HOUR_NS) == kept.seconds(features, 0)


def test_what_was_quick_stays_quick() -> None:
    fit = transfers()
    feed(fit, 0.0, 5e9, [16] * 4)
    features = (1.0, 16.0 * MIB)
    assert fit.seconds(features, 3 * HOUR_NS) == fit.seconds(features, 0)


def test_nothing_is_no_measurement() -> None:
    fit = transfers()
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        fit.observe((1.0, MIB), seconds, 0)
    assert fit.row.samples == 0


def test_it_goes_on_from_its_row() -> None:
    fit = transfers()
    feed(fit, 0.1, 50e6, [4, 64, 16, 90])
    row = decode_row(CostRow, "costs", b"k", encode_row(b"k", fit.row))
    again = Fit(PRIOR, returns=True, row=row)
    assert again.seconds((1.0, MIB), 0) == pytest.approx(fit.seconds((1.0, MIB), 0))
    assert msgspec.structs.astuple(again.row) == msgspec.structs.astuple(fit.row)


def test_what_was_measured_a_minute_ago_still_counts_however_far_from_the_guess() -> None:
    fit = transfers()
    feed(fit, 0.4, 200e6, [4, 64, 16, 90, 32, 4, 90, 16])
    now = fit.seconds((1.0, MIB), 0)
    assert fit.seconds((1.0, MIB), 60 * SECOND_NS) == pytest.approx(now, rel=0.06)
    guess = fit.guess((1.0, MIB))
    assert fit.seconds((1.0, MIB), 600 * SECOND_NS) == pytest.approx((guess * now) ** 0.5)


def test_a_latency_hundreds_of_times_the_guess_is_found() -> None:
    fit = transfers()
    feed(fit, 0.4, 200e6, [4, 64, 16, 90, 32, 4, 90, 16, 64, 32])
    for size in (4, 90):
        wanted = pytest.approx(0.4 + size * MIB / 200e6, rel=0.15)
        assert fit.seconds((1.0, size * MIB), 0) == wanted


def test_a_row_of_another_size_starts_anew() -> None:
    fit = Fit(PRIOR, returns=True, row=CostRow(gram=[1.0], moment=[1.0], samples=9))
    assert fit.row.samples == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e10), st.floats(1e-7, 1e5)),
        min_size=1,
        max_size=30,
    )
)
def test_no_estimate_is_below_zero(measured: list[tuple[float, float]]) -> None:
    fit = transfers()
    for size_bytes, seconds in measured:
        fit.observe((1.0, size_bytes), seconds, 0)
        for asked in (0.0, 1e3, 1e9):
            assert 0.0 <= fit.seconds((1.0, asked), 0) < float("inf")
