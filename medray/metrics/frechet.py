"""Frechet distance of two sets of features: exact, float64, by the fastest stable route.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)      (Heusel et al., NeurIPS 2017)

tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1 S2, and with S1 = F1 F1' and
S2 = F2 F2' the nuclear norm of F1' F2. A symmetric eigenproblem gives the first in less time; the
second has the errors of rounding and not of its root, and is taken where that would show.

Shape letters: N and M rows, D features, R and S ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from medray.metrics._checks import check_features

Floats = NDArray[np.float64]
Features = NDArray[np.floating[Any]]

_ROWS_AT_ONCE = 4096
# How far an eigenvalue may be off, as a share of the largest, and the roots' sum, of the traces.
_EIGENVALUE_ERROR, _ROOTS_ERROR = 2e-15, 1e-8
# What may be left of a covariance after its factor is taken off, as a share of its trace.
_LEAST_LEFT = 1e-7


def frechet(mean1_D: Floats, cov1_DD: Floats, mean2_D: Floats, cov2_DD: Floats) -> float:
    """Frechet distance of two normal distributions by means and covariances; 0 is equal.

    ValueError unless all are finite, of one D, and the covariances positive semidefinite (only
    their lower triangles are read).
    """
    arrays = [np.asarray(array, np.float64) for array in (mean1_D, cov1_DD, mean2_D, cov2_DD)]
    mean1_D, cov1_DD, mean2_D, cov2_DD = arrays
    _check_moments(arrays)
    total = _trace(cov1_DD) + _trace(cov2_DD)
    return _distance(mean1_D - mean2_D, total, _root_trace(cov1_DD, cov2_DD))


def frechet_of(features1_ND: Features, features2_MD: Features) -> float:
    """Frechet distance of two sets of features, at least two rows each; covariances over N - 1.

    With no more rows than features the covariances are never made. A distance depends on N and M:
    compare at one number only. ValueError for anything but finite (N, D) and (M, D).
    """
    check_features(features1_ND, features2_MD, least=2)
    dims = features1_ND.shape[1]
    if min(len(features1_ND), len(features2_MD)) > dims:
        return frechet(*moments(features1_ND), *moments(features2_MD))
    factors, means, total = [], [], 0.0
    for features in (features1_ND, features2_MD):
        mean_D, factor_DR = _mean_and_factor(features)
        means.append(mean_D)
        factors.append(factor_DR)
        total += float(np.square(factor_DR).sum())
    return _distance(means[0] - means[1], total, _nuclear_norm(*factors))


def moments(features_ND: Features) -> tuple[Floats, Floats]:
    """Mean (D,) and covariance (D, D) over N - 1, in float64, with few rows in work at once."""
    check_features(features_ND, features_ND, least=2)
    count, dims = features_ND.shape
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    cov_DD = np.zeros((dims, dims))
    for first in range(0, count, _ROWS_AT_ONCE):
        centred_ND = features_ND[first : first + _ROWS_AT_ONCE] - mean_D
        cov_DD += centred_ND.T @ centred_ND
    return mean_D, cov_DD / (count - 1)


def _distance(between_D: Floats, traces: float, root_trace: float) -> float:
    """The formula; equal sets may come out a rounding below 0."""
    return max(0.0, float(between_D @ between_D) + traces - 2 * root_trace)


def _root_trace(cov1_DD: Floats, cov2_DD: Floats) -> float:
    """tr (S1 S2)^(1/2)."""
    # Fortran reads a transpose, so what it calls the upper triangle is the lower one.
    upper_DD, failed = linalg.lapack.dpotrf(cov1_DD.T, lower=0)
    if not failed:
        joint_DD, _ = linalg.lapack.dsygst(cov2_DD.T, upper_DD, itype=2, lower=0)
        values_D = linalg.eigvalsh(joint_DD, lower=False, driver="ev", overwrite_a=True)
        roots_D = np.sqrt(np.maximum(values_D, 0))
        if _roots_error(values_D, roots_D) <= _ROOTS_ERROR * (_trace(cov1_DD) + _trace(cov2_DD)):
            return float(roots_D.sum())
    return _nuclear_norm(_factor(cov1_DD), _factor(cov2_DD))


def _roots_error(values_D: Floats, roots_D: Floats) -> float:
    """How far the roots' sum is off if each eigenvalue is: much for those near 0 or below."""
    off_D = np.maximum(-values_D, _EIGENVALUE_ERROR * values_D.max())
    return float((np.sqrt(np.maximum(values_D, 0) + off_D) - roots_D).sum())


def _factor(cov_DD: Floats) -> Floats:
    """F (D, R) with S = F F', by Cholesky with pivots; ValueError if S has negative directions."""
    factor_DD, order_D, rank, _ = linalg.lapack.dpstrf(cov_DD, lower=1)
    factor_DR = np.zeros((len(cov_DD), rank))
    factor_DR[order_D - 1] = np.tril(factor_DD)[:, :rank]
    left_D = np.diag(cov_DD) - np.square(factor_DR).sum(axis=1)
    if np.abs(left_D).sum() > _LEAST_LEFT * max(_trace(cov_DD), 0.0):
        raise ValueError("a covariance must be positive semidefinite, got negative directions")
    return factor_DR


def _mean_and_factor(features_ND: Features) -> tuple[Floats, Floats]:
    """Mean (D,) and F (D, R) with covariance F F', R at most N and D."""
    if len(features_ND) > features_ND.shape[1]:
        mean_D, cov_DD = moments(features_ND)
        return mean_D, _factor(cov_DD)
    rows_ND = features_ND.astype(np.float64)
    mean_D = rows_ND.mean(axis=0)
    return mean_D, (rows_ND - mean_D).T / np.sqrt(len(rows_ND) - 1)


def _nuclear_norm(first_DR: Floats, second_DS: Floats) -> float:
    if not first_DR.shape[1] or not second_DS.shape[1]:
        return 0.0
    return float(np.linalg.svd(first_DR.T @ second_DS, compute_uv=False).sum())


def _trace(cov_DD: Floats) -> float:
    return float(np.trace(cov_DD))


def _check_moments(arrays: list[Floats]) -> None:
    dims = arrays[0].shape[0] if arrays[0].ndim == 1 else 0
    shapes = [array.shape for array in arrays]
    if not dims or shapes != [(dims,), (dims, dims)] * 2:
        raise ValueError(f"moments must be (D,), (D, D), (D,), (D, D), got {shapes}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("moments must be finite, got nan or infinity")
