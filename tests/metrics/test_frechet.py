"""The Frechet distance against the textbook formula, exact values, and its own symmetries."""

import numpy as np
import pytest
from scipy import linalg

from medray.metrics.frechet import frechet, frechet_of, moments


def textbook(first_ND, second_MD):
    """Heusel et al. with SciPy's matrix root of the product of the covariances."""
    (mean1, cov1), (mean2, cov2) = (
        (rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))) for rows in (first_ND, second_MD)
    )
    root = linalg.sqrtm(cov1 @ cov2)
    return np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * np.real(root))


def features(count, dims, seed, shift=0.0):
    """Rows as a network gives them: mixed, cut off at 0, few strong directions."""
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dims, dims)) / np.sqrt(dims)
    strength = 1 / np.arange(1, dims + 1) ** 0.7
    return np.maximum(generator.normal(size=(count, dims)) * strength @ mix + shift, 0)


SIZES = [(300, 1, 300), (500, 64, 400), (65, 64, 66), (64, 64, 65), (40, 64, 400), (400, 64, 40)]
SIZES += [(20, 64, 30), (2, 64, 2), (3, 2, 5), (700, 256, 700)]


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("n, dims, m", SIZES)
def test_the_distance_equals_the_textbook_formula(n, dims, m):
    first_ND, second_MD = features(n, dims, 0), features(m, dims, 1, 0.02)
    expected = textbook(first_ND, second_MD)
    assert frechet_of(first_ND, second_MD) == pytest.approx(expected, abs=1e-6)
    found = frechet(*moments(first_ND), *moments(second_MD))
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n, dims, m", SIZES)
def test_both_routes_give_the_same(n, dims, m):
    first_ND, second_MD = features(n, dims, 2), features(m, dims, 3, 0.02)
    by_moments = frechet(*moments(first_ND), *moments(second_MD))
    assert frechet_of(first_ND, second_MD) == pytest.approx(by_moments, abs=1e-8)
    assert frechet_of(second_MD, first_ND) == pytest.approx(by_moments, abs=1e-8)


@pytest.mark.parametrize("n, dims", [(300, 1), (500, 64), (64, 64), (20, 64)])
def test_a_set_is_at_distance_zero_from_itself(n, dims):
    rows_ND = features(n, dims, 4)
    assert frechet_of(rows_ND, rows_ND.copy()) < 1e-9
    assert frechet(*moments(rows_ND), *moments(rows_ND)) < 1e-6


def test_normals_whose_axes_agree_have_the_distance_of_their_deviations():
    generator = np.random.default_rng(0)
    axes_DD, _ = np.linalg.qr(generator.normal(size=(50, 50)))
    sd1_D, sd2_D = generator.uniform(0, 2, (2, 50))
    sd1_D[:5] = 0
    mean1_D, mean2_D = generator.normal(size=(2, 50))
    cov1_DD, cov2_DD = ((axes_DD * sd_D**2) @ axes_DD.T for sd_D in (sd1_D, sd2_D))
    expected = np.sum((mean1_D - mean2_D) ** 2) + np.sum((sd1_D - sd2_D) ** 2)
    assert frechet(mean1_D, cov1_DD, mean2_D, cov2_DD) == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_constant_features_are_at_the_distance_of_their_means():
    first_ND, second_MD = np.full((9, 4), 1.5), np.full((7, 4), 2.0)
    assert frechet_of(first_ND, second_MD) == pytest.approx(1.0)
    assert frechet(*moments(first_ND), *moments(second_MD)) == pytest.approx(1.0)
    mixed_MD = np.hstack([second_MD[:, :3], np.arange(7.0)[:, None]])
    assert frechet_of(first_ND, mixed_MD) == pytest.approx(textbook(first_ND, mixed_MD))


def test_a_direction_that_is_missing_in_one_set_does_not_cost_accuracy():
    # The root of rounding would show: 200 directions without variance beside strong ones.
    first_ND = features(600, 256, 5) * 100
    second_MD = first_ND.copy()
    second_MD[:, 56:] = 0
    kept, whole = np.cov(first_ND[:, :56], rowvar=False), np.cov(first_ND, rowvar=False)
    joint = whole[:56, :56] @ kept
    expected = np.sum(first_ND[:, 56:].mean(0) ** 2) + np.trace(whole) + np.trace(kept)
    expected -= 2 * np.sqrt(np.maximum(np.linalg.eigvals(joint).real, 0)).sum()
    found = frechet(*moments(first_ND), *moments(second_MD))
    assert found == pytest.approx(expected, rel=1e-9)


def test_moments_are_those_of_numpy_however_many_rows_are_in_work(monkeypatch):
    rows_ND = (features(500, 32, 6) + 1000).astype(np.float32)
    mean_D, cov_DD = moments(rows_ND)
    np.testing.assert_allclose(mean_D, rows_ND.astype(np.float64).mean(0))
    expected = np.cov(rows_ND.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(cov_DD, expected, atol=1e-12)
    monkeypatch.setattr("medray.metrics.frechet._ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(moments(rows_ND)[1], cov_DD, atol=1e-12)


def test_the_distance_grows_with_every_kind_of_change():
    real_ND, other_ND = features(800, 32, 7), features(800, 32, 8)
    for changed in (lambda k: other_ND + 0.05 * k, lambda k: other_ND * (1 + 0.2 * k)):
        found = [frechet_of(real_ND, changed(k)) for k in range(5)]
        assert found == sorted(found) and found[0] < found[-1]


GOOD = np.zeros(2), np.eye(2)
BAD = [
    (lambda: frechet_of(np.zeros((1, 2)), np.zeros((5, 2))), "at least 2 rows"),
    (lambda: frechet_of(np.zeros((5, 2)), np.zeros((5, 3))), r"\(5, 2\) and \(5, 3\)"),
    (lambda: frechet_of(np.zeros((5, 2)), np.full((5, 2), np.nan)), "nan or infinity"),
    (lambda: frechet_of(np.zeros((5, 2), int), np.zeros((5, 2), int)), "floating"),
    (lambda: frechet_of(np.zeros((5, 0)), np.zeros((5, 0))), r"\(5, 0\)"),
    (lambda: frechet(*GOOD, np.zeros(3), np.eye(3)), r"\(D,\), \(D, D\)"),
    (lambda: frechet(*GOOD, np.zeros(2), np.diag([1.0, np.inf])), "finite"),
    (lambda: frechet(*GOOD, np.zeros(2), np.diag([1.0, -0.5])), "semidefinite"),
    (lambda: frechet(*GOOD, np.zeros(2), np.array([[1.0, 2], [2, 1]])), "semidefinite"),
    (lambda: frechet(*GOOD, np.zeros(2), -np.eye(2)), "semidefinite"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_what_has_no_frechet_distance_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
