"""Intervals against exact sums, known answers, and how often they hold the truth."""

import math

import numpy as np
import pytest

from medray.metrics import UndefinedMetricError, classification, intervals


def mean_of(values_N):
    return lambda rows_N: values_N[rows_N].mean()


def test_the_bootstrap_of_a_mean_has_the_analytic_width():
    values_N = np.random.default_rng(0).normal(size=400)
    estimate, low, high = intervals.bootstrap(mean_of(values_N), 400, seed=1)
    half = 1.96 * values_N.std() / math.sqrt(400)
    assert estimate == values_N.mean()
    assert high - estimate == pytest.approx(half, rel=0.15)
    assert estimate - low == pytest.approx(half, rel=0.15)


def test_whole_groups_are_drawn():
    # Ten patients of ten equal images each: as sure as ten values, not as a hundred.
    generator = np.random.default_rng(0)
    by_patient = generator.normal(size=10)
    patient_N = np.array([f"p{number}" for number in np.repeat(np.arange(10), 10)])
    values_N, order_N = np.repeat(by_patient, 10), generator.permutation(100)
    seen = []

    def statistic(rows_N):
        _, counts = np.unique(patient_N[order_N][rows_N], return_counts=True)
        seen.append(set(counts % 10))
        return values_N[order_N][rows_N].mean()

    _, low, high = intervals.bootstrap(statistic, patient_N[order_N], seed=0, draws=500)
    assert all(counts == {0} for counts in seen)
    _, row_low, row_high = intervals.bootstrap(mean_of(values_N), 100, seed=0, draws=500)
    assert (high - low) / (row_high - row_low) == pytest.approx(math.sqrt(10), rel=0.2)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for trial in range(120):
        values_N = np.random.default_rng(trial).normal(size=60)
        _, low, high = intervals.bootstrap(mean_of(values_N), 60, seed=trial, draws=150)
        held += low <= 0 <= high
    assert 0.88 <= held / 120 <= 0.99


def test_an_interval_is_a_function_of_the_seed():
    values_N = np.random.default_rng(0).normal(size=50)
    first = intervals.bootstrap(mean_of(values_N), 50, seed=3, draws=100)
    assert intervals.bootstrap(mean_of(values_N), 50, seed=3, draws=100) == first
    assert intervals.bootstrap(mean_of(values_N), 50, seed=4, draws=100) != first


def test_pairs_are_drawn_together():
    values_N = np.random.default_rng(0).normal(size=80)
    found = intervals.paired_bootstrap(mean_of(values_N + 0.3), mean_of(values_N), 80, seed=0)
    assert found == pytest.approx((0.3, 0.3, 0.3))


def test_draws_without_a_defined_value_are_left_out_until_there_are_too_many():
    scores_N = np.arange(40.0)

    def auroc_of(positives):
        truth_N = (np.arange(40) < positives).astype(int)
        return lambda rows_N: classification.auroc(scores_N[rows_N], truth_N[rows_N])

    _, low, high = intervals.bootstrap(auroc_of(4), 40, seed=0, draws=300)
    assert low == high == 0.0
    with pytest.raises(UndefinedMetricError, match="undefined on .* of 300 draws"):
        intervals.bootstrap(auroc_of(1), 40, seed=0, draws=300)


def at_least(hits, count, share):
    return sum(
        math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits, count + 1)
    )


@pytest.mark.parametrize("hits, count", [(1, 3), (5, 10), (33, 100), (599, 600)])
def test_the_exact_interval_puts_its_tails_where_the_binomial_has_them(hits, count):
    low, high = intervals.binomial_interval(hits, count)
    assert at_least(hits, count, low) == pytest.approx(0.025, rel=1e-6)
    assert 1 - at_least(hits + 1, count, high) == pytest.approx(0.025, rel=1e-6)


def test_the_exact_interval_reaches_the_end_where_all_or_none_hit():
    low, high = intervals.binomial_interval(0, 20)
    assert low == 0.0 and high == pytest.approx(1 - 0.025 ** (1 / 20))
    low, high = intervals.binomial_interval(20, 20)
    assert high == 1.0 and low == pytest.approx(0.025 ** (1 / 20))


BAD = [
    (lambda: intervals.bootstrap(float, 0, seed=0), "0 rows"),
    (lambda: intervals.bootstrap(len, 5, seed=0, draws=0), "0 draws"),
    (lambda: intervals.bootstrap(len, 5, seed=0, level=1.0), "level 1.0"),
    (lambda: intervals.bootstrap(len, np.zeros((2, 2)), seed=0), r"shape \(2, 2\)"),
    (lambda: intervals.binomial_interval(3, 2), "3 of 2"),
    (lambda: intervals.binomial_interval(0, 0), "0 of 0"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_what_has_no_interval_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
