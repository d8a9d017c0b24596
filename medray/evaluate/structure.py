"""Variety within a class: MS-SSIM of random pairs, synthetic beside real (Odena et al., ICML 2017).

A class whose synthetic images are more alike than its real ones has collapsed towards a few.

Shape letters: N images, P pairs, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.evaluate.resample import Figure, Numbers
from medray.evaluate.similarity import grey_NHW
from medray.metrics import UndefinedMetricError, intervals
from medray.metrics.structural import ms_ssim

Pixels = npt.NDArray[np.uint8]

PAIRS = 200
FEWEST_GROUPS = 3


def pairs(groups_N: Numbers, count: int, seed: int, stream: str) -> tuple[Numbers, Numbers]:
    """`count` random pairs of rows of different groups; fewer where there are fewer than that.

    UndefinedMetricError with fewer than three groups.
    """
    groups = int(groups_N.max()) + 1 if len(groups_N) else 0
    if groups < FEWEST_GROUPS:
        raise UndefinedMetricError(f"{stream}: pairs of {groups} patients or images say nothing")
    first_P, second_P = (
        rng.integers(seed, f"evaluate.pairs.{stream}.{side}", 0, 4 * count, 0, len(groups_N))
        for side in ("first", "second")
    )
    apart = np.flatnonzero(groups_N[first_P] != groups_N[second_P])[:count]
    return first_P[apart], second_P[apart]


def alikeness(
    take: Callable[[Numbers], Pixels], groups_N: Numbers, *, seed: int, stream: str, draws: int
) -> Figure:
    """Mean MS-SSIM over random pairs of different patients; `take` gives images by number."""
    first_P, second_P = pairs(groups_N, PAIRS, seed, stream)
    wanted = np.unique(np.concatenate([first_P, second_P]))
    grey = grey_NHW(take(wanted)).numpy()
    sides = [grey[np.searchsorted(wanted, side_P)] for side_P in (first_P, second_P)]
    scores_P = ms_ssim(sides[0], sides[1])
    figure = intervals.bootstrap(
        lambda rows_P: float(scores_P[rows_P].mean()), len(scores_P), seed=seed, draws=draws
    )
    return Figure(*figure)
