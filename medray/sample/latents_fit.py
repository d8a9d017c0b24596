"""A low-rank Gaussian per target over accepted latents, shrunk towards what so few can show.

The prior is N(0, I), so a class is a shift and a few directions in which it is narrower or wider:

- the directions of all targets' means are measured as they are (there are as many as targets): the
  border between classes lies across them, and a class is narrower there;
- of all others those are kept whose variance lies outside what noise alone gives at this number of
  latents, 1 +- sqrt(D / n) squared (Marchenko and Pastur 1967), corrected for that noise by the
  optimal shrinker of Donoho, Gavish and Johnstone (Annals of Statistics 46, 2018): so the rank
  grows with the number of latents, and is 0 where they are few;
- the diagonal is shrunk towards its mean as far as its spread is what noise gives.

Shape letters: N latents, D latent dimensions, S directions of the means, R kept directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medray.errors import UsageError
from medray.sample.latents import Floats, Gaussian, Wide

MOST_DIRECTIONS = 64
LEAST_LATENTS = 8
# A column is a direction of its own where this much of its length is not in the columns before it.
_INDEPENDENT = 1e-6
# The 99% point of the Tracy-Widom distribution of order 1.
RARE = 2.0234


def fit(accepted: Sequence[Floats], *, spread: float = 1.0) -> list[Gaussian]:
    """A Gaussian for each target's accepted latents (N, D), at least 8 each.

    `spread` scales every standard deviation: below 1 nearer to the mean. ValueError for too few
    latents, for latents that are not finite or not of one dimension.
    """
    _check(accepted, spread)
    means_D = [latents.mean(0, dtype=np.float64) for latents in accepted]
    return [
        _fit_one(latents.astype(np.float64), mean_D, means_D, spread)
        for latents, mean_D in zip(accepted, means_D, strict=True)
    ]


def _check(accepted: Sequence[Floats], spread: float) -> None:
    shapes = [latents.shape for latents in accepted]
    if not shapes or any(len(s) != 2 or s[1] != shapes[0][1] for s in shapes):
        raise ValueError(f"accepted latents must be (N, D) of one D, got {shapes}")
    if min(len(latents) for latents in accepted) < LEAST_LATENTS:
        raise ValueError(
            f"a Gaussian needs at least {LEAST_LATENTS} latents, got {[s[0] for s in shapes]}"
        )
    if not all(np.isfinite(latents).all() for latents in accepted):
        raise ValueError("accepted latents must be finite")
    if not 0 < spread <= 2:
        raise UsageError(f"--spread must be above 0 and at most 2, got {spread}")


def _fit_one(latents_ND: Wide, mean_D: Wide, means_D: Sequence[Wide], spread: float) -> Gaussian:
    diagonal_D = _diagonal(latents_ND - mean_D)
    rows_ND = (latents_ND - mean_D) / diagonal_D
    across_DS = _orthonormal(np.stack(means_D, 1) / diagonal_D[:, None])
    directions_DS, variances_S = _measured(rows_ND, across_DS)
    rest_ND = rows_ND - rows_ND @ across_DS @ across_DS.T
    directions_DR, variances_R = _spikes(rest_ND, len(mean_D) - across_DS.shape[1])
    return Gaussian(
        mean_D=mean_D.astype(np.float32),
        diagonal_D=(diagonal_D * spread).astype(np.float32),
        directions_DR=np.hstack([directions_DS, directions_DR]).astype(np.float32),
        scales_R=np.sqrt(np.hstack([variances_S, variances_R])).astype(np.float32),
    )


def _diagonal(rows_ND: Wide) -> Wide:
    """Standard deviations (D,): the prior counts as one latent, noise is shrunk away."""
    count = len(rows_ND)
    variance_D: Wide = ((rows_ND**2).sum(0) + 1) / count
    level = float(variance_D.mean())
    # The variance of a variance that is estimated from `count` normal numbers is 2 level^2 / count.
    noise, seen = 2 * level**2 / count, float(variance_D.var())
    kept = max(0.0, 1 - noise / seen) if seen > 0 else 0.0
    return np.sqrt(level + kept * (variance_D - level))


def _orthonormal(columns_DS: Wide) -> Wide:
    """Gram and Schmidt; columns that depend on the ones before are left out."""
    basis: list[Wide] = []
    for column_D in columns_DS.T:
        left_D = column_D.copy()
        for _ in range(2):
            for unit_D in basis:
                left_D -= (unit_D @ left_D) * unit_D
        length = float(np.linalg.norm(left_D))
        if length > _INDEPENDENT * max(float(np.linalg.norm(column_D)), _INDEPENDENT):
            basis.append(left_D / length)
    return np.stack(basis, 1) if basis else np.empty((len(columns_DS), 0))


def _measured(rows_ND: Wide, across_DS: Wide) -> tuple[Wide, Wide]:
    """Principal directions within a known subspace, and their variances (identity counts S)."""
    size = across_DS.shape[1]
    along_NS = rows_ND @ across_DS
    covariance_SS = (along_NS.T @ along_NS + size * np.eye(size)) / (len(rows_ND) + size)
    variances_S, turned_SS = np.linalg.eigh(covariance_SS)
    return across_DS @ turned_SS, variances_S


def _spikes(rows_ND: Wide, dims: int) -> tuple[Wide, Wide]:
    """Directions (D, R) whose variance noise does not explain, and the variances (R,) to give them.

    With ratio g = dims / N, noise alone gives sample variances in (1 +- sqrt(g))^2. A variance t
    outside (1 - sqrt(g), 1 + sqrt(g)) shows as t (1 + g / (t - 1)), in a direction that has the
    cosine c with its own, c^2 = (1 - g / (t - 1)^2) / (1 + g / (t - 1)); 1 + (t - 1) c^2 is then
    the variance of least squared error along what was seen.
    """
    count, width = rows_ND.shape
    if dims < 1:
        return np.empty((width, 0)), np.empty(0)
    seen_D, turned_DD = np.linalg.eigh(rows_ND.T @ rows_ND / count)
    ratio, level = dims / count, float(seen_D.sum()) / dims
    if level < _INDEPENDENT:
        return np.empty((width, 0)), np.empty(0)
    seen_D = seen_D / level
    low, high = _noise(count, dims)
    # The subspace that was taken out, and latents fewer than dimensions, show as zeros.
    chosen = np.flatnonzero((seen_D > high) | ((seen_D < low) & (seen_D > _INDEPENDENT)))
    strength = np.abs(np.log(seen_D[chosen]))
    chosen = chosen[np.argsort(-strength, kind="stable")[:MOST_DIRECTIONS]]
    if not len(chosen):
        return np.empty((width, 0)), np.empty(0)
    true_R = _unbiased(seen_D[chosen], ratio)
    cosine_R = (1 - ratio / (true_R - 1) ** 2) / (1 + ratio / (true_R - 1))
    return turned_DD[:, chosen], 1 + (true_R - 1) * np.clip(cosine_R, 0, 1)


def _noise(count: int, dims: int) -> tuple[float, float]:
    """Sample variances that noise alone leaves, on each side, once in a hundred times.

    The edges of Marchenko and Pastur widened as Johnstone (Annals of Statistics 29, 2001) and
    Feldheim and Sodin (2010) give it; none below where the latents are fewer than the dimensions.
    """
    n, d = count**0.5, dims**0.5
    high = (n + d) ** 2 + RARE * (n + d) * (1 / n + 1 / d) ** (1 / 3)
    low = (n - d) ** 2 - RARE * (n - d) * (1 / d - 1 / n) ** (1 / 3) if n > d else 0.0
    return low / count, high / count


def _unbiased(seen_R: Wide, ratio: float) -> Wide:
    """The true variance behind one that is seen outside the noise."""
    middle_R = seen_R + 1 - ratio
    root_R = np.sqrt(np.maximum(middle_R**2 - 4 * seen_R, 0))
    return np.where(seen_R > 1, middle_R + root_R, middle_R - root_R) / 2
