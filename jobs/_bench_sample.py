"""Rows of `bench.py --suite sample`: feature-space sampling, two threads each.

- `smote_20k`: imbalanced-learn's SMOTE and ours as its drop-in, 20,000 minority rows among 60,000,
  512 dimensions, float32, k = 5. Checked first: at least 0.999 of the true neighbours are found.
- `gaussian_1m`: a million rows of a class-conditional diagonal Gaussian of 512 dimensions against
  `mean[label] + std[label] * torch.randn`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import kernels
from medray.kernels import gaussian

MINORITY, MAJORITY, DIMS, NEIGHBOURS = 20_000, 40_000, 512, 5
DRAWN, CLASSES, THREADS = 1_000_000, 10, 2
RECALL, CHECKED = 0.999, 1000
ROWS = ("smote_20k", "gaussian_1m")

Array = npt.NDArray[Any]
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The rows; a round gives made rows per second."""
    import torch

    torch.set_num_threads(THREADS)
    yield _smote()
    yield _gaussian()


def _smote() -> Case:
    """The drop-in against the original, on the same data."""
    from imblearn.over_sampling import SMOTE
    from threadpoolctl import threadpool_limits

    from medray.sample.resample import FeatureOverSampler

    X, y = make_features()
    strategy = {1: 2 * MINORITY}
    ours = FeatureOverSampler(sampling_strategy=strategy, random_state=0)
    other = SMOTE(sampling_strategy=strategy, random_state=0, k_neighbors=NEIGHBOURS)

    def timed(sampler: Any) -> float:
        with threadpool_limits(THREADS):
            start = time.perf_counter()
            made_X, _ = sampler.fit_resample(X, y)
        assert len(made_X) == len(X) + MINORITY, f"{len(made_X)} rows"
        return MINORITY / (time.perf_counter() - start)

    return (
        "smote_20k", "imbalanced-learn", 3.0, lambda: timed(ours), lambda: timed(other),
        lambda: check_recall(X[y == 1]),
    )  # fmt: skip


def make_features() -> tuple[Array, Array]:
    """Two normal classes whose means are 0.3 apart in every dimension."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((MAJORITY + MINORITY, DIMS), dtype=np.float32)
    X[MAJORITY:] += np.float32(0.3)
    return X, np.repeat([0, 1], [MAJORITY, MINORITY])


def check_recall(rows_ND: Array) -> None:
    """At least 0.999 of the true neighbours of some rows, by differences in float64."""
    _, indices_Nk = kernels.nearest(rows_ND, rows_ND, NEIGHBOURS, exclude_self=True)
    places = np.linspace(0, len(rows_ND) - 1, CHECKED).astype(np.int64)
    wide_ND, found = rows_ND.astype(np.float64), 0
    for place in places:
        squares_N = ((wide_ND - wide_ND[place]) ** 2).sum(1)
        squares_N[place] = np.inf
        true = np.argpartition(squares_N, NEIGHBOURS)[:NEIGHBOURS]
        found += len(np.intersect1d(true, indices_Nk[place]))
    recall = found / (CHECKED * NEIGHBOURS)
    assert recall >= RECALL, f"recall {recall:.4f} of the true neighbours, below {RECALL}"


def _gaussian() -> Case:
    """Drawn and scaled in one pass against torch's composition."""
    import torch

    means_KD, scales_KD, labels_N = made_classes()

    def ours() -> float:
        start = time.perf_counter()
        gaussian.diagonal(1, labels_N, means_KD, scales_KD)
        return DRAWN / (time.perf_counter() - start)

    def other() -> float:
        start = time.perf_counter()
        means_KD[labels_N] + scales_KD[labels_N] * torch.randn(DRAWN, DIMS)
        return DRAWN / (time.perf_counter() - start)

    def check() -> None:
        check_moments(labels_N[:50_000], means_KD, scales_KD)

    return "gaussian_1m", "torch composition", 3.0, ours, other, check


def made_classes(device: str = "cpu", count: int = DRAWN) -> tuple[Any, Any, Any]:
    """Means and scales (K, D) of the classes, labels (N,)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    means_KD = torch.randn(CLASSES, DIMS, generator=generator)
    scales_KD = torch.rand(CLASSES, DIMS, generator=generator) + 0.1
    labels_N = torch.randint(0, CLASSES, (count,), generator=generator)
    return means_KD.to(device), scales_KD.to(device), labels_N.to(device)


def check_moments(labels_N: Any, means_KD: Any, scales_KD: Any) -> None:
    """The first rows are the definition's, and all have the classes' means and scales."""
    rows_ND = gaussian.diagonal(1, labels_N, means_KD, scales_KD)
    few = (array.cpu().numpy() for array in (labels_N[:100], means_KD, scales_KD))
    expected = gaussian.diagonal_ref(1, *few)
    np.testing.assert_allclose(rows_ND[:100].cpu().numpy(), expected, rtol=1e-5, atol=1e-5)
    for c in range(CLASSES):
        own_ND, error = rows_ND[labels_N == c], 6 / float((labels_N == c).sum()) ** 0.5
        assert float(((own_ND.mean(0) - means_KD[c]) / scales_KD[c]).abs().max()) < error
        assert float((own_ND.std(0) / scales_KD[c] - 1).abs().max()) < error
