"""The rows of `bench.py --suite judge`: Frechet algebra, kernel distance, precision and recall.

`frechet_scipy` and `frechet_eigvals` take the same means and covariances (2048 dimensions, from
5,000 rows each) to the distance; the others are the textbook formula with SciPy's matrix root, and
with torch's eigenvalues of the product. `kid_4k` and `prdc_4k` take the same 4,000 + 4,000 rows of
2048 in float32; the others are 100 subsets of 1,000 rows in NumPy, as published code averages over,
and whole distance matrices by scikit-learn, as the authors of density and coverage have them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg

from medray.metrics.frechet import frechet, moments
from medray.metrics.kid import kid
from medray.metrics.manifold import prdc

ROWS = ("frechet_scipy", "frechet_eigvals", "kid_4k", "prdc_4k")
DIMS, FRECHET_ROWS, COUNT = 2048, 5000, 4000
SUBSETS, SUBSET_ROWS, NEIGHBOURS = 100, 1000, 5

Rows = NDArray[np.float32]
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The four rows: name, against what, target, a timed round of each in runs/s, and the check."""
    real_ND, fake_ND = features(0, FRECHET_ROWS), features(1, FRECHET_ROWS)
    given = (*moments(real_ND), *moments(fake_ND))
    ours = functools.partial(frechet, *given)
    for name, against, target, other in (
        ("frechet_scipy", "textbook formula, scipy.linalg.sqrtm", 15.0, scipy_way),
        ("frechet_eigvals", "textbook formula, torch.linalg.eigvals", 2.8, eigvals_way),
    ):
        theirs = functools.partial(other, *given)
        check = functools.partial(check_frechet, ours, theirs)
        yield name, against, target, rate(ours), rate(theirs), check
    sets = real_ND[:COUNT], fake_ND[:COUNT]
    yield (
        "kid_4k",
        f"NumPy, {SUBSETS} subsets of {SUBSET_ROWS}",
        15.0,
        rate(functools.partial(kid, *sets)),
        rate(functools.partial(numpy_kid, *sets)),
        functools.partial(check_kid, *sets),
    )
    yield (
        "prdc_4k",
        "scikit-learn, whole matrices",
        2.4,
        rate(functools.partial(prdc, *sets, NEIGHBOURS)),
        rate(functools.partial(sklearn_prdc, *sets, NEIGHBOURS)),
        functools.partial(check_prdc, *sets),
    )


def features(seed: int, count: int) -> Rows:
    """Rows as a network gives them: mixed, cut off at 0, few strong directions."""
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((DIMS, DIMS)) / np.sqrt(DIMS)
    strength_D = (1 + 0.02 * seed) / np.arange(1, DIMS + 1) ** 0.35
    mixed_ND = generator.standard_normal((count, DIMS)) * strength_D @ mix * 5
    rows_ND: Rows = np.maximum(mixed_ND + 0.005 * seed, 0).astype(np.float32)
    return rows_ND


def rate(run: Callable[[], object]) -> Callable[[], float]:
    """A timed round of `run`, in runs/s."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return 1 / (time.perf_counter() - start)

    return timed


# --- the textbook -------------------------------------------------------------------------------


def scipy_way(
    mean1_D: NDArray[np.float64],
    cov1_DD: NDArray[np.float64],
    mean2_D: NDArray[np.float64],
    cov2_DD: NDArray[np.float64],
) -> float:
    """Heusel et al. 2017, as pytorch-fid, clean-fid and MONAI compute it."""
    root_DD = linalg.sqrtm(cov1_DD @ cov2_DD)
    between_D = mean1_D - mean2_D
    traces = np.trace(cov1_DD) + np.trace(cov2_DD) - 2 * np.trace(np.real(root_DD))
    return float(between_D @ between_D + traces)


def eigvals_way(
    mean1_D: NDArray[np.float64],
    cov1_DD: NDArray[np.float64],
    mean2_D: NDArray[np.float64],
    cov2_DD: NDArray[np.float64],
) -> float:
    """The same by eigenvalues of the product, as torchmetrics computes it."""
    mean1, cov1, mean2, cov2 = map(torch.from_numpy, (mean1_D, cov1_DD, mean2_D, cov2_DD))
    roots = torch.linalg.eigvals(cov1 @ cov2).sqrt().real.sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * roots)


def numpy_kid(first_ND: Rows, second_ND: Rows) -> float:
    """Mean over subsets, as StyleGAN's and clean-fid's code computes it."""
    return float(np.mean(numpy_kids(first_ND, second_ND)))


def numpy_kids(first_ND: Rows, second_ND: Rows) -> list[float]:
    """The estimate of each subset."""
    generator = np.random.default_rng(0)
    dims, size, found = first_ND.shape[1], SUBSET_ROWS, []
    for _ in range(SUBSETS):
        x = first_ND[generator.choice(len(first_ND), size, replace=False)]
        y = second_ND[generator.choice(len(second_ND), size, replace=False)]
        within = (x @ x.T / dims + 1) ** 3 + (y @ y.T / dims + 1) ** 3
        between = (x @ y.T / dims + 1) ** 3
        pairs = (within.sum() - np.diag(within).sum()) / (size * (size - 1))
        found.append(float(pairs - 2 * between.sum() / size**2))
    return found


def sklearn_prdc(real_ND: Rows, fake_ND: Rows, k: int) -> dict[str, float]:
    """Naeem et al. 2020: three whole matrices, the k-th smallest of each row, comparisons.

    Without `n_jobs` the products run on all cores by themselves; with it they took more time here.
    """
    from sklearn.metrics import pairwise_distances

    radii = []
    for rows_ND in (real_ND, fake_ND):
        own_NN = pairwise_distances(rows_ND, rows_ND, metric="euclidean")
        radii.append(np.partition(own_NN, k, axis=-1)[:, k])
    between = pairwise_distances(real_ND, fake_ND, metric="euclidean")
    in_real = between < radii[0][:, None]
    return {
        "precision": float(in_real.any(axis=0).mean()),
        "recall": float((between < radii[1][None, :]).any(axis=1).mean()),
        "density": float(in_real.sum(axis=0).mean() / k),
        "coverage": float((between.min(axis=1) < radii[0]).mean()),
    }


# --- checks -------------------------------------------------------------------------------------


def check_frechet(ours: Callable[[], float], other: Callable[[], float]) -> None:
    """Both give the same to 1e-6."""
    found, expected = ours(), other()
    assert abs(found - expected) < 1e-6, f"{found} against {expected}"


def check_kid(first_ND: Rows, second_ND: Rows) -> None:
    """Ours is that of all pairs in float64, and what the subsets estimate."""
    found, (expected, scale) = kid(first_ND, second_ND), whole_kid(first_ND, second_ND)
    assert abs(found - expected) < 1e-7 * scale, f"{found} against {expected} of {scale}"
    estimates = numpy_kids(first_ND, second_ND)
    error = float(np.std(estimates)) / np.sqrt(SUBSETS)
    assert abs(found - np.mean(estimates)) < 5 * error, f"{found} against {estimates}"


def whole_kid(first_ND: Rows, second_ND: Rows) -> tuple[float, float]:
    """The textbook on all pairs in float64, and the mean kernel between the sets."""

    def kernel(x: Rows, y: Rows) -> NDArray[np.float64]:
        products: NDArray[np.float64] = x.astype(np.float64) @ y.astype(np.float64).T
        kernels: NDArray[np.float64] = (products / x.shape[1] + 1) ** 3
        return kernels

    total = 0.0
    for rows_ND in (first_ND, second_ND):
        within = kernel(rows_ND, rows_ND)
        total += (within.sum() - np.trace(within)) / (len(rows_ND) * (len(rows_ND) - 1))
    between = float(kernel(first_ND, second_ND).mean())
    return float(total) - 2 * between, between


def check_prdc(real_ND: Rows, fake_ND: Rows) -> None:
    """The same but for at most one row in 2,000, which the other's float32 distances may turn."""
    found, expected = prdc(real_ND, fake_ND, NEIGHBOURS), sklearn_prdc(real_ND, fake_ND, NEIGHBOURS)
    for name, value in found.items():
        assert abs(value - expected[name]) <= 5e-4, f"{name}: {value} against {expected[name]}"
