"""Confidence intervals: bootstrap over rows or whole groups (patients), and the exact binomial.

Shape letters: N rows, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from medray import rng
from medray.metrics._checks import UndefinedMetricError

Rows = NDArray[np.int64]
Statistic = Callable[[Rows], float]
Interval = tuple[float, float, float]

# Above this share of draws without a defined value an interval would describe other data.
MOST_UNDEFINED = 0.1


def bootstrap(
    statistic: Statistic,
    groups: int | NDArray[np.generic],
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Estimate and percentile interval (estimate, low, high) of a statistic of row numbers.

    `statistic(rows_N)` gets row numbers, int64, some twice and some not at all. `groups` is how
    many rows there are, each drawn by itself, or the N rows' group names (patients), of which whole
    ones are drawn. Draw d is a function of (seed, d). Draws on which the statistic is undefined
    (`UndefinedMetricError`) are left out; over a tenth of them, it is an error. Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    rows_by_group, count = _rows_by_group(groups), _count(groups)
    _check(count, draws, level)
    estimate = float(statistic(np.arange(count)))
    values = []
    for draw in range(draws):
        try:
            values.append(float(statistic(_resampled(rows_by_group, count, seed, draw))))
        except UndefinedMetricError:
            continue
    if len(values) < (1 - MOST_UNDEFINED) * draws:
        raise UndefinedMetricError(
            f"the statistic is undefined on {draws - len(values)} of {draws} draws "
            f"from {len(rows_by_group or range(count))} rows or groups: too few for an interval"
        )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return estimate, float(low), float(high)


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    groups: int | NDArray[np.generic],
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """`bootstrap` of first minus second, both on the same rows of each draw."""
    return bootstrap(
        lambda rows_N: first(rows_N) - second(rows_N), groups, seed=seed, draws=draws, level=level
    )


def binomial_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval (low, high) of a share of `hits` in `count` (Clopper and Pearson 1934).

    ValueError unless 0 <= hits <= count and count is at least 1.
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"hits must be 0 to count, count at least 1, got {hits} of {count}")
    _check(count, 1, level)
    tail = (1 - level) / 2
    low = special.betaincinv(hits, count - hits + 1, tail) if hits else 0.0
    high = special.betaincinv(hits + 1, count - hits, 1 - tail) if hits < count else 1.0
    return float(low), float(high)


def _count(groups: int | NDArray[np.generic]) -> int:
    return groups if isinstance(groups, int) else len(groups)


def _rows_by_group(groups: int | NDArray[np.generic]) -> list[Rows] | None:
    """The row numbers of each group, groups in sorted order; None where each row is its own."""
    if isinstance(groups, int):
        return None
    if np.ndim(groups) != 1:
        raise ValueError(f"groups must be a number or shape (N,), got shape {np.shape(groups)}")
    _, group_N, sizes_G = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return np.split(np.argsort(group_N, kind="stable"), np.cumsum(sizes_G)[:-1])


def _resampled(rows_by_group: list[Rows] | None, count: int, seed: int, draw: int) -> Rows:
    """As many rows, or groups, as there are, with replacement."""
    number = count if rows_by_group is None else len(rows_by_group)
    chosen = rng.integers(seed, "metrics.bootstrap", draw, number, 0, number)
    if rows_by_group is None:
        return chosen
    return np.concatenate([rows_by_group[group] for group in chosen])


def _check(count: int, draws: int, level: float) -> None:
    if count < 1 or draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"an interval needs rows, draws and a level within (0, 1), "
            f"got {count} rows, {draws} draws, level {level}"
        )
