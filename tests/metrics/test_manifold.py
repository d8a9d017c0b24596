"""Precision, recall, density, coverage against a loop over pairs, and sets of known scores."""

import numpy as np
import pytest

from medray.metrics import _products, manifold
from medray.metrics.manifold import prdc, prdc_rows


def prdc_loop(real_ND, fake_MD, k):
    """Naeem et al. 2020, from differences in float64."""

    def squares(first, second):
        first, second = first.astype(np.float64), second.astype(np.float64)
        return np.array([np.square(row - second).sum(axis=1) for row in first])

    def radii(rows):
        return np.sort(squares(rows, rows), axis=1)[:, k]

    between_NM = squares(real_ND, fake_MD)
    in_real_NM = between_NM < radii(real_ND)[:, None]
    in_fake_NM = between_NM < radii(fake_MD)[None, :]
    scores = {
        "precision": in_real_NM.any(axis=0).mean(),
        "recall": in_fake_NM.any(axis=1).mean(),
        "density": in_real_NM.sum(axis=0).mean() / k,
        "coverage": in_real_NM.any(axis=1).mean(),
    }
    return pytest.approx(scores, rel=1e-12, abs=0)


def made(count, dims, seed, scale=1.0):
    return (np.random.default_rng(seed).normal(size=(count, dims)) * scale).astype(np.float32)


@pytest.mark.parametrize("block", [1, 16, 1024])
@pytest.mark.parametrize("n, dims, m, k", [(2, 1, 2, 1), (40, 3, 30, 5), (60, 128, 90, 3)])
def test_the_scores_equal_a_loop_over_pairs(monkeypatch, block, n, dims, m, k):
    monkeypatch.setattr(_products, "ROWS_AT_ONCE", block)
    real_ND, fake_MD = made(n, dims, 0), made(m, dims, 1, 0.9)
    assert prdc(real_ND, fake_MD, k) == prdc_loop(real_ND, fake_MD, k)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_pairs_at_the_radius_are_decided_in_float64(offset):
    # Points of a grid: distances tie by the hundred, and far from zero float32 would lose them.
    generator = np.random.default_rng(0)
    real_ND = generator.integers(0, 4, (80, 6)).astype(np.float64) + offset
    fake_MD = generator.integers(0, 4, (70, 6)).astype(np.float64) + offset
    assert prdc(real_ND, fake_MD) == prdc_loop(real_ND, fake_MD, 5)


def test_without_the_second_look_pairs_at_the_radius_would_be_wrong(monkeypatch):
    real_ND, fake_MD = made(80, 6, 0).astype(np.float64), made(200, 6, 1).astype(np.float64)
    # Fakes just within and just beyond the radius of a real row, by less than float32 sees.
    radii_N = np.sqrt(manifold._radii(real_ND, 5))
    aim_ND = fake_MD[:80] / np.linalg.norm(fake_MD[:80], axis=1, keepdims=True)
    fake_MD[:80] = real_ND + aim_ND * (radii_N * (1 + 1e-9 * (-1) ** np.arange(80)))[:, None]
    expected = prdc_loop(real_ND, fake_MD, 5)
    assert prdc(real_ND, fake_MD) == expected
    exact = manifold._Pairs.exact
    monkeypatch.setattr(manifold._Pairs, "exact", lambda *given: exact(*given).astype(np.float32))
    assert prdc(real_ND, fake_MD) != expected


def test_a_set_is_precise_and_covered_by_a_sample_of_the_same():
    real_ND, fake_MD = made(500, 8, 2), made(500, 8, 3)
    scores = prdc(real_ND, fake_MD)
    assert scores["precision"] > 0.75 and scores["recall"] > 0.75
    assert scores["density"] == pytest.approx(1, abs=0.15) and scores["coverage"] > 0.9


def test_a_collapsed_set_is_precise_and_covers_little():
    real_ND = made(300, 8, 4)
    collapsed_MD = real_ND[:1] + made(300, 8, 5, 0.01)
    scores = prdc(real_ND, collapsed_MD)
    assert scores["precision"] == 1.0 and scores["recall"] <= 0.01 and scores["coverage"] < 0.2


def test_sets_far_apart_share_nothing():
    assert set(prdc(made(50, 4, 6), made(50, 4, 7) + 100).values()) == {0.0}


def test_duplicates_and_constant_features_have_the_defined_result():
    real_ND = np.repeat(made(10, 4, 8), 7, axis=0)
    assert prdc(real_ND, real_ND.copy()) == prdc_loop(real_ND, real_ND, 5)
    assert set(prdc(np.ones((9, 3)), np.ones((9, 3))).values()) == {0.0}


def test_rows_add_up_to_the_scores():
    real_ND, fake_MD = made(50, 5, 9), made(60, 5, 10)
    rows = prdc_rows(real_ND, fake_MD)
    assert rows.precision_M.shape == rows.density_M.shape == (60,)
    assert rows.recall_N.shape == rows.coverage_N.shape == (50,)
    assert rows.scores() == prdc(real_ND, fake_MD)


BAD = [
    (np.zeros((5, 2)), np.zeros((9, 2)), 5, "at least 6 rows"),
    (np.zeros((9, 2)), np.zeros((9, 2)), 0, "k must be at least 1"),
    (np.zeros((9, 2)), np.full((9, 2), np.inf), 5, "nan or infinity"),
    (np.zeros((9, 2)), np.zeros(9), 5, r"\(9,\)"),
]


@pytest.mark.parametrize("real, fake, k, message", BAD)
def test_what_has_no_manifold_is_refused(real, fake, k, message):
    with pytest.raises(ValueError, match=message):
        prdc(real, fake, k)
