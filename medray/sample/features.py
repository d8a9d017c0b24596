"""Samplers of feature vectors: fit on labelled features, then draw any number of labelled rows.

Row i of a draw is a pure function of (seed, i), whatever is drawn with it: `sample(10, seed)` and
`sample(5, seed)` with `sample(5, seed, start=5)` are the same rows. NumPy arrays or torch tensors
in, the same kind out, and the draw runs where the features are (`medray.kernels`).

Shape letters: N samples, M rows fitted on, D dimensions, K classes, R rank.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medray import kernels
from medray.errors import UsageError
from medray.kernels import allocation, gaussian, interpolate
from medray.kernels import labels as label_kernels

Array = Any


class Sampler:
    """What the samplers share: the classes, and which labels a draw has."""

    classes: NDArray[Any]

    def fit(self, features_MD: Array, labels_M: Array) -> Sampler:
        """Learns the rows of each class; UsageError for what a class cannot be drawn from.

        Features are finite floating numbers; labels are integers (or strings, in NumPy arrays).
        """
        if len(np.shape(labels_M)) != 1 or len(labels_M) != len(features_MD) or not len(labels_M):
            raise UsageError(
                f"labels must have one entry for each row of features, at least one, got "
                f"{tuple(np.shape(labels_M))} for features of shape {tuple(np.shape(features_MD))}"
            )
        self.classes, numbers_M = np.unique(_to_numpy(labels_M), return_inverse=True)
        self._counts_K = np.bincount(numbers_M)
        self._model = features_MD
        try:
            self._fit(features_MD, numbers_M)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{type(self).__name__} cannot be fitted: {error}") from error
        return self

    def sample(
        self, n: int, seed: int, start: int = 0, labels: Array | None = None
    ) -> tuple[Array, Array]:
        """Rows start .. start + n of a draw: features (n, D) and labels (n,).

        Labels are drawn in the proportions that were fitted, of the classes that can be drawn from,
        unless `labels` gives them: one for each row, or "balanced". UsageError for labels that
        cannot be drawn, or that were not fitted.
        """
        if not hasattr(self, "classes"):
            raise UsageError(f"{type(self).__name__} must be fitted before it can sample")
        numbers_N = self._numbers(n, seed, start, labels)
        rows_ND = self._draw(seed, start, _beside(numbers_N, self._model))
        names_N = self.classes[numbers_N]
        return rows_ND, _beside(names_N, self._model) if names_N.dtype.kind in "iu" else names_N

    def _numbers(self, n: int, seed: int, start: int, labels: Array | None) -> NDArray[np.int64]:
        """The class of each row as a number of `classes`."""
        can_K = self._can()
        if labels is None:
            shares_K = np.where(can_K, self._counts_K, 0)
            return np.asarray(label_kernels.draw(seed, n, shares_K, start=start), np.int64)
        if isinstance(labels, str):
            if labels != "balanced":
                raise UsageError(f"labels must be an array or 'balanced', got {labels!r}")
            possible = np.flatnonzero(can_K)
            drawn_N = label_kernels.balanced(seed, n, len(possible), start=start)
            return np.asarray(possible[drawn_N])
        wanted_N = _to_numpy(labels)
        if wanted_N.shape != (n,):
            raise UsageError(f"labels must have shape ({n},), got {wanted_N.shape}")
        numbers_N = np.searchsorted(self.classes, wanted_N).clip(max=len(self.classes) - 1)
        known_N = self.classes[numbers_N] == wanted_N
        if not known_N.all():
            raise UsageError(
                f"label {wanted_N[~known_N][0]} was not fitted; there are {self.classes.tolist()}"
            )
        if not can_K[numbers_N].all():
            label = wanted_N[~can_K[numbers_N]][0]
            raise UsageError(f"no row of class {label} qualifies as a start for {self._name()}")
        return np.asarray(numbers_N)

    def _can(self) -> NDArray[np.bool_]:
        """Which classes can be drawn from, (K,)."""
        return np.ones(len(self.classes), np.bool_)

    def _name(self) -> str:
        return type(self).__name__

    def _fit(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> None:
        raise NotImplementedError

    def _draw(self, seed: int, start: int, numbers_N: Array) -> Array:
        raise NotImplementedError

    def _refuse_fewer(self, least: int, why: str) -> None:
        """UsageError that names the classes with fewer than `least` rows."""
        few_K = self._counts_K < least
        if few_K.any():
            named = ", ".join(
                f"{self.classes[c]} ({self._counts_K[c]})" for c in np.flatnonzero(few_K)
            )
            raise UsageError(
                f"{self._name()} needs at least {least} rows of each class ({why}), got fewer of "
                f"{named}",
                hint="leave these classes out, or choose a sampler that needs fewer rows",
            )


class Gaussian(Sampler):
    """Class-conditional Gaussians: diagonal, low rank plus diagonal, or full covariance.

    The full and low-rank covariances are Ledoit and Wolf's (2004). Low rank keeps the `rank`
    largest principal axes and, in the diagonal, the variance that they leave. A constant feature
    stays constant in the diagonal form.
    """

    def __init__(
        self, covariance: Literal["diagonal", "low_rank", "full"] = "diagonal", *, rank: int = 32
    ) -> None:
        if covariance not in ("diagonal", "low_rank", "full"):
            raise UsageError(f"covariance must be diagonal, low_rank or full, got {covariance!r}")
        if rank < 1:
            raise UsageError(f"rank must be at least 1, got {rank}")
        self.covariance, self.rank = covariance, rank

    def _fit(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> None:
        self._refuse_fewer(2, "one has no variance")
        numbers = _beside(numbers_M, features_MD)
        if self.covariance == "diagonal":
            means, variances = kernels.class_variances(features_MD, numbers, len(self.classes))
            self._means, self._scales = _float32(means), _float32(variances**0.5)
            return
        _, means, covariances, self.shrinkages = kernels.ledoit_wolf(
            features_MD, numbers, len(self.classes)
        )
        self._means = _float32(means)
        values_KD, axes_KDD = _eigen(covariances)
        axes_KDD = axes_KDD * (values_KD**0.5)[:, None]
        if self.covariance == "full":
            self._factors = _float32(axes_KDD)
            return
        self._factors = _float32(axes_KDD[:, :, -self.rank :])
        left_KD = (axes_KDD[:, :, : -self.rank] ** 2).sum(2)
        self._scales = _float32(left_KD**0.5)

    def _draw(self, seed: int, start: int, numbers_N: Array) -> Array:
        if self.covariance == "diagonal":
            return gaussian.diagonal(seed, numbers_N, self._means, self._scales, start=start)
        if self.covariance == "full":
            return gaussian.full(seed, numbers_N, self._means, self._factors, start=start)
        return gaussian.low_rank(
            seed, numbers_N, self._means, self._scales, self._factors, start=start
        )


class SMOTE(Sampler):
    """Points between a row and one of its k nearest of the same class (Chawla et al. 2002)."""

    def __init__(self, k: int = 5) -> None:
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}")
        self.k = k

    def _fit(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> None:
        self._refuse_fewer(self.k + 1, f"a row and its {self.k} neighbours")
        self._table = features_MD
        self._neighbours = within_class(features_MD, numbers_M, len(self.classes), self.k)
        weights_M = self._weights(features_MD, numbers_M)
        self._pools = allocation.Pools.of(weights_M, numbers_M, len(self.classes))
        if not self._pools.sizes_K.any():
            raise UsageError(f"no row of any class qualifies as a start for {self._name()}")

    def _weights(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> NDArray[np.float64]:
        """How likely each row is to be started from, (M,), up to a factor for each class."""
        return np.ones(len(numbers_M))

    def _can(self) -> NDArray[np.bool_]:
        return np.asarray(self._pools.sizes_K > 0)

    def _draw(self, seed: int, start: int, numbers_N: Array) -> Array:
        bases_N = allocation.choose(seed, numbers_N, self._pools, start=start)
        return interpolate.smote(
            seed, len(numbers_N), self._table, self._neighbours, bases_N=bases_N, start=start
        )


class BorderlineSMOTE(SMOTE):
    """SMOTE from rows in danger alone: half or more of m neighbours foreign, not all (Han 2005)."""

    def __init__(self, k: int = 5, m: int = 10) -> None:
        super().__init__(k)
        if m < 1:
            raise UsageError(f"m must be at least 1, got {m}")
        self.m = m

    def _weights(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(
            allocation.in_danger(foreign(features_MD, numbers_M, self.m), self.m), np.float64
        )


class ADASYN(SMOTE):
    """SMOTE from each row by its share of foreign neighbours among k (He et al. 2008)."""

    def _weights(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(foreign(features_MD, numbers_M, self.k), np.float64)


class Mixup(Sampler):
    """Two rows of the same class, weighted by Beta(alpha, alpha) (Zhang et al. 2018)."""

    def __init__(self, alpha: float = 0.4) -> None:
        if not 0.01 <= alpha <= 100:
            raise UsageError(f"alpha must be 0.01 to 100, got {alpha}")
        self.alpha = alpha

    def _fit(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> None:
        kernels.check_features(features_MD)
        self._table = features_MD
        ones_M = np.ones(len(numbers_M))
        self._pools = allocation.Pools.of(ones_M, numbers_M, len(self.classes))

    def _draw(self, seed: int, start: int, numbers_N: Array) -> Array:
        pairs = [
            allocation.choose(seed, numbers_N, self._pools, start=start, stream=f"sample.mixup.{i}")
            for i in (0, 1)
        ]
        pairs_N2 = _stacked(pairs)
        rows_ND, _, _ = interpolate.mixup(
            seed, len(numbers_N), self._table, self.alpha, pairs_N2=pairs_N2, start=start
        )
        return rows_ND


def within_class(features_MD: Array, numbers_M: NDArray[np.int64], classes: int, k: int) -> Array:
    """Of each row the k nearest other rows of its class, as numbers of all rows: int64 (M, k)."""
    neighbours_Mk = np.empty((len(numbers_M), k), np.int64)
    for c in range(classes):
        members_N = np.flatnonzero(numbers_M == c)
        rows_ND = features_MD[_beside(members_N, features_MD)]
        _, near_Nk = kernels.nearest(rows_ND, rows_ND, k, exclude_self=True)
        neighbours_Mk[members_N] = members_N[_to_numpy(near_Nk)]
    return _beside(neighbours_Mk, features_MD)


def foreign(
    features_MD: Array,
    numbers_M: NDArray[np.int64],
    k: int,
    members_N: NDArray[np.int64] | None = None,
) -> NDArray[np.int32]:
    """How many of a row's k nearest other rows are of another class: int32 (N,).

    Of all rows, or of the rows `members_N`.
    """
    members_N = np.arange(len(numbers_M)) if members_N is None else members_N
    if len(numbers_M) <= k:
        raise ValueError(f"{k} neighbours need more than {k} rows, got {len(numbers_M)}")
    queries_ND = features_MD[_beside(members_N, features_MD)]
    near_Nk = _to_numpy(kernels.nearest(queries_ND, features_MD, k + 1)[1])
    # A row is the first of its own neighbours, but for duplicates with a lower number.
    others_Nk = near_Nk != members_N[:, None]
    others_Nk[others_Nk.all(1), k] = False
    near = _beside(near_Nk[others_Nk].reshape(-1, k), features_MD)
    own, all_own = (_beside(n, features_MD) for n in (numbers_M[members_N], numbers_M))
    return np.asarray(_to_numpy(allocation.foreign_neighbours(near, own, all_own)), np.int32)


def _eigen(covariances: Array) -> tuple[Array, Array]:
    """Eigenvalues (K, D) ascending, none below zero, and axes (K, D, D) as columns."""
    if isinstance(covariances, np.ndarray):
        values_KD, axes_KDD = np.linalg.eigh(covariances)
        return values_KD.clip(min=0), axes_KDD
    import torch

    values, axes = torch.linalg.eigh(covariances)
    return values.clamp(min=0), axes


def _to_numpy(array: Array) -> NDArray[Any]:
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


def _beside(numbers: NDArray[Any], model: Array) -> Array:
    """NumPy's numbers in the kind and home of `model`."""
    if not hasattr(model, "detach"):
        return numbers
    import torch

    return torch.from_numpy(np.ascontiguousarray(numbers)).to(model.device)


def _float32(array: Array) -> Array:
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float()


def _stacked(columns: list[Array]) -> Array:
    if isinstance(columns[0], np.ndarray):
        return np.stack(columns, 1)
    import torch

    return torch.stack(columns, 1)
