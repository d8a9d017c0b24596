"""The kernel distance against a loop over pairs, against subsets, and its own expectations."""

import numpy as np
import pytest

from medray.metrics import _products
from medray.metrics.kid import kid


def kid_loop(first_ND, second_MD):
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    first, second = first_ND.astype(np.float64), second_MD.astype(np.float64)
    within = [
        np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j])
        for rows in (first, second)
    ]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in first for y in second])


def made(count, dims, seed, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, dims)) + shift).astype(np.float32)


SIZES = [(2, 1, 2), (17, 5, 9), (40, 33, 56)]


@pytest.mark.parametrize("block", [1, 7, 8, 1024])
@pytest.mark.parametrize("n, dims, m", SIZES)
def test_the_distance_equals_a_loop_over_pairs(monkeypatch, block, n, dims, m):
    monkeypatch.setattr(_products, "quick", lambda rows: rows)
    monkeypatch.setattr(_products, "ROWS_AT_ONCE", block)
    monkeypatch.setattr("medray.metrics.kid._SMALL", block)
    first_ND, second_MD = made(n, dims, 0), made(m, dims, 1, 0.3)
    expected = kid_loop(first_ND, second_MD)
    assert kid(first_ND, second_MD) == pytest.approx(expected, abs=1e-6)
    assert kid(second_MD, first_ND) == pytest.approx(expected, abs=1e-6)


def kid_textbook(first_ND, second_MD):
    """All pairs at once in float64; the mean kernel between the sets besides."""
    first, second = first_ND.astype(np.float64), second_MD.astype(np.float64)
    within = []
    for rows in (first, second):
        kernel = (rows @ rows.T / rows.shape[1] + 1) ** 3
        within.append((kernel.sum() - np.trace(kernel)) / (len(rows) * (len(rows) - 1)))
    between = ((first @ second.T / first.shape[1] + 1) ** 3).mean()
    return sum(within) - 2 * between, between


@pytest.mark.parametrize("quick, tolerance", [(False, 3e-9), (True, 6e-7)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_products_of_either_type_give_the_distance(monkeypatch, quick, tolerance, offset):
    monkeypatch.setattr(_products, "quick", lambda rows: rows.bfloat16() if quick else rows)
    first_ND, second_MD = made(500, 512, 4, offset), made(600, 512, 5, offset + 0.02)
    expected, scale = kid_textbook(first_ND, second_MD)
    assert kid(first_ND, second_MD) == pytest.approx(expected, abs=tolerance * scale)


def test_without_the_known_sum_bfloat16_would_be_ten_times_as_far_off(monkeypatch):
    monkeypatch.setattr(_products, "quick", lambda rows: rows.bfloat16())
    first_ND, second_MD = made(500, 512, 4, 1.0), made(600, 512, 5, 1.02)
    expected, _ = kid_textbook(first_ND, second_MD)
    corrected = abs(kid(first_ND, second_MD) - expected)
    monkeypatch.setattr(
        "medray.metrics.kid._mean", lambda sums, true, pairs: float(sums[0]) / pairs
    )
    assert abs(kid(first_ND, second_MD) - expected) > 10 * corrected


def test_subsets_estimate_what_all_pairs_give():
    first_ND, second_MD = made(600, 20, 2), made(600, 20, 3, 0.1)
    generator = np.random.default_rng(0)
    estimates = [
        kid(first_ND[generator.permutation(600)[:100]], second_MD[generator.permutation(600)[:100]])
        for _ in range(200)
    ]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert kid(first_ND, second_MD) == pytest.approx(np.mean(estimates), abs=4 * error)


def test_equal_distributions_have_distance_zero_on_average_and_others_do_not():
    found = [kid(made(50, 10, 2 * trial), made(50, 10, 2 * trial + 1)) for trial in range(100)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 10
    assert min(found) < 0
    shifted = [kid(made(50, 10, trial), made(50, 10, 999, 0.2 * trial)) for trial in range(1, 5)]
    assert shifted == sorted(shifted) and shifted[0] > 0


def test_float64_and_constant_features_are_taken():
    first_ND = np.full((5, 4), 2.0)
    assert kid(first_ND, first_ND.copy()) == 0.0
    assert kid(first_ND, np.zeros((3, 4))) == pytest.approx(125 + 1 - 2)


BAD = [
    (np.zeros((1, 2)), np.zeros((5, 2)), "at least 2 rows"),
    (np.zeros((5, 2)), np.zeros((5, 3)), r"\(5, 3\)"),
    (np.zeros((5, 2)), np.full((5, 2), np.nan), "nan or infinity"),
    (np.full((5, 2), 1e20), np.zeros((5, 2)), "too large"),
]


@pytest.mark.parametrize("first, second, message", BAD)
def test_what_has_no_kernel_distance_is_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        kid(first, second)


@pytest.mark.parametrize("n, dims, m", [(1, 1, 1), (3, 5, 2), (65, 130, 33)])
def test_the_product_is_that_of_torch(n, dims, m):
    rows_ND, columns_MD = (
        _products.as_float32(made(n, dims, 0)),
        _products.as_float32(made(m, dims, 1)),
    )
    found_NM = _products.product(rows_ND, columns_MD)
    expected_NM = rows_ND.double() @ columns_MD.double().T
    np.testing.assert_allclose(found_NM, expected_NM, atol=1e-4)
