"""The imbalanced-learn sampler: that library's own checks, and its definitions."""

from __future__ import annotations

import numpy as np
import pytest

imblearn = pytest.importorskip("imblearn")

from imblearn import over_sampling  # noqa: E402
from imblearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402

from medray.sample.resample import METHODS, FeatureOverSampler  # noqa: E402

CHECKS = [
    (method, check)
    for method in METHODS
    for _, check in estimator_checks_generator(FeatureOverSampler(method=method, random_state=0))
]


def _name(value):
    return getattr(getattr(value, "func", value), "__name__", str(value))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method, check", CHECKS, ids=_name)
def test_imbalanced_learns_own_checks_pass(method, check):
    check(FeatureOverSampler(method=method, random_state=0))


def made(dims=8, dtype=np.float64):
    generator = np.random.default_rng(4)
    X = np.concatenate([generator.standard_normal((300, dims)),
                        generator.standard_normal((60, dims)) + 0.7])  # fmt: skip
    return X.astype(dtype), np.array([0] * 300 + [1] * 60)


def test_the_neighbours_are_the_sets_of_imbalanced_learn():
    from sklearn.neighbors import NearestNeighbors

    from medray import kernels

    X, y = made(64)
    own = X[y == 1]
    theirs = NearestNeighbors(n_neighbors=6).fit(own).kneighbors(own, return_distance=False)[:, 1:]
    _, ours = kernels.nearest(own, own, 5, exclude_self=True)
    np.testing.assert_array_equal(np.sort(ours, 1), np.sort(theirs, 1))


def on_segments(made_ND, own_ND, starts_N):
    """Whether each made row lies between the row that it starts from and one of its 5 nearest."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=6).fit(own_ND).kneighbors(own_ND, return_distance=False)
    ends = own_ND[near[:, 1:]] - own_ND[:, None]
    off = np.empty(len(made_ND))
    for n, (row, start) in enumerate(zip(made_ND, starts_N, strict=True)):
        along = ((row - own_ND[start]) * ends[start]).sum(1) / (ends[start] ** 2).sum(1)
        along = along.clip(0, 1)[:, None]
        off[n] = np.linalg.norm(own_ND[start] + along * ends[start] - row, axis=1).min()
    return off < 1e-5


def both(method, other):
    X, y = made()
    theirs = other.fit_resample(X, y)
    ours = FeatureOverSampler(method=method, random_state=0).fit_resample(X, y)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[0][: len(X)], X)
    return X, y, ours[0][len(X) :], theirs[0][len(X) :]


def test_smote_makes_as_many_points_on_the_same_segments_as_imbalanced_learn():
    X, y, ours, theirs = both("smote", over_sampling.SMOTE(random_state=0))
    own = X[y == 1]
    for rows in (ours, theirs):
        start = np.array([on_segments(rows, own, np.full(len(rows), n)) for n in range(len(own))])
        assert start.any(0).all() and start.any(1).all()


def test_adasyn_allots_each_row_what_imbalanced_learn_does():
    from sklearn.neighbors import NearestNeighbors

    X, y, ours, theirs = both("adasyn", over_sampling.ADASYN(random_state=0))
    near = NearestNeighbors(n_neighbors=6).fit(X).kneighbors(X[y == 1], return_distance=False)
    shares = (y[near[:, 1:]] != 1).mean(1)
    times = np.rint(shares / shares.sum() * 240).astype(int)
    starts = np.repeat(np.arange(60), times)
    for rows in (ours, theirs):
        assert on_segments(rows, X[y == 1], starts).all()
    assert not on_segments(ours, X[y == 1], np.roll(starts, 40)).all()


def test_borderline_starts_from_the_rows_in_danger_of_imbalanced_learn():
    from medray.kernels import allocation
    from medray.sample.features import foreign

    other = over_sampling.BorderlineSMOTE(random_state=0)
    X, y, ours, theirs = both("borderline", other)
    danger = allocation.in_danger(foreign(X, y, 10), 10) & (y == 1)
    np.testing.assert_array_equal(np.flatnonzero(danger), other.in_danger_indices[1])
    starts = np.flatnonzero(danger[y == 1])
    for rows in (ours, theirs):
        from_any = [on_segments(rows, X[y == 1], np.full(len(rows), n)) for n in starts]
        assert np.any(from_any, 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_seed_gives_the_same_rows_in_the_type_of_x(dtype):
    X, y = made(dtype=dtype)
    one, other = (FeatureOverSampler(random_state=7).fit_resample(X, y)[0] for _ in range(2))
    assert one.dtype == dtype
    np.testing.assert_array_equal(one, other)


def test_too_few_rows_of_a_class_and_no_rows_in_danger_are_told_or_defined():
    X, y = made()
    y[:] = 0
    y[:3] = 1
    with pytest.raises(ValueError, match="k must be 1 to 2"):
        FeatureOverSampler(random_state=0).fit_resample(X, y)
    apart = np.concatenate([X[:300], X[300:] + 1000])
    labels = np.array([0] * 300 + [1] * 60)
    same, _ = FeatureOverSampler(method="borderline", random_state=0).fit_resample(apart, labels)
    np.testing.assert_array_equal(same, apart)
    with pytest.raises(ValueError, match="neighbour of another class"):
        FeatureOverSampler(method="adasyn", random_state=0).fit_resample(apart, labels)
