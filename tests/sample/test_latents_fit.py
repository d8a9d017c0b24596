"""The Gaussian over accepted latents: what is there is found, what noise makes is not."""

import numpy as np
import pytest

from medray.errors import UsageError
from medray.sample.latents_fit import _unbiased, fit

DIMS = 32


def latents(count: int, seed: int = 0, **deviations: float) -> np.ndarray:
    """Normal rows, shifted by 3 along the first axis; `d5=0.2` gives axis 5 that deviation."""
    rows = np.random.default_rng(seed).normal(size=(count, DIMS))
    for name, deviation in deviations.items():
        rows[:, int(name[1:])] *= deviation
    rows[:, 0] += 3
    return rows.astype(np.float32)


def variance_along(gaussian, axis: int) -> float:
    """The fitted variance along an axis."""
    unit = np.eye(DIMS)[axis] * gaussian.diagonal_D
    along = gaussian.directions_DR.T @ unit
    return float(unit @ unit + along @ ((gaussian.scales_R**2 - 1) * along))


def test_the_mean_and_the_narrow_direction_across_the_border_are_found():
    (found,) = fit([latents(300, d0=0.3)])
    assert np.linalg.norm(found.mean_D - 3 * np.eye(DIMS)[0]) < 5 * np.sqrt(DIMS / 300)
    assert variance_along(found, 0) == pytest.approx(0.09, rel=0.5)
    assert len(found.scales_R) >= 1


def test_wide_and_narrow_directions_away_from_the_means_are_found():
    # Turned, so that no axis shows them: the diagonal alone cannot.
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(DIMS, DIMS)))[0]
    rows = (latents(1500, d7=3.0, d9=0.15) @ turn.T).astype(np.float32)
    (found,) = fit([rows])
    wide, narrow = turn[:, 7] * found.diagonal_D, turn[:, 9] * found.diagonal_D
    seen = [
        unit @ unit
        + (found.directions_DR.T @ unit)
        @ ((found.scales_R**2 - 1) * (found.directions_DR.T @ unit))
        for unit in (wide, narrow)
    ]
    assert seen[0] == pytest.approx(9, rel=0.2)
    assert seen[1] < 0.15


def test_noise_alone_gives_no_direction_but_the_mean():
    ranks = [len(fit([latents(count, seed)])[0].scales_R) for count in (40, 400) for seed in (1, 2)]
    assert ranks == [1, 1, 1, 1]


def test_the_rank_grows_with_the_number_of_latents():
    deviations = {f"d{axis}": 1 + 0.25 * axis for axis in range(1, 9)}
    turn = np.linalg.qr(np.random.default_rng(6).normal(size=(DIMS, DIMS)))[0]
    rows = (latents(4000, **deviations) @ turn).astype(np.float32)
    ranks = [len(fit([rows[:count]])[0].scales_R) for count in (16, 100, 4000)]
    assert ranks[0] < ranks[1] < ranks[2] <= DIMS


def test_directions_are_orthonormal_also_with_means_that_depend_on_each_other():
    first = latents(200, 1)
    for gaussian in fit([first, 2 * first, latents(200, 3, d4=3.0)]):
        gram = gaussian.directions_DR.T @ gaussian.directions_DR
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_spread_scales_every_deviation():
    rows = latents(300)
    plain, narrow = fit([rows])[0], fit([rows], spread=0.5)[0]
    np.testing.assert_allclose(narrow.diagonal_D, plain.diagonal_D / 2, rtol=1e-6)
    assert (narrow.mean_D == plain.mean_D).all()
    with pytest.raises(UsageError, match="--spread"):
        fit([rows], spread=0.0)


def test_latents_that_are_all_equal_give_a_narrow_gaussian_and_no_nan():
    (found,) = fit([np.ones((50, DIMS), np.float32)])
    assert (found.diagonal_D > 0).all() and (found.diagonal_D < 0.2).all()
    assert np.isfinite(found.transform(latents(10))).all()


def test_fewer_latents_than_dimensions_still_fit():
    (found,) = fit([latents(8)])
    assert np.isfinite(found.transform(latents(10))).all()


def test_the_correction_undoes_what_noise_does_to_a_variance():
    true, ratio = np.array([4.0, 2.0, 0.2]), 0.25
    seen = true * (1 + ratio / (true - 1))
    np.testing.assert_allclose(_unbiased(seen, ratio), true, rtol=1e-9)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([latents(7)], "at least 8"),
        ([latents(20), latents(20)[:, :5]], "one D"),
        ([np.full((20, DIMS), np.nan, np.float32)], "finite"),
        ([], "one D"),
    ],
)
def test_latents_that_cannot_be_fitted_are_refused(rows, said):
    with pytest.raises(ValueError, match=said):
        fit(rows)
