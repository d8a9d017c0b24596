"""Membership attacks: they find what was memorised, and nothing where nothing was."""

import numpy as np
import pytest

from medray.errors import DataError
from medray.evaluate.membership import attacks, domias, gan_leaks, logan, true_positives

DRAWN = np.random.default_rng(0)
MEMBERS, OTHERS, REFERENCE = (DRAWN.normal(size=(200, 8)).astype(np.float32) for _ in range(3))
FRESH = DRAWN.normal(size=(400, 8)).astype(np.float32)
REPLAYED = (MEMBERS.repeat(2, axis=0) + 0.02 * DRAWN.normal(size=(400, 8))).astype(np.float32)


def scored(synthetic, members=MEMBERS, others=OTHERS):
    found = attacks(members, others, synthetic, REFERENCE, seed=0, draws=50)
    return {one.name: one for one in found}


def test_replayed_training_images_are_found_by_distance_and_by_density():
    found = scored(REPLAYED)
    assert found["GAN-Leaks"].auroc > 0.99 and found["GAN-Leaks"].rates[0].value > 0.9
    assert found["DOMIAS"].auroc > 0.6 and found["DOMIAS"].ci_low > 0.5


def test_a_discriminator_finds_members_where_training_images_lie_apart():
    """LOGAN sees a shift of all members, not single ones: its discriminator is a plane."""
    shifted = MEMBERS + np.float32(0.7)
    synthetic = (shifted.repeat(2, axis=0) + 0.02 * DRAWN.normal(size=(400, 8))).astype(np.float32)
    assert scored(synthetic, members=shifted)["LOGAN"].ci_low > 0.6


def test_synthetic_images_of_nobody_give_nobody_away():
    for one in scored(FRESH).values():
        assert one.ci_low <= 0.5 <= one.ci_high or abs(one.auroc - 0.5) < 0.06


def test_rates_that_so_few_people_cannot_show_are_not_given():
    found = scored(REPLAYED)["GAN-Leaks"]
    assert found.rates[0].value is not None  # 1% of 200
    assert found.rates[1].value is None  # 0.1% of 200 is less than one
    few = scored(REPLAYED, others=OTHERS[:99])["GAN-Leaks"]
    assert [rate.value for rate in few.rates] == [None, None]


def test_true_positives_are_counted_above_the_allowed_false_ones():
    others = np.arange(100.0)
    rate = true_positives(np.array([98.5, 99.5, 98.0, 5.0]), others, 0.01)
    # One of 100 others may be accused: the threshold is the second highest, 98.
    assert rate.value == 0.5 and rate.ci_low < 0.5 < rate.ci_high


def test_a_density_is_higher_where_rows_are():
    near = np.zeros((1, 8), np.float32)
    far = np.full((1, 8), 3, np.float32)
    candidates = np.concatenate([near, far])
    assert np.diff(gan_leaks(candidates, FRESH)) < 0
    assert (
        np.diff(domias(candidates, FRESH, FRESH + 3))
        < 0
        < np.diff(logan(candidates, FRESH + 3, FRESH))
    )


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="19 hold-out images, it takes 20"):
        scored(FRESH, others=OTHERS[:19])
