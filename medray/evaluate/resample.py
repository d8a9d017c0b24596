"""Halves of a set by patient, samples of it, and bootstrap intervals over patients.

Distances between sets grow when rows stand twice, so a bootstrap sample is farther from anything
than the set itself is: an interval is the spread of the draws around their own mean, laid around
the estimate.

Shape letters: N rows, G groups (patients), A draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medray import rng

Numbers = npt.NDArray[np.int64]
TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Figure:
    """An estimate with its 95% interval."""

    value: float
    ci_low: float
    ci_high: float

    def named(self, name: str) -> dict[str, float]:
        """As the summary has it: the name, and the name with `_ci_low` and `_ci_high`."""
        return {name: self.value, f"{name}_ci_low": self.ci_low, f"{name}_ci_high": self.ci_high}


def groups_of(patients: Sequence[str | None]) -> Numbers:
    """A number for each row's patient; a row without one is a group of its own."""
    known: dict[str, int] = {}
    groups = []
    for row, patient in enumerate(patients):
        name = f"row {row}" if patient is None else f"patient {patient}"
        groups.append(known.setdefault(name, len(known)))
    return np.array(groups, np.int64)


def halves(groups_N: Numbers, seed: int) -> tuple[Numbers, Numbers]:
    """Rows of two halves that share no patient, about equal in rows; each in ascending order."""
    order_G = rng.permutation(seed, "evaluate.halves", 0, int(groups_N.max()) + 1)
    sizes_G = np.bincount(groups_N)[order_G]
    before_G = np.cumsum(sizes_G) - sizes_G
    first = np.isin(groups_N, order_G[before_G < len(groups_N) / 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def some(rows_N: Numbers, count: int, seed: int, stream: str) -> Numbers:
    """`count` of the rows, drawn without replacement; in ascending order."""
    order_N = rng.permutation(seed, f"evaluate.some.{stream}", 0, len(rows_N))
    return np.sort(rows_N[order_N[:count]])


class Resampler:
    """Bootstrap samples of rows by group: draw d is a function of (seed, stream, d)."""

    def __init__(self, groups_N: Numbers, seed: int, stream: str) -> None:
        self._seed, self._stream = seed, f"evaluate.bootstrap.{stream}"
        order_N = np.argsort(groups_N, kind="stable")
        starts_G = np.flatnonzero(np.diff(groups_N[order_N], prepend=-1))
        self._rows = np.split(order_N, starts_G[1:])

    def draw(self, number: int) -> Numbers:
        """The rows of draw `number`, some of them twice."""
        count = len(self._rows)
        chosen_G = rng.integers(self._seed, self._stream, number, count, 0, count)
        return np.concatenate([self._rows[group] for group in chosen_G])


def intervals(
    estimates: Mapping[str, float], draw: Callable[[int], Mapping[str, float]], draws: int
) -> dict[str, Figure]:
    """Each estimate with the interval that `draws` bootstrap samples give it."""
    found = [draw(number) for number in range(draws)]
    figures = {}
    for name, value in estimates.items():
        values_A = np.array([sample[name] for sample in found])
        low, high = np.quantile(values_A - values_A.mean(), TAILS) if draws else (np.nan, np.nan)
        figures[name] = Figure(float(value), float(value + low), float(value + high))
    return figures
