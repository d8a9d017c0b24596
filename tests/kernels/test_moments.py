"""Class moments: one pass equals the definition, also far from zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray import kernels


def made(count, dims, classes, offset=0.0, dtype=np.float32):
    generator = np.random.default_rng(count)
    features = generator.standard_normal((count, dims)) * np.arange(1, dims + 1) + offset
    return features.astype(dtype), generator.integers(0, classes, count)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 4095, 8193])
@pytest.mark.parametrize("classes", [1, 3])
def test_one_pass_gives_the_means_and_covariances_of_the_definition(count, classes):
    features, labels = made(count, 5, classes)
    counts, means, covariances = kernels.class_moments(features, labels, classes)
    expected = kernels.class_moments_ref(features, labels, classes)
    np.testing.assert_array_equal(counts, expected[0])
    assert means.dtype == covariances.dtype == np.float64
    np.testing.assert_allclose(means, expected[1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(covariances, expected[2], rtol=1e-11, atol=1e-11)


def test_the_definition_is_numpys_own():
    features, labels = made(50, 4, 1)
    np.testing.assert_allclose(
        kernels.class_moments_ref(features, labels, 1)[2][0], np.cov(features.T, dtype=np.float64)
    )


def test_features_far_from_zero_lose_nothing():
    features, labels = made(3000, 4, 2, offset=1e7, dtype=np.float64)
    covariances = kernels.class_moments(features, labels, 2)[2]
    naive = np.stack(
        [
            (rows.T @ rows - len(rows) * np.outer(rows.mean(0), rows.mean(0))) / (len(rows) - 1)
            for rows in (features[labels == c] for c in range(2))
        ]
    )
    expected = kernels.class_moments_ref(features, labels, 2)[2]
    np.testing.assert_allclose(covariances, expected, rtol=1e-7, atol=1e-7)
    assert np.abs(naive - expected).max() > 1e-3


def test_what_too_few_samples_do_not_define_is_nan():
    features, labels = made(3, 2, 1)
    counts, means, covariances = kernels.class_moments(features, np.array([0, 0, 2]), 3)
    assert counts.tolist() == [2, 0, 1]
    assert np.isnan(means[1]).all() and np.isfinite(means[[0, 2]]).all()
    assert np.isnan(covariances[1:]).all() and np.isfinite(covariances[0]).all()
    np.testing.assert_array_equal(means[2], features[2])


def test_constant_features_have_no_variance():
    covariances = kernels.class_moments(np.full((9, 3), 0.1, np.float32), np.zeros(9, int), 1)[2]
    np.testing.assert_array_equal(covariances, 0)


def test_tensors_come_back_as_tensors():
    features, labels = made(40, 3, 2)
    counts, means, covariances = kernels.class_moments(
        torch.from_numpy(features), torch.from_numpy(labels), 2
    )
    expected = kernels.class_moments_ref(features, labels, 2)
    assert counts.tolist() == expected[0].tolist()
    np.testing.assert_allclose(means.numpy(), expected[1])
    np.testing.assert_allclose(covariances.numpy(), expected[2])


@pytest.mark.parametrize(
    "features, labels, classes, text",
    [
        (np.zeros((3, 2), np.float32), np.array([0, 1, 2]), 2, "labels must be 0 to 1, got 0 to 2"),
        (np.zeros((3, 2), np.float32), np.array([-1, 1, 0]), 2, "labels must be 0 to 1"),
        (np.zeros((3, 2), np.float32), np.zeros(2, int), 1, r"shape \(3,\)"),
        (np.zeros((3, 2), np.float32), np.zeros(3), 1, "integers"),
        (np.zeros((3, 2), np.float32), np.zeros(3, int), 0, "at least 1"),
        (np.full((3, 2), np.nan), np.zeros(3, int), 1, "finite"),
        (np.zeros(3), np.zeros(3, int), 1, r"shape \(N, D\)"),
    ],
)
def test_labels_and_features_that_do_not_fit_are_refused(features, labels, classes, text):
    with pytest.raises(ValueError, match=text):
        kernels.class_moments(features, labels, classes)


@pytest.mark.parametrize("count, dims", [(1, 3), (2, 3), (5, 8), (400, 6), (300, 40)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_shrunk_covariances_are_the_definitions_and_scikit_learns(count, dims, offset):
    covariance = pytest.importorskip("sklearn.covariance")
    features, _ = made(count, dims, 1, offset, np.float64)
    labels = np.zeros(count, int)
    counts, means, shrunk, shares = kernels.ledoit_wolf(features, labels, 1)
    expected = kernels.ledoit_wolf_ref(features, labels, 1)
    for ours, theirs in zip((counts, means, shrunk, shares), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    if count > 1:
        other, share = covariance.ledoit_wolf(features)
        np.testing.assert_allclose(shrunk[0], other, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shares[0], share, rtol=1e-5, atol=1e-8)


def test_constant_features_and_one_sample_have_no_covariance_to_shrink():
    features = np.concatenate([np.full((9, 3), 0.1), [[1.0, 2.0, 3.0]]]).astype(np.float32)
    labels = np.array([0] * 9 + [1])
    _, _, shrunk, shares = kernels.ledoit_wolf(features, labels, 3)
    np.testing.assert_array_equal(shrunk[:2], 0)
    np.testing.assert_array_equal(shares[:2], 0)
    assert np.isnan(shrunk[2]).all() and np.isnan(shares[2])
