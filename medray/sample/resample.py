"""SMOTE, BorderlineSMOTE and ADASYN as an imbalanced-learn sampler: `fit_resample(X, y)`.

It takes the place of imbalanced-learn's own in a pipeline. The definitions are theirs (the row
itself is left out by its number, so duplicates count as neighbours); the random numbers are not.
Importing this module needs imbalanced-learn.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medray.errors import ResourceError
from medray.kernels import allocation, interpolate
from medray.sample.features import foreign, within_class

try:
    from imblearn.over_sampling.base import BaseOverSampler
    from scipy import sparse
    from sklearn.utils import check_random_state
    from sklearn.utils._param_validation import Interval, StrOptions
except ImportError as error:
    raise ResourceError(
        "a sampler with fit_resample needs imbalanced-learn, which is not installed",
        hint="pip install imbalanced-learn",
    ) from error

METHODS = ("smote", "borderline", "adasyn")


class FeatureOverSampler(BaseOverSampler):  # type: ignore[misc]
    """Over-samples classes by `method`: smote, borderline or adasyn.

    `k_neighbors` are interpolated with (and judge a row in adasyn), `m_neighbors` tell which rows
    are in danger in borderline. Distances and interpolation are float32's; the type of X is kept.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseOverSampler._parameter_constraints,
        "method": [StrOptions(set(METHODS))],
        "k_neighbors": [Interval(Integral, 1, None, closed="left")],
        "m_neighbors": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        random_state: Any = None,
        method: str = "smote",
        k_neighbors: int = 5,
        m_neighbors: int = 10,
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.random_state = random_state
        self.method = method
        self.k_neighbors = k_neighbors
        self.m_neighbors = m_neighbors

    def _fit_resample(self, X: Any, y: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        dense = X.toarray() if sparse.issparse(X) else X
        rows_MD = np.ascontiguousarray(dense, np.float32)
        seed = int(check_random_state(self.random_state).randint(2**32, dtype=np.uint64))
        new_X, new_y, start = [dense], [y], 0
        for label, count in self.sampling_strategy_.items():
            if not count:
                continue
            bases_N = self._bases(rows_MD, y == label, count, seed, start)
            made_ND = self._between(rows_MD, y == label, bases_N, seed, start)
            new_X.append(made_ND.astype(dense.dtype))
            new_y.append(np.full(len(made_ND), label, y.dtype))
            start += len(made_ND)
        stacked = np.vstack(new_X)
        if sparse.issparse(X):
            stacked = type(X)(stacked)
        return stacked, np.hstack(new_y)

    def _bases(
        self, rows_MD: NDArray[Any], own_M: NDArray[np.bool_], count: int, seed: int, start: int
    ) -> NDArray[np.int64]:
        """The rows to start from, as numbers among the class's own."""
        numbers_M, members_N = own_M.astype(np.int64), np.flatnonzero(own_M)
        weights_N = np.ones(len(members_N))
        if self.method == "adasyn":
            foreign_N = foreign(rows_MD, numbers_M, self.k_neighbors, members_N)
            times_N = allocation.adasyn_counts(foreign_N, count)
            if not times_N.sum():
                raise ValueError("ADASYN allots no sample to any row at this sampling_strategy")
            return np.repeat(np.arange(len(times_N)), times_N)
        if self.method == "borderline":
            foreign_N = foreign(rows_MD, numbers_M, self.m_neighbors, members_N)
            weights_N = np.asarray(allocation.in_danger(foreign_N, self.m_neighbors), np.float64)
            if not weights_N.any():
                return np.empty(0, np.int64)
        pool = allocation.Pools.of(weights_N, np.zeros(len(members_N), np.int64), 1)
        return np.asarray(
            allocation.choose(seed, np.zeros(count, np.int64), pool, start=start), np.int64
        )

    def _between(
        self,
        rows_MD: NDArray[Any],
        own_M: NDArray[np.bool_],
        bases_N: NDArray[np.int64],
        seed: int,
        start: int,
    ) -> NDArray[Any]:
        """New rows between each base and one of its nearest of the class."""
        own_ND = rows_MD[own_M]
        near_Nk = within_class(own_ND, np.zeros(len(own_ND), np.int64), 1, self.k_neighbors)
        return np.asarray(
            interpolate.smote(seed, len(bases_N), own_ND, near_Nk, bases_N=bases_N, start=start)
        )
