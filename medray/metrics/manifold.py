"""Precision, recall, density and coverage: how two sets of features lie in each other.

Each set's manifold is the union of balls around its rows that reach to the k-th nearest other row.
Precision and recall as Kynkaanniemi et al. (NeurIPS 2019), density and coverage as Naeem et al.
(ICML 2020): a row is in a ball if it is nearer than the radius.

Shape letters: N real rows, M fake rows, D features, P pairs, B x C of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medray.metrics._checks import check_features
from medray.metrics._products import as_float32, blocks, product

Features = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]

_PAIRS_AT_ONCE = 2048


@dataclass(frozen=True)
class Rows:
    """What each row adds to the four scores, for intervals over rows with the balls held fixed."""

    precision_M: Truth
    recall_N: Truth
    density_M: Floats
    coverage_N: Truth

    def scores(self) -> dict[str, float]:
        """The four scores."""
        return {name.partition("_")[0]: float(np.mean(rows)) for name, rows in vars(self).items()}


def prdc(real_ND: Features, fake_MD: Features, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage by k nearest neighbours; density may exceed 1.

    In bounded memory beside the sets; every comparison as float64 has it, the k-th neighbour as
    `kernels.nearest` finds it, which is to float32. Many duplicates take long. ValueError for
    anything but finite (N, D) and (M, D) with more than k rows each.
    """
    return prdc_rows(real_ND, fake_MD, k).scores()


def prdc_rows(real_ND: Features, fake_MD: Features, k: int = 5) -> Rows:
    """As `prdc`, row by row."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    check_features(real_ND, fake_MD, least=k + 1)
    pairs = _Pairs(real_ND, fake_MD, _radii(real_ND, k), _radii(fake_MD, k))
    balls_M = np.zeros(len(fake_MD), np.int64)
    recalled_N, covered_N = np.zeros(len(real_ND), bool), np.zeros(len(real_ND), bool)
    for rows in map(slice, *zip(*blocks(len(real_ND)), strict=True)):
        for columns in map(slice, *zip(*blocks(len(fake_MD), 4), strict=True)):
            in_real, in_fake = pairs.inside(rows, columns)
            balls_M[columns] += in_real.sum(axis=0)
            covered_N[rows] |= in_real.any(axis=1)
            recalled_N[rows] |= in_fake.any(axis=1)
    return Rows(balls_M > 0, recalled_N, balls_M / k, covered_N)


def _radii(rows_ND: Features, k: int) -> Floats:
    """Squared distance of each row to its k-th nearest other row, (N,)."""
    from medray.kernels import nearest

    _, indices_Nk = nearest(rows_ND, rows_ND, k, exclude_self=True)
    return _squares(rows_ND, rows_ND, np.arange(len(rows_ND)), indices_Nk[:, -1])


def _squares(
    first_ND: Features, second_MD: Features, first_P: NDArray[Any], second_P: NDArray[Any]
) -> Floats:
    """Squared distances of pairs of rows, from the differences, in float64."""
    found_P = np.empty(len(first_P))
    for start in range(0, len(first_P), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        gaps_PD = first_ND[first_P[part]].astype(np.float64) - second_MD[second_P[part]]
        found_P[part] = np.square(gaps_PD).sum(axis=1)
    return found_P


class _Pairs:
    """Which pairs lie within each other's radius: by a float32 product, the near ones again."""

    def __init__(
        self, real_ND: Features, fake_MD: Features, real_radii_N: Floats, fake_radii_M: Floats
    ) -> None:
        import torch

        self.real_ND, self.fake_MD = real_ND, fake_MD
        self.real_radii_N, self.fake_radii_M = real_radii_N, fake_radii_M
        # Distances do not change when both lose one row, but small numbers round less.
        centre_D = real_ND.mean(axis=0, dtype=np.float64).astype(real_ND.dtype)
        self.real, self.fake = as_float32(real_ND, centre_D), as_float32(fake_MD, centre_D)
        self.real_squares_N, self.fake_squares_M = (
            rows.square().sum(1, dtype=torch.float64) for rows in (self.real, self.fake)
        )
        # What float32 can be off: D products and a few steps, each half a unit of the last place.
        self.share = (real_ND.shape[1] + 16) * 2.0**-24

    def inside(self, rows: slice, columns: slice) -> tuple[Truth, Truth]:
        """Of a tile: which fakes lie in the real rows' balls, and these in the fakes'."""
        import torch

        sums_BC = self.real_squares_N[rows, None].float() + self.fake_squares_M[columns].float()
        slack_BC = sums_BC * self.share
        squares_BC = sums_BC.sub_(product(self.real[rows], self.fake[columns]), alpha=2)
        found = []
        for radii in (self.real_radii_N[rows, None], self.fake_radii_M[None, columns]):
            beyond_BC = squares_BC - torch.from_numpy(radii).float()
            inside_BC = (beyond_BC < 0).numpy()
            near = torch.nonzero(beyond_BC.abs_() <= slack_BC, as_tuple=True)
            near_B, near_C = (places.numpy() for places in near)
            inside_BC[near_B, near_C] = (
                self.exact(rows.start + near_B, columns.start + near_C)
                < np.broadcast_to(radii, inside_BC.shape)[near_B, near_C]
            )
            found.append(inside_BC)
        return found[0], found[1]

    def exact(self, real_P: NDArray[np.int64], fake_P: NDArray[np.int64]) -> Floats:
        """Squared distances of pairs that float32 leaves open, in float64."""
        return _squares(self.real_ND, self.fake_MD, real_P, fake_P)
