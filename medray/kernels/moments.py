"""Means and covariances of classes in one pass, sums in float64.

A class's first row is taken off all its rows beforehand: of features far from zero, squares would
otherwise lose what the covariance is made of.

Shape letters: N samples, D dimensions, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medray.kernels._arrays import (
    Array,
    as_numpy,
    as_tensor,
    check_finite,
    check_labels,
    check_rows,
    like,
    on_gpu,
)

if TYPE_CHECKING:
    import torch

_ROWS_AT_ONCE = 4096


def class_moments(features_ND: Array, labels_N: Array, classes: int) -> tuple[Array, Array, Array]:
    """Counts (K,) int64, means (K, D) and covariances (K, D, D) float64 of each class.

    Covariances are divided by the count less one. What is not defined is NaN: the mean of an empty
    class, the covariance of fewer than two samples. NumPy or torch in, the same kind out.
    ValueError for NaN in the features and labels outside 0 to classes - 1.
    """
    check_moments(features_ND, labels_N, classes)
    on_gpu(features_ND, labels_N)
    counts_K, means_KD, covariances_KDD = _moments(
        as_tensor(features_ND).contiguous(), as_tensor(labels_N), classes
    )
    return (
        like(counts_K, features_ND),
        like(means_KD, features_ND),
        like(covariances_KDD, features_ND),
    )


def class_moments_ref(
    features_ND: Array, labels_N: Array, classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The definition of `class_moments`: NumPy's mean, and products of the centred rows."""
    check_moments(features_ND, labels_N, classes)
    features_ND, labels_N = as_numpy(features_ND).astype(np.float64), as_numpy(labels_N)
    dims = features_ND.shape[1]
    counts_K = np.bincount(labels_N, minlength=classes)
    means_KD = np.full((classes, dims), np.nan)
    covariances_KDD = np.full((classes, dims, dims), np.nan)
    for c in range(classes):
        rows_ND = features_ND[labels_N == c]
        if len(rows_ND) > 0:
            means_KD[c] = rows_ND.mean(0)
        if len(rows_ND) > 1:
            centred_ND = rows_ND - means_KD[c]
            covariances_KDD[c] = centred_ND.T @ centred_ND / (len(rows_ND) - 1)
    return counts_K, means_KD, covariances_KDD


def class_variances(features_ND: Array, labels_N: Array, classes: int) -> tuple[Array, Array]:
    """Means and variances (K, D) float64 of each class: the diagonals of `class_moments`."""
    import torch

    check_moments(features_ND, labels_N, classes)
    on_gpu(features_ND, labels_N)
    features, labels = as_tensor(features_ND).contiguous(), as_tensor(labels_N)
    means_KD = torch.full((classes, features.shape[1]), torch.nan, dtype=torch.float64).to(
        features.device
    )
    variances_KD = means_KD.clone()
    for c in range(classes):
        members_N = (labels == c).nonzero()[:, 0]
        if len(members_N):
            means_KD[c], squares_D = _sums_of_one_class(features, members_N)
        if len(members_N) > 1:
            variances_KD[c] = squares_D / (len(members_N) - 1)
    return like(means_KD, features_ND), like(variances_KD, features_ND)


def class_variances_ref(
    features_ND: Array, labels_N: Array, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The definition of `class_variances`."""
    _, means_KD, covariances_KDD = class_moments_ref(features_ND, labels_N, classes)
    return means_KD, np.diagonal(covariances_KDD, axis1=1, axis2=2).copy()


def check_features(features_ND: Array) -> None:
    """ValueError unless these are finite floating numbers of shape (N, D)."""
    check_rows("features", features_ND)
    check_finite("features", features_ND)


def ledoit_wolf(
    features_ND: Array, labels_N: Array, classes: int
) -> tuple[Array, Array, Array, Array]:
    """Counts (K,), means (K, D), shrunk covariances (K, D, D), shrinkages (K,), float64.

    The covariance (divided by the count) is drawn towards the multiple of the identity of the same
    trace by the share that minimises the expected squared error (Ledoit and Wolf 2004); a class
    whose features are all constant has covariance and shrinkage 0. Empty classes are NaN.
    """
    counts_K, means_KD, covariances_KDD = (
        as_tensor(a) for a in class_moments(features_ND, labels_N, classes)
    )
    features, labels = as_tensor(features_ND).contiguous(), as_tensor(labels_N)
    shrinkages = means_KD.new_full((classes,), float("nan"))
    for c, count in enumerate(counts_K.tolist()):
        if count:
            members = (labels == c).nonzero()[:, 0]
            scatter_DD = (covariances_KDD[c] * ((count - 1) / count)).nan_to_num(0)
            fourth = _fourth(features, members, means_KD[c])
            covariances_KDD[c], shrinkages[c] = _shrunk(scatter_DD, fourth, count)
    results = counts_K, means_KD, covariances_KDD, shrinkages
    return tuple(like(result, features_ND) for result in results)


def ledoit_wolf_ref(
    features_ND: Array, labels_N: Array, classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The definition of `ledoit_wolf`, row by row as in the paper's estimator of b^2 and d^2."""
    counts_K, means_KD, covariances_KDD = class_moments_ref(features_ND, labels_N, classes)
    rows_ND, shrinkages_K = as_numpy(features_ND).astype(np.float64), np.full(classes, np.nan)
    dims = rows_ND.shape[1]
    for c in range(classes):
        centred_ND = rows_ND[as_numpy(labels_N) == c] - means_KD[c]
        if not len(centred_ND):
            continue
        scatter_DD = centred_ND.T @ centred_ND / len(centred_ND)
        target_DD = np.eye(dims) * np.trace(scatter_DD) / dims
        distance = ((scatter_DD - target_DD) ** 2).sum()
        spread = sum(((np.outer(x, x) - scatter_DD) ** 2).sum() for x in centred_ND)
        share = min(spread / len(centred_ND) ** 2 / distance, 1.0) if distance > 0 else 0.0
        covariances_KDD[c] = share * target_DD + (1 - share) * scatter_DD
        shrinkages_K[c] = share
    return counts_K, means_KD, covariances_KDD, shrinkages_K


def check_moments(features_ND: Array, labels_N: Array, classes: int) -> None:
    """ValueError unless features and labels belong together."""
    check_rows("features", features_ND)
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
    check_labels(labels_N, len(features_ND), classes)
    check_finite("features", features_ND)


def _moments(
    features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    dims, device = features_ND.shape[1], features_ND.device
    counts_K = torch.bincount(labels_N.long(), minlength=classes)
    order_N = torch.argsort(labels_N, stable=True)
    means_KD = torch.full((classes, dims), torch.nan, dtype=torch.float64, device=device)
    covariances_KDD = torch.full(
        (classes, dims, dims), torch.nan, dtype=torch.float64, device=device
    )
    last = 0
    for c, count in enumerate(counts_K.tolist()):
        first, last = last, last + count
        if count:
            means_KD[c], scatter_DD = _of_one_class(features_ND, order_N[first:last])
        if count > 1:
            covariances_KDD[c] = scatter_DD / (count - 1)
    return counts_K, means_KD, covariances_KDD


def _of_one_class(
    features_ND: torch.Tensor, members_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scatter matrix (sum of centred products) of the rows `members_N`."""
    import torch

    shift_D = features_ND[members_N[0]].double()
    dims = len(shift_D)
    sum_D = torch.zeros_like(shift_D)
    products_DD = torch.zeros((dims, dims), dtype=torch.float64, device=shift_D.device)
    for first in range(0, len(members_N), _ROWS_AT_ONCE):
        rows_ND = _shifted(features_ND, members_N[first : first + _ROWS_AT_ONCE], shift_D)
        sum_D += rows_ND.sum(0)
        products_DD.addmm_(rows_ND.T, rows_ND)
    count = len(members_N)
    scatter_DD = products_DD - torch.outer(sum_D, sum_D) / count
    return shift_D + sum_D / count, (scatter_DD + scatter_DD.T) / 2


def _sums_of_one_class(
    features_ND: torch.Tensor, members_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sum of centred squares of the rows `members_N`."""
    import torch

    shift_D = features_ND[members_N[0]].double()
    sum_D, squares_D = torch.zeros_like(shift_D), torch.zeros_like(shift_D)
    for first in range(0, len(members_N), _ROWS_AT_ONCE):
        rows_ND = _shifted(features_ND, members_N[first : first + _ROWS_AT_ONCE], shift_D)
        sum_D += rows_ND.sum(0)
        squares_D += rows_ND.square_().sum(0)
    count = len(members_N)
    return shift_D + sum_D / count, (squares_D - sum_D.square() / count).clamp_(min=0)


def _shifted(
    features_ND: torch.Tensor, members_N: torch.Tensor, shift_D: torch.Tensor
) -> torch.Tensor:
    """The rows `members_N` less `shift_D`, float64."""
    import torch

    if not _is_narrow_on_gpu(features_ND):
        return features_ND[members_N].double() - shift_D
    from medray.kernels._launch import c_type, launch_table

    out = torch.empty((len(members_N), len(shift_D)), dtype=torch.float64, device=shift_D.device)
    arguments = [features_ND, members_N, shift_D]
    launch_table("moments", "shifted_rows", out, arguments, TYPE=c_type(features_ND))
    return out


def _is_narrow_on_gpu(features_ND: torch.Tensor) -> bool:
    """Whether the kernel, which widens what it reads, serves these features."""
    return features_ND.is_cuda and str(features_ND.dtype) != "torch.float64"


def _fourth(features_ND: torch.Tensor, members_N: torch.Tensor, mean_D: torch.Tensor) -> float:
    """The sum of |x - mean|^4 over the rows `members_N`."""
    total = 0.0
    for first in range(0, len(members_N), _ROWS_AT_ONCE):
        rows_ND = _shifted(features_ND, members_N[first : first + _ROWS_AT_ONCE], mean_D)
        total += float(rows_ND.square().sum(1).square().sum())
    return total


def _shrunk(scatter_DD: torch.Tensor, fourth: float, count: int) -> tuple[torch.Tensor, float]:
    """The shrunk covariance and its share of the target.

    The squared distances of the rows' products from their mean S sum to |x|^4 less count |S|^2.
    """
    import torch

    dims = len(scatter_DD)
    centre = float(scatter_DD.trace()) / dims
    square = float(scatter_DD.square().sum())
    distance = square - dims * centre**2
    if distance <= 1e-15 * square:
        return scatter_DD, 0.0
    share = min(max((fourth / count - square) / count, 0.0) / distance, 1.0)
    target_DD = torch.eye(dims, dtype=scatter_DD.dtype, device=scatter_DD.device) * centre
    return share * target_DD + (1 - share) * scatter_DD, share
