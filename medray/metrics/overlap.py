"""Overlap of predicted and true masks: Dice and IoU (Jaccard), summed over groups of images.

Of a patient the pixels of all images are counted together, as of a volume. Where both masks are
empty, Dice and IoU are 1: nothing was there and nothing was said. Where one of them is, 0.

Shape letters: N images, H and W pixels, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Overlap:
    """Pixels of N pairs of masks: in both, in the predicted one, in the true one."""

    both_N: Counts
    said_N: Counts
    true_N: Counts

    def dice(self) -> Shares:
        """2 |A and B| / (|A| + |B|) of each, float64 (N,)."""
        return _share(2 * self.both_N, self.said_N + self.true_N)

    def iou(self) -> Shares:
        """|A and B| / |A or B| of each, float64 (N,)."""
        return _share(self.both_N, self.said_N + self.true_N - self.both_N)

    def of(self, rows: NDArray[np.generic]) -> Overlap:
        """Those of `rows` (numbers or booleans)."""
        return Overlap(self.both_N[rows], self.said_N[rows], self.true_N[rows])

    def by_group(self, groups_N: NDArray[np.generic]) -> Overlap:
        """Summed over equal `groups_N` (patients), in sorted order of their names, G long."""
        _, group_N = np.unique(groups_N, return_inverse=True)
        return Overlap(*(_summed(c, group_N) for c in (self.both_N, self.said_N, self.true_N)))


def of_masks(said_NHW: NDArray[np.bool_], true_NHW: NDArray[np.bool_]) -> Overlap:
    """Counts of N pairs of masks; ValueError unless both are boolean of one shape (N, H, W)."""
    for name, mask in (("said", said_NHW), ("true", true_NHW)):
        if mask.ndim != 3 or mask.dtype != np.bool_ or mask.shape != said_NHW.shape:
            raise ValueError(
                f"masks must be boolean (N, H, W) of one shape, got {name}: {mask.dtype} "
                f"{mask.shape} beside {said_NHW.shape}"
            )
    each = (said_NHW & true_NHW, said_NHW, true_NHW)
    return Overlap(*(mask.sum((1, 2), dtype=np.int64) for mask in each))


def joined(parts: list[Overlap]) -> Overlap:
    """One after the other."""
    return Overlap(
        np.concatenate([part.both_N for part in parts]),
        np.concatenate([part.said_N for part in parts]),
        np.concatenate([part.true_N for part in parts]),
    )


def _summed(counts_N: Counts, group_N: NDArray[np.intp]) -> Counts:
    sums_G: Counts = np.zeros(int(group_N.max(initial=-1)) + 1, np.int64)
    np.add.at(sums_G, group_N, counts_N)
    return sums_G


def _share(part_N: Counts, whole_N: Counts) -> Shares:
    """part / whole, 1 where the whole is empty."""
    shares_N: Shares = np.where(whole_N == 0, 1.0, part_N / np.maximum(whole_N, 1))
    return shares_N
