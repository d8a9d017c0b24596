"""Samplers of features: each row a function of its address, each class as it was fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray import kernels
from medray.errors import UsageError
from medray.kernels import allocation, gaussian, interpolate
from medray.sample import features as samplers

ALL = {
    "diagonal": lambda: samplers.Gaussian("diagonal"),
    "low_rank": lambda: samplers.Gaussian("low_rank", rank=2),
    "full": lambda: samplers.Gaussian("full"),
    "smote": lambda: samplers.SMOTE(3),
    "borderline": lambda: samplers.BorderlineSMOTE(3, 6),
    "adasyn": lambda: samplers.ADASYN(3),
    "mixup": lambda: samplers.Mixup(0.4),
}


def made(count=90, dims=6, seed=0):
    """Three classes, 1 : 2 : 3, that overlap."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 6
    labels = np.where(labels > 2, 9, np.where(labels > 0, 4, -2))
    features = generator.standard_normal((count, dims)) + labels[:, None] / 8
    return features.astype(np.float32), labels


@pytest.mark.parametrize("name", ALL)
def test_a_row_is_a_function_of_seed_and_index_alone(name):
    sampler = ALL[name]().fit(*made())
    rows, labels = sampler.sample(500, seed=3)
    assert rows.shape == (500, 6) and rows.dtype == np.float32 and np.isfinite(rows).all()
    for start, count in [(0, 0), (0, 7), (123, 1), (250, 250)]:
        part, same = sampler.sample(count, seed=3, start=start)
        np.testing.assert_array_equal(part, rows[start : start + count])
        np.testing.assert_array_equal(same, labels[start : start + count])
    other, _ = sampler.sample(500, seed=4, labels=labels)
    assert (other != rows).any(1).all()


@pytest.mark.parametrize("name", ALL)
def test_labels_are_drawn_in_proportion_balanced_or_as_told(name):
    sampler = ALL[name]().fit(*made())
    _, labels = sampler.sample(6000, seed=1)
    np.testing.assert_allclose([(labels == c).mean() for c in (-2, 4, 9)], [1 / 6, 1 / 3, 1 / 2],
                               atol=0.03)  # fmt: skip
    _, labels = sampler.sample(300, seed=1, labels="balanced")
    assert [int((labels == c).sum()) for c in (-2, 4, 9)] == [100, 100, 100]
    wanted = np.array([9, -2, 4, 4])
    np.testing.assert_array_equal(sampler.sample(4, 1, labels=wanted)[1], wanted)


@pytest.mark.parametrize("name", ALL)
def test_tensors_give_tensors_of_the_same_numbers(name):
    features, labels = made()
    expected, names = ALL[name]().fit(features, labels).sample(50, 2)
    sampler = ALL[name]().fit(torch.from_numpy(features), torch.from_numpy(labels))
    rows, drawn = sampler.sample(50, 2)
    assert isinstance(rows, torch.Tensor) and isinstance(drawn, torch.Tensor)
    np.testing.assert_array_equal(drawn.numpy(), names)
    if name != "low_rank" and name != "full":  # eigenvectors are those of two libraries
        np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_labels_may_be_words():
    features, labels = made()
    words = np.array(["tumour" if label == 9 else "none" for label in labels])
    rows, drawn = samplers.SMOTE().fit(features, words).sample(5, 0, labels=["tumour"] * 5)
    assert rows.shape == (5, 6) and drawn.tolist() == ["tumour"] * 5


@pytest.mark.parametrize("name", ["smote", "borderline", "adasyn"])
def test_smote_rows_lie_between_a_row_and_a_neighbour_of_its_class(name):
    features, labels = made()
    sampler = ALL[name]().fit(features, labels)
    rows, drawn = sampler.sample(200, 5)
    for row, label in zip(rows, drawn, strict=True):
        own = features[labels == label]
        _, near = kernels.nearest_ref(own, own, 3, exclude_self=True)
        ends = own[near] - own[:, None]
        along = ((row - own)[:, None] * ends).sum(2) / (ends**2).sum(2)
        gaps = np.linalg.norm(own[:, None] + along[..., None] * ends - row, axis=2)
        gaps[(along < -1e-6) | (along > 1 + 1e-6)] = np.inf
        assert gaps.min() < 1e-4


def test_the_kernels_definitions_make_the_same_rows():
    features, labels = made()
    numbers = np.searchsorted([-2, 4, 9], labels)
    sampler = samplers.SMOTE(3).fit(features, labels)
    rows, drawn = sampler.sample(40, 8, start=2**40)
    wanted = np.searchsorted([-2, 4, 9], drawn)
    pools = allocation.Pools.of(np.ones(90), numbers, 3)
    bases = allocation.choose_ref(8, wanted, pools, start=2**40)
    near = np.empty((90, 3), np.int64)
    for c in range(3):
        members = np.flatnonzero(numbers == c)
        own = features[members]
        near[members] = members[kernels.nearest_ref(own, own, 3, exclude_self=True)[1]]
    expected = interpolate.smote_ref(8, 40, features, near, bases_N=bases, start=2**40)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    plain = samplers.Gaussian().fit(features, labels)
    means, variances = kernels.class_variances_ref(features, numbers, 3)
    expected = gaussian.diagonal_ref(8, wanted, means, variances**0.5, start=2**40)
    np.testing.assert_allclose(plain.sample(40, 8, 2**40, drawn)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["diagonal", "low_rank", "full"])
def test_gaussians_have_the_mean_and_covariance_that_were_fitted(name):
    features, labels = made(3000, 5)
    features[:, 1] += 2 * features[:, 0]
    rows, _ = ALL[name]().fit(features, labels).sample(100_000, 1, labels=np.full(100_000, 4))
    expected = np.cov(features[labels == 4].T)
    found = np.cov(rows.T)
    np.testing.assert_allclose(rows.mean(0), features[labels == 4].mean(0), atol=0.05)
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=0.05)
    if name == "full":
        np.testing.assert_allclose(found, expected, atol=0.15)
    if name == "low_rank":
        assert abs(found[0, 1] - expected[0, 1]) < 0.25
    if name == "diagonal":
        assert np.abs(found - np.diag(np.diag(found))).max() < 0.1


def test_borderline_and_adasyn_start_where_classes_meet():
    generator = np.random.default_rng(0)
    far = generator.standard_normal((40, 2)) - 100
    meeting = generator.standard_normal((30, 2))
    features = np.concatenate([far, meeting, generator.standard_normal((40, 2))])
    labels = np.array([0] * 70 + [1] * 40)
    for sampler in (samplers.BorderlineSMOTE(3, 5), samplers.ADASYN(3)):
        rows, _ = sampler.fit(features, labels).sample(300, 1, labels=np.zeros(300, int))
        assert (rows > -50).all()
    rows, _ = samplers.SMOTE(3).fit(features, labels).sample(300, 1, labels=np.zeros(300, int))
    assert 100 < (rows[:, 0] < -50).sum() < 250


@pytest.mark.parametrize("name", ALL)
def test_constant_features_stay_constant(name):
    features, labels = made()
    features[:, 2], features[:, 4] = 0.1, 7.0
    rows, _ = ALL[name]().fit(features, labels).sample(100, 0)
    # Shrinkage gives every axis of a full covariance a little of the mean variance.
    if name not in ("full", "low_rank"):
        np.testing.assert_allclose(rows[:, [2, 4]], np.float32([[0.1, 7.0]] * 100), rtol=1e-6)
    same, _ = ALL["smote"]().fit(features * 0 + 1, labels).sample(20, 0)
    np.testing.assert_array_equal(same, 1)


def test_duplicates_are_neighbours_and_samples_between_them_are_copies():
    rows = np.repeat(np.arange(12, dtype=np.float32).reshape(3, 4), 4, 0)
    drawn, _ = samplers.SMOTE(3).fit(rows, np.zeros(12, int)).sample(50, 0)
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in rows.tolist()}


def test_one_sample_in_a_class_or_fewer_than_k_is_named():
    features, labels = made()
    labels[:] = 4
    labels[0] = 7
    for sampler in (samplers.Gaussian(), samplers.Gaussian("full"), samplers.SMOTE()):
        with pytest.raises(UsageError, match=r"of 7 \(1\)"):
            sampler.fit(features, labels)
    rows, _ = samplers.Mixup().fit(features, labels).sample(3, 0, labels=np.full(3, 7))
    np.testing.assert_allclose(rows, features[[0, 0, 0]], rtol=1e-6)
    with pytest.raises(UsageError, match="at least 51 rows"):
        samplers.SMOTE(50).fit(features[:40], np.zeros(40, int))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_with_their_number(name, bad):
    features, labels = made()
    features[7, 3] = bad
    with pytest.raises(UsageError, match="finite.*row"):
        ALL[name]().fit(features, labels)


def test_a_class_without_a_row_in_danger_cannot_be_drawn():
    features = np.concatenate([np.random.default_rng(0).standard_normal((40, 2)), np.zeros((9, 2))])
    features[40:] += np.random.default_rng(1).standard_normal((9, 2)) / 100 + 50
    features[40:43] = features[:3] + 0.01
    labels = np.array([0] * 40 + [1] * 9)
    sampler = samplers.ADASYN(3).fit(features, labels)
    features[40:43] += 50
    with pytest.raises(UsageError, match="no row of any class"):
        samplers.ADASYN(3).fit(features, labels)
    assert set(sampler.sample(50, 0)[1].tolist()) <= {0, 1}


REFUSED = {
    "unknown label": (lambda s: s.sample(1, 0, labels=np.array([5])), "label 5 was not fitted"),
    "label beyond": (lambda s: s.sample(1, 0, labels=np.array([99])), "label 99 was not fitted"),
    "wrong count": (lambda s: s.sample(2, 0, labels=np.array([4])), r"shape \(2,\)"),
    "word": (lambda s: s.sample(2, 0, labels="natural"), "'balanced'"),
    "unfitted": (lambda s: samplers.SMOTE().sample(1, 0), "must be fitted"),
    "lengths": (lambda s: samplers.SMOTE().fit(*[a[: 9 - i] for i, a in enumerate(made())]), "one"),
    "no rows": (lambda s: samplers.SMOTE().fit(*[a[:0] for a in made()]), "at least one"),
    "k": (lambda s: samplers.SMOTE(0), "at least 1"),
    "m": (lambda s: samplers.BorderlineSMOTE(3, 0), "at least 1"),
    "rank": (lambda s: samplers.Gaussian("low_rank", rank=0), "at least 1"),
    "covariance": (lambda s: samplers.Gaussian("round"), "diagonal, low_rank or full"),  # type: ignore[arg-type]
    "alpha": (lambda s: samplers.Mixup(0), "0.01 to 100"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fitted_or_drawn_is_refused_with_what_is_allowed(case):
    call, text = REFUSED[case]
    with pytest.raises(UsageError, match=text):
        call(samplers.SMOTE(3).fit(*made()))


def test_a_row_of_its_own_is_left_out_of_foreign_neighbours_among_duplicates():
    features = np.zeros((6, 2), np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1])
    counts = samplers.foreign(features, labels, 5)
    assert counts.tolist() == [3] * 6
    np.testing.assert_array_equal(samplers.foreign(features, labels, 5, np.array([4])), [3])
    with pytest.raises(ValueError, match="more than 6 rows"):
        samplers.foreign(features, labels, 6)
