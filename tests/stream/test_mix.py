"""Proportions of sources: exact over short stretches, a pure function of (seed, image number)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.errors import UsageError
from medray.stream.mix import BLOCK_SLOTS, SHUFFLED_SLOTS, Mix, whole_counts

COUNTS = st.lists(st.integers(1, 12), min_size=2, max_size=4)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1.0], (1,)),
        ([1, 1], (1, 1)),
        ([0.7, 0.3], (7, 3)),
        ([3, 1], (3, 1)),
        ([0.333, 0.667], (333, 667)),
        ([2, 4, 6], (1, 2, 3)),
        ([3875, 1341], (3875, 1341)),
    ],
)
def test_weights_become_the_least_whole_numbers(
    weights: list[float], counts: tuple[int, ...]
) -> None:
    assert whole_counts(weights) == counts


@pytest.mark.parametrize("weights", [[], [0, 1], [-1, 2], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        whole_counts(weights)


def test_proportions_that_no_short_period_holds_are_refused() -> None:
    with pytest.raises(UsageError, match="exact over no period"):
        whole_counts([1, 2**0.5])


@settings(max_examples=40, deadline=None)
@given(weights=COUNTS, seed=st.integers(0, 2**64 - 1))
def test_every_whole_period_has_the_exact_proportions(weights: list[int], seed: int) -> None:
    mix = Mix(seed, weights)
    source_N, _ = mix.draw(0, 2 * BLOCK_SLOTS)
    together = max(mix.period, SHUFFLED_SLOTS // mix.period * mix.period)
    blocks = BLOCK_SLOTS // mix.period * mix.period
    for first in range(0, blocks - together + 1, together):
        found = np.bincount(source_N[first : first + together], minlength=len(weights))
        assert (found * mix.period == np.asarray(mix.counts) * together).all()


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.integers(1, 300), min_size=2, max_size=4))
def test_any_stretch_has_the_proportions_to_within_a_few_images(weights: list[int]) -> None:
    mix = Mix(0, weights)
    source_N, _ = mix.draw(0, 5000)
    for source, count in enumerate(mix.counts):
        seen = np.cumsum(source_N == source)
        wanted = np.arange(1, 5001) * count / mix.period
        assert np.abs(seen - wanted).max() <= SHUFFLED_SLOTS + len(weights)


@settings(max_examples=40, deadline=None)
@given(weights=COUNTS, cuts=st.lists(st.integers(1, 700), min_size=1, max_size=6))
def test_each_source_is_counted_through_without_a_gap_however_it_is_asked(
    weights: list[int], cuts: list[int]
) -> None:
    mix, at, parts = Mix(3, weights), 0, []
    for cut in cuts:
        parts.append(mix.draw(at, cut))
        at += cut
    source_N, number_N = (np.concatenate(side) for side in zip(*parts, strict=True))
    for source in range(len(weights)):
        numbers = number_N[source_N == source]
        assert numbers.tolist() == list(range(len(numbers)))
    assert [side[-1] for side in Mix(3, weights).draw(at - 1, 1)] == [source_N[-1], number_N[-1]]


def test_another_seed_mixes_otherwise() -> None:
    one, other = (Mix(seed, [2, 3]).draw(0, 100)[0] for seed in (1, 2))
    assert one.tolist() != other.tolist()
