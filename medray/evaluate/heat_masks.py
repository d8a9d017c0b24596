"""Heat into masks: by a threshold, by a quantile of the image, or by Otsu; the choice by Dice.

Otsu, "A threshold selection method from gray-level histograms", 1979.

Shape letters: N images, H and W pixels, B bins, C cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import UsageError
from medray.metrics import overlap

Heat = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

KINDS = ("threshold", "quantile", "otsu")
BINS = 256
ROLL = "evaluate.heat.roll"


@dataclass(frozen=True)
class Cut:
    """How heat becomes a mask: what is above `at`, or above an image's `at` quantile, or Otsu's."""

    kind: str
    at: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "otsu" else f"{self.kind}:{self.at:g}"

    @classmethod
    def parse(cls, text: str) -> Cut:
        """`threshold:0.5`, `quantile:0.9` or `otsu`; UsageError for anything else."""
        kind, _, number = text.partition(":")
        try:
            at = float(number) if number else 0.0
        except ValueError:
            at = -1.0
        if kind not in KINDS or (kind == "otsu") == bool(number) or not 0 <= at < 1:
            raise UsageError(
                f"a cut is threshold:T, quantile:Q (T and Q in [0, 1)) or otsu, got {text!r}"
            )
        return cls(kind, at)

    def masks(self, heat_NHW: Heat) -> Masks:
        """Masks of heat in [0, 1]; what has no heat is never inside."""
        level_N = np.full(len(heat_NHW), self.at, np.float32)
        if self.kind == "quantile":
            rows_NP = heat_NHW.reshape(len(heat_NHW), -1)
            level_N = np.quantile(rows_NP, self.at, axis=1).astype(np.float32)
        elif self.kind == "otsu":
            level_N = otsu(heat_NHW)
        above_NHW: Masks = (heat_NHW >= level_N[:, None, None]) & (heat_NHW > 0)
        return above_NHW


CUTS = (
    *(Cut("threshold", round(0.1 * n, 1)) for n in range(1, 10)),
    *(Cut("quantile", at) for at in (0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)),
    Cut("otsu"),
)


def otsu(values_NHW: Heat) -> npt.NDArray[np.float32]:
    """Otsu's threshold of each image in [0, 1], `(N,)`: the two sides differ most in their means.

    Of equally good ones the lowest; 0 where all pixels are alike.
    """
    bins_NP = np.clip((values_NHW.reshape(len(values_NHW), -1) * BINS).astype(int), 0, BINS - 1)
    flat = bins_NP + BINS * np.arange(len(bins_NP))[:, None]
    counts_NB = np.bincount(flat.ravel(), minlength=BINS * len(bins_NP)).reshape(-1, BINS)
    below_NB = np.cumsum(counts_NB, 1).astype(np.float64)
    sum_NB = np.cumsum(counts_NB * np.arange(BINS), 1).astype(np.float64)
    above_NB, total_N1 = below_NB[:, -1:] - below_NB, sum_NB[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart_NB = sum_NB / below_NB - (total_N1 - sum_NB) / above_NB
        between_NB = np.nan_to_num(below_NB * above_NB * apart_NB**2)
    best_N = between_NB.argmax(1)
    level_N = np.where(between_NB.max(1) > 0, (best_N + 1) / BINS, 0.0)
    return level_N.astype(np.float32)


class Choice:
    """Cuts of several ways to make heat, compared on images whose true masks are not empty."""

    def __init__(self, cuts: Sequence[Cut] = CUTS) -> None:
        self.cuts, self.images = tuple(cuts), 0
        self._sums: dict[str, npt.NDArray[np.float64]] = {}

    def add(self, heats: Mapping[str, Heat], true_NHW: Masks) -> None:
        """Some more images, and the heat of every way."""
        self.images += len(true_NHW)
        for way, heat_NHW in heats.items():
            found = [overlap.of_masks(cut.masks(heat_NHW), true_NHW).dice() for cut in self.cuts]
            sums_C = self._sums.setdefault(way, np.zeros(len(self.cuts)))
            sums_C += np.sum(found, 1)

    def best(self, way: str | None = None) -> tuple[str, Cut, float]:
        """Of one way, or of all, the way and cut of highest mean Dice, the first of equals."""
        named = [way] if way is not None else list(self._sums)
        rows = [(name, self._sums[name] / max(1, self.images)) for name in named]
        name, means_C = max(rows, key=lambda row: float(row[1].max()))
        best = int(means_C.argmax())
        return name, self.cuts[best], float(means_C[best])


def rolled(arrays_NHW: Any, seed: int, draw: int, first: int = 0) -> Any:
    """Each image shifted to a random place, what leaves at one edge coming in at the other.

    Area and shape stay; image n, of number `first` + n, is a function of (seed, draw, number).
    """
    height, width = arrays_NHW.shape[1:]
    numbers_N = first + np.arange(len(arrays_NHW))
    down_N = rng.integers(seed, f"{ROLL}.y.{draw}", numbers_N, 1, 0, height)[:, 0]
    right_N = rng.integers(seed, f"{ROLL}.x.{draw}", numbers_N, 1, 0, width)[:, 0]
    moved = np.empty_like(arrays_NHW)
    for n, (down, right) in enumerate(zip(down_N, right_N, strict=True)):
        moved[n] = np.roll(arrays_NHW[n], (int(down), int(right)), (0, 1))
    return moved


def centre(height: int, width: int) -> Heat:
    """Heat that is highest in the middle and 0 in the corners, `(H, W)`: it looks at nothing."""
    y_H1 = (np.arange(height)[:, None] + 0.5) / height * 2 - 1
    x_1W = (np.arange(width)[None] + 0.5) / width * 2 - 1
    heat_HW: Heat = (1 - np.sqrt((x_1W**2 + y_H1**2) / 2)).astype(np.float32)
    return heat_HW
