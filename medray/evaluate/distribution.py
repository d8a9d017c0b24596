"""How far synthetic images are from real ones, with intervals and the real-to-real floor beside.

The real set is cut into two halves that share no patient. Both the synthetic images and the second
half are compared with the first, at one number of images: so the floor is what another draw of
patients would score, and no generator can be expected to go below. All distances depend on that
number, which stands in their names.

Shape letters: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.evaluate.resample import (
    Figure,
    Numbers,
    Resampler,
    groups_of,
    halves,
    intervals,
    some,
)
from medray.kernels import nearest
from medray.metrics import UndefinedMetricError
from medray.metrics.frechet import frechet_of
from medray.metrics.kid import kid
from medray.metrics.manifold import prdc_rows

Features = npt.NDArray[np.float32]

NEIGHBOURS = 5
# Fewer rows have no neighbourhood of five, and covariances of noise.
FEWEST = 2 * NEIGHBOURS
NEAREST = "nn_distance_p01"


@dataclass(frozen=True)
class Comparison:
    """Synthetic and, as `floor`, real against real; figures by name, without the number in it."""

    images: int
    figures: dict[str, Figure]
    floor: dict[str, Figure]

    def summary(self) -> dict[str, float]:
        """Flat, as summary.json has it: `fid{N}`, `fid{N}_floor`, intervals beside."""
        flat: dict[str, float] = {}
        for name, figure in self.figures.items():
            flat |= figure.named(self.key(name))
            flat |= self.floor[name].named(f"{self.key(name)}_floor")
        return flat

    def key(self, name: str) -> str:
        """The name with the number of images, where the figure depends on it by convention."""
        return f"{name}{self.images}" if name in ("fid", "kid") else name


@dataclass(frozen=True)
class Side:
    """Features and patients of one set."""

    features_ND: Features
    groups_N: Numbers

    @classmethod
    def of(cls, features_ND: Features, patients: Sequence[str | None]) -> Side:
        """A set whose rows belong to patients (None: each to its own)."""
        return cls(features_ND, groups_of(patients))

    def __len__(self) -> int:
        return len(self.features_ND)

    def only(self, rows_N: Numbers) -> Side:
        """Some of the rows."""
        return Side(self.features_ND[rows_N], self.groups_N[rows_N])


def compare(
    real: Side, fake: Side, *, what: str, seed: int, draws: int, most: int | None = None
) -> Comparison:
    """All distances of `fake` from `real`, and of real from real.

    UndefinedMetricError, naming `what`, where there are too few images (twice 10 real ones, 10
    synthetic) or features that never change.
    """
    _check(real, fake, what)
    first_N, second_N = halves(real.groups_N, seed)
    count = min(len(first_N), len(second_N), len(fake), most or len(fake))
    if count < FEWEST:
        raise UndefinedMetricError(
            f"{what}: {len(real)} real images of few patients leave {count} in a half, "
            f"it takes {FEWEST}"
        )
    sides = [
        real.only(some(first_N, count, seed, f"{what}.first")),
        real.only(some(second_N, count, seed, f"{what}.second")),
        fake.only(some(np.arange(len(fake)), count, seed, f"{what}.fake")),
    ]
    figures = _with_intervals(sides[0], sides[2], seed, draws, f"{what}.fake")
    floor = _with_intervals(sides[0], sides[1], seed, draws, f"{what}.floor")
    return Comparison(count, figures, floor)


def _check(real: Side, fake: Side, what: str) -> None:
    counts = {"real": (len(real), 2 * FEWEST), "synthetic": (len(fake), FEWEST)}
    for name, (count, least) in counts.items():
        if count < least:
            raise UndefinedMetricError(f"{what}: {count} {name} images, it takes {least}")
    if real.features_ND.shape[1] != fake.features_ND.shape[1]:
        raise DataError(
            f"{what}: {real.features_ND.shape[1]} real features an image and "
            f"{fake.features_ND.shape[1]} synthetic ones",
            code="MR-D306",
        )
    for name, side in (("real", real), ("synthetic", fake)):
        bad = int((~np.isfinite(side.features_ND)).any(axis=1).sum())
        if bad:
            raise DataError(
                f"{what}: features of {bad} {name} images are not finite", code="MR-D301"
            )
    if not real.features_ND.std(axis=0).any():
        raise UndefinedMetricError(f"{what}: the features of the real images never change")


def _with_intervals(
    real: Side, fake: Side, seed: int, draws: int, stream: str
) -> dict[str, Figure]:
    """Distances by bootstrap over patients; shares by bootstrap over images, manifolds fixed."""
    samplers = [
        Resampler(side.groups_N, seed, f"{stream}.{name}")
        for name, side in (("real", real), ("fake", fake))
    ]

    def draw(number: int) -> dict[str, float]:
        rows = [sampler.draw(number) for sampler in samplers]
        return distances(real.features_ND[rows[0]], fake.features_ND[rows[1]])

    estimates = distances(real.features_ND, fake.features_ND)
    return {**intervals(estimates, draw, draws), **_shares(real, fake, samplers, draws)}


def _shares(real: Side, fake: Side, samplers: Sequence[Resampler], draws: int) -> dict[str, Figure]:
    """Precision and density vary with the synthetic rows drawn, recall and coverage with the real.

    The nearest-pair distance is of the synthetic set alone: its first percentile.
    """
    rows = prdc_rows(real.features_ND, fake.features_ND, NEIGHBOURS)
    of_real, of_fake = samplers
    return {
        **_of_rows("precision", rows.precision_M, of_fake, draws, np.mean),
        **_of_rows("recall", rows.recall_N, of_real, draws, np.mean),
        **_of_rows("density", rows.density_M, of_fake, draws, np.mean),
        **_of_rows("coverage", rows.coverage_N, of_real, draws, np.mean),
        **_of_rows(NEAREST, nearest_pairs(fake.features_ND), of_fake, draws, _first_percentile),
    }


def nearest_pairs(rows_ND: Features) -> npt.NDArray[np.float64]:
    """The distance of each row to the nearest other one, (N,): small where a set repeats itself."""
    return np.asarray(nearest(rows_ND, rows_ND, 1, exclude_self=True)[0], np.float64)[:, 0]


def _of_rows(
    name: str,
    values_N: npt.NDArray[Any],
    sampler: Resampler,
    draws: int,
    statistic: Callable[[npt.NDArray[Any]], np.floating[Any]],
) -> dict[str, Figure]:
    def draw(number: int) -> dict[str, float]:
        return {name: float(statistic(values_N[sampler.draw(number)]))}

    return intervals({name: float(statistic(values_N))}, draw, draws)


def _first_percentile(values_N: npt.NDArray[np.float64]) -> np.floating[Any]:
    return np.quantile(values_N, 0.01)


def distances(real_ND: Features, fake_ND: Features) -> dict[str, float]:
    """Frechet distance and unbiased kernel distance of two sets of rows."""
    return {"fid": frechet_of(real_ND, fake_ND), "kid": kid(real_ND, fake_ND)}
