"""How well masks made of heat cover the true ones, beside what needs no classifier.

Dice and IoU are of each image with a true mask that is not empty, then means over images; intervals
are over patients. The pointing game (Zhang et al., "Top-down neural attention by excitation
backprop", 2018) asks whether the hottest pixel lies in the true mask.

Shape letters: N images, H and W pixels, P pixels of an image, R rows of a resample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medray.errors import UsageError
from medray.evaluate.heat_masks import Heat, Masks, rolled
from medray.metrics import overlap
from medray.metrics.intervals import bootstrap

Floats = npt.NDArray[np.float64]
Groups = npt.NDArray[np.str_]
Figure = dict[str, float | None]
MEASURES = ("dice", "iou", "pointing")
ROLLS = 10


@dataclass(frozen=True)
class Scored:
    """Of each image: Dice, IoU, and how surely its one point lies in the true mask."""

    dice: Floats
    iou: Floats
    pointing: Floats

    def of(self, rows_N: npt.NDArray[np.bool_]) -> Scored:
        """Those of some images."""
        return Scored(self.dice[rows_N], self.iou[rows_N], self.pointing[rows_N])


def scored(said_NHW: Masks, true_NHW: Masks, heat_NHW: Heat) -> Scored:
    """Masks against true ones, none of which is empty; no heat at all points at nothing."""
    pixels = overlap.of_masks(said_NHW, true_NHW)
    flat_NP, numbers_N = heat_NHW.reshape(len(heat_NHW), -1), np.arange(len(heat_NHW))
    at_N = flat_NP.argmax(1)
    hits_N = true_NHW.reshape(len(true_NHW), -1)[numbers_N, at_N] & (flat_NP[numbers_N, at_N] > 0)
    return Scored(pixels.dice(), pixels.iou(), hits_N.astype(np.float64))


def at_random(said_NHW: Masks, true_NHW: Masks, seed: int, first: int = 0) -> Scored:
    """The same masks at random places, mean over ten; a point anywhere hits by the true area."""
    draws = [
        overlap.of_masks(rolled(said_NHW, seed, draw, first), true_NHW) for draw in range(ROLLS)
    ]
    return Scored(
        np.mean([pixels.dice() for pixels in draws], 0),
        np.mean([pixels.iou() for pixels in draws], 0),
        true_NHW.mean((1, 2)).astype(np.float64),
    )


def joined(parts: list[Scored]) -> Scored:
    """One after the other; UsageError where there is none."""
    if not parts:
        raise UsageError("there is no image with a mask to score")
    return Scored(*(np.concatenate([getattr(part, m) for part in parts]) for m in MEASURES))


def table(
    found: Mapping[str, Scored], groups_N: Groups, *, seed: int, draws: int
) -> dict[str, dict[str, Figure]]:
    """Figures of each way: {estimate, low, high} of every measure, 95%, patients resampled."""
    return {
        name: {m: _figure(getattr(way, m), groups_N, seed, draws) for m in MEASURES}
        for name, way in found.items()
    }


def differences(
    found: Mapping[str, Scored], first: str, groups_N: Groups, *, seed: int, draws: int
) -> dict[str, dict[str, Figure]]:
    """`first` minus each of the others, on the same patients of each draw."""
    one = found[first]
    return {
        name: {
            m: _figure(getattr(one, m) - getattr(way, m), groups_N, seed, draws) for m in MEASURES
        }
        for name, way in found.items()
        if name != first
    }


def _figure(values_N: Floats, groups_N: Groups, seed: int, draws: int) -> Figure:
    """A mean with its interval over patients; none of one patient."""
    if len(np.unique(groups_N)) < 2:
        return {"estimate": float(values_N.mean()), "low": None, "high": None}
    estimate, low, high = bootstrap(
        lambda rows_R: float(values_N[rows_R].mean()), groups_N, seed=seed, draws=draws
    )
    return {"estimate": estimate, "low": low, "high": high}
