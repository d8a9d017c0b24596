"""A segmenter judged while it trains, on all validation images, and its figures by patient.

Shape letters: N samples, C channels, H and W pixels, P patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medray import report
from medray.metrics import UndefinedMetricError, overlap
from medray.metrics.intervals import bootstrap
from medray.metrics.overlap import Overlap
from medray.models.pixels import to_unit
from medray.models.segmenter import Segmenter
from medray.rundir import RunDir
from medray.stream.masks import MaskRoster
from medray.stream.roster import Fact
from medray.train.segmenter import SegmenterTraining
from medray.train.targets import patient_of

BATCH = 32
Figure = dict[str, float | None] | None
# More than any score (1 - Dice): weights that answer with NaN are never the best.
WORST = 2.0


@dataclass(frozen=True)
class Judged:
    """Pixels that a segmenter said, of each sample, beside the truth; `groups_N` names patients.

    `finite` is False where some logit was NaN or infinite.
    """

    pixels: Overlap
    groups_N: npt.NDArray[np.str_]
    finite: bool

    def of_patients(self) -> Overlap:
        """The pixels of each patient's images together, P long."""
        return self.pixels.by_group(self.groups_N)


class Validation:
    """The snapshot of a segmenter's run: scores, curves, the best weights kept.

    The score is 1 minus the mean over patients of Dice.
    """

    def __init__(
        self, model: SegmenterTraining, run: RunDir, roster: MaskRoster, facts: Sequence[Fact]
    ) -> None:
        self.model, self.run, self.roster, self.facts = model, run, roster, facts
        self._images = 0

    def __call__(self, images: int) -> dict[str, float]:
        """Figures after `images` images."""
        self._images = images
        judged = judge(self.model.average, self.roster, self.facts, self.model.context.device)
        figures = {"score": WORST}
        if judged.finite:
            of_P = judged.of_patients()
            dice = float(of_P.dice().mean())
            figures = {"dice": dice, "iou": float(of_P.iou().mean()), "score": 1 - dice}
        self.model.keep_if_best(figures["score"], images)
        draw_progress(self.run)
        return figures

    def enough(self) -> bool:
        """Whether the score has not fallen for as long as the configuration waits."""
        return self._images - self.model.best_images >= self.model.config.patience


def draw_progress(run: RunDir) -> None:
    """Draws the curves of the rows so far."""
    if rows := run.metrics():
        panels = {
            "loss": ("train/loss", "snapshot/score"),
            "Dice, IoU": ("train/dice", "snapshot/dice", "snapshot/iou"),
            "images/s": ("perf/images_per_s",),
        }
        run.write_picture("progress.png", report.curves_png(rows, panels))


@torch.no_grad()
def judge(
    segmenter: Segmenter, roster: MaskRoster, facts: Sequence[Fact], device: torch.device
) -> Judged:
    """The segmenter on `facts` (some with masks), at the size they are stored in, cut at 0.5."""
    parts, finite = [], True
    for images_NCHW, masks_NHW in roster.pairs(facts, BATCH):
        logits_N1HW = segmenter(to_unit(torch.from_numpy(images_NCHW).to(device)))
        finite = finite and bool(logits_N1HW.isfinite().all())
        parts.append(overlap.of_masks((logits_N1HW[:, 0] > 0).cpu().numpy(), masks_NHW))
    groups_N = np.asarray([patient_of(fact) for fact in facts])
    return Judged(overlap.joined(parts), groups_N, finite)


# --- figures ------------------------------------------------------------------------------------


def figures(judged: Judged, seed: int, draws: int) -> dict[str, Any]:
    """All figures as JSON: {estimate, low, high} each (95%, over patients), None where undefined.

    `dice` and `iou`: mean over patients, a patient's images counted as one volume. `image_dice`:
    mean over images with a mask that is not empty. `left_empty`: of images with an empty mask, the
    share in which nothing was said.
    """
    of_P, each = judged.of_patients(), judged.pixels
    full_N = each.true_N > 0
    dice_P, iou_P, dice_N = of_P.dice(), of_P.iou(), each.dice()
    patients, groups_N = len(dice_P), judged.groups_N
    return {
        "samples": len(groups_N),
        "samples_with_mask_pixels": int(full_N.sum()),
        "patients": patients,
        "patients_with_mask_pixels": int((of_P.true_N > 0).sum()),
        "draws": draws,
        "dice": _interval(lambda rows: float(dice_P[rows].mean()), patients, seed, draws),
        "iou": _interval(lambda rows: float(iou_P[rows].mean()), patients, seed, draws),
        "image_dice": _interval(lambda rows: _mean(dice_N, full_N, rows), groups_N, seed, draws),
        "left_empty": _interval(
            lambda rows: _mean((each.said_N == 0) * 1.0, ~full_N, rows), groups_N, seed, draws
        ),
    }


def _mean(
    values_N: npt.NDArray[np.float64],
    among_N: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
) -> float:
    chosen = values_N[rows][among_N[rows]]
    if not len(chosen):
        raise UndefinedMetricError("a mean over no images")
    return float(chosen.mean())


def _interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    groups: int | npt.NDArray[np.str_],
    seed: int,
    draws: int,
) -> Figure:
    """Estimate with its interval; none of one patient, or where most draws leave it undefined."""
    count = groups if isinstance(groups, int) else len(groups)
    try:
        estimate = statistic(np.arange(count))
    except UndefinedMetricError:
        return None
    alone = {"estimate": estimate, "low": None, "high": None}
    if (groups if isinstance(groups, int) else len(np.unique(groups))) < 2:
        return alone
    try:
        _, low, high = bootstrap(statistic, groups, seed=seed, draws=draws)
    except UndefinedMetricError:
        return alone
    return {"estimate": estimate, "low": low, "high": high}
