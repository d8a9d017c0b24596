"""Distances with intervals and floor, on features whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.errors import DataError
from medray.evaluate.distribution import Side, compare
from medray.evaluate.resample import Resampler, groups_of, halves, some
from medray.metrics import UndefinedMetricError
from medray.metrics.frechet import frechet_of
from medray.metrics.manifold import prdc


def rows(count, seed, shift=0.0, dims=6):
    return (np.random.default_rng(seed).normal(size=(count, dims)) + shift).astype(np.float32)


def side(count, seed, shift=0.0, per_patient=2):
    patients = [f"p{seed}-{n // per_patient}" for n in range(count)]
    return Side.of(rows(count, seed, shift), patients)


def judged(real, fake, **named):
    return compare(real, fake, what="all", seed=0, draws=40, **named)


def test_sets_alike_lie_at_the_floor():
    found = judged(side(300, 1), side(150, 2))
    assert found.images == 150
    for name in ("fid", "precision", "recall", "density", "coverage"):
        figure, floor = found.figures[name], found.floor[name]
        assert figure.ci_low <= floor.ci_high and floor.ci_low <= figure.ci_high, name


def test_sets_apart_lie_above_it_and_the_farther_the_more():
    real = side(300, 1)
    fids = [judged(real, side(150, 2, shift)).figures["fid"] for shift in (0.0, 0.3, 0.6, 1.2)]
    values = [figure.value for figure in fids]
    assert values == sorted(values)
    floor = judged(real, side(150, 2)).floor["fid"]
    assert fids[-1].ci_low > floor.ci_high


def test_figures_are_those_of_the_metrics_on_the_rows_compared():
    real, fake = side(60, 1, per_patient=1), side(30, 2, per_patient=1)
    found = judged(real, fake)
    first_N, _ = halves(real.groups_N, 0)
    first = real.only(some(first_N, 30, 0, "all.first")).features_ND
    assert found.figures["fid"].value == pytest.approx(frechet_of(first, fake.features_ND))
    scores = prdc(first, fake.features_ND, 5)
    for name, value in scores.items():
        assert found.figures[name].value == pytest.approx(value)


def test_a_set_that_repeats_itself_has_pairs_at_distance_0():
    repeated = rows(75, 2).repeat(2, axis=0)
    found = judged(side(300, 1), Side.of(repeated, [None] * 150))
    assert found.figures["nn_distance_p01"].value == 0 < found.floor["nn_distance_p01"].value


def test_names_hold_the_number_of_images():
    summary = judged(side(80, 1), side(30, 2)).summary()
    assert {"fid30", "fid30_ci_low", "fid30_floor", "kid30_floor_ci_high", "coverage"} <= set(
        summary
    )


def test_the_same_seed_gives_the_same_intervals_and_another_others():
    real, fake = side(80, 1), side(40, 2)
    again = [compare(real, fake, what="all", seed=seed, draws=30) for seed in (5, 5, 6)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize(
    "real, fake, said",
    [
        (19, 30, "19 real images, it takes 20"),
        (60, 9, "9 synthetic images, it takes 10"),
        (0, 30, "0 real images"),
    ],
)
def test_too_few_images_have_no_distance_which_is_not_0(real, fake, said):
    with pytest.raises(UndefinedMetricError, match=said):
        judged(side(real, 1), side(fake, 2))


def test_images_of_one_patient_make_no_halves():
    one = Side.of(rows(60, 1), ["p"] * 60)
    with pytest.raises(UndefinedMetricError, match="0 in a half"):
        judged(one, side(30, 2))


def test_features_that_are_not_finite_constant_or_of_other_length_are_refused():
    real, fake = side(60, 1), side(30, 2)
    spoilt = fake.features_ND.copy()
    spoilt[3, 2] = np.nan
    with pytest.raises(DataError, match="features of 1 synthetic images are not finite"):
        judged(real, Side(spoilt, fake.groups_N))
    with pytest.raises(UndefinedMetricError, match="never change"):
        judged(Side(np.ones((60, 6), np.float32), real.groups_N), fake)
    with pytest.raises(DataError, match="6 real features an image and 4 synthetic"):
        judged(real, Side.of(rows(30, 2, dims=4), [None] * 30))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([None, "a", "b", "c", "d", "e", "f"]), min_size=2, max_size=60),
    st.integers(0, 2**32),
)
def test_halves_share_no_patient_and_hold_every_row_once(patients, seed):
    groups_N = groups_of(patients)
    first_N, second_N = halves(groups_N, seed)
    assert sorted([*first_N, *second_N]) == list(range(len(patients)))
    assert not set(groups_N[first_N]) & set(groups_N[second_N])


def test_a_bootstrap_draw_takes_whole_patients():
    groups_N = groups_of(["a", "b", "a", "c", "c", "c", None])
    sampler = Resampler(groups_N, 0, "x")
    for number in range(20):
        drawn = sampler.draw(number)
        times = np.bincount(drawn, minlength=7)
        assert times[0] == times[2] and times[3] == times[4] == times[5]
        assert np.array_equal(drawn, sampler.draw(number))
