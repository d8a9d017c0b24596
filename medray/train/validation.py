"""A classifier judged while it trains, on all validation images; its pictures; when it is enough.

Shape letters: N samples, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medray import report
from medray.models.decider import Decider
from medray.models.pixels import to_unit
from medray.rundir import RunDir
from medray.stream.roster import Fact, Roster
from medray.train import calibrate, scorecard, targets
from medray.train.classifier import LabelledTraining
from medray.train.scorecard import Judged
from medray.train.targets import Targets

BATCH = 64
# More than any loss of a network that answers at all: what cannot be scored is never the best.
WORST = 1e6

Logits = npt.NDArray[np.float64]


class Validation:
    """The snapshot of a classifier's run: scores, curves, the best weights kept.

    The score is the log loss that is left after calibration, mean over classes: a proper score, and
    one that does not mind overconfidence, which a temperature takes away.
    """

    def __init__(
        self,
        model: LabelledTraining[Any],
        run: RunDir,
        roster: Roster,
        facts: Sequence[Fact],
        bias_K: npt.NDArray[np.float64],
    ) -> None:
        self.model, self.run, self.roster, self.facts = model, run, roster, facts
        self.truth_NK, self.bias_K = model.targets.of(facts), bias_K
        self._images = 0

    def __call__(self, images: int) -> dict[str, float]:
        """Figures after `images` images."""
        self._images = images
        logits_NK = logits_of(
            self.model.average, self.roster, self.facts, self.model.context.device
        )
        figures = self._figures(logits_NK)
        self.model.keep_if_best(figures["score"], images)
        draw_progress(self.run)
        return figures

    def enough(self) -> bool:
        """Whether the score has not fallen for as long as the configuration waits."""
        config = self.model.config
        if self._images <= config.pretrain_images:
            return False
        return self._images - self.model.best_images >= config.patience

    def _figures(self, logits_NK: Logits) -> dict[str, float]:
        if not np.isfinite(logits_NK).all():
            return {"score": WORST}
        average = self.model.average
        settled(average, logits_NK, self.truth_NK, self.bias_K)
        judged = judge(average, logits_NK, self.facts, self.model.targets)
        loss = balanced_log_loss(
            logits_NK / average.temperature.cpu().numpy(), self.truth_NK, self.model.targets
        )
        found = {
            "balanced_accuracy": scorecard.balanced_accuracy(judged),
            "auroc": scorecard.mean_auroc(judged),
            "temperature": float(average.temperature.mean()),
            "score": loss,
        }
        return {name: value for name, value in found.items() if value is not None}


def draw_progress(run: RunDir) -> None:
    """Draws the curves of the rows so far."""
    if rows := run.metrics():
        panels = {
            "loss": ("train/loss", "snapshot/score"),
            "accuracy": ("train/accuracy", "snapshot/balanced_accuracy", "snapshot/auroc"),
            "images/s": ("perf/images_per_s",),
        }
        run.write_picture("progress.png", report.curves_png(rows, panels))


@torch.no_grad()
def logits_of(
    classifier: Decider, roster: Roster, facts: Sequence[Fact], device: torch.device
) -> Logits:
    """What the classifier says of each of `facts`, (N, K)."""
    parts = [
        classifier(_entering(torch.from_numpy(images).to(device))).cpu().numpy()
        for images in roster.images(facts, BATCH)
    ]
    logits_NK: Logits = np.concatenate(parts).astype(np.float64)
    return logits_NK


def _entering(stored: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1]; what is no pixels (maps that were made once) stays as it is."""
    return stored if stored.is_floating_point() else to_unit(stored)


def settled(
    classifier: Decider,
    logits_NK: Logits,
    truth_NK: npt.NDArray[np.int8],
    bias_K: npt.NDArray[np.float64],
) -> None:
    """Sets the classifier's temperature, bias and thresholds from what it says of validation.

    `bias_K` is what its class weights put into its logits.
    """
    many = classifier.multi_label
    found = calibrate.fit(logits_NK, truth_NK, bias_K, multi_label=many)
    with torch.no_grad():
        classifier.temperature.copy_(torch.from_numpy(found.temperature))
        classifier.bias.copy_(torch.from_numpy(found.bias_K))
        if many:
            # Where a weighted network is undecided, its logit is 0.
            undecided_K = 1 / (1 + np.exp(-found.bias_K))
            p_NK = calibrated(classifier, logits_NK)
            cuts_K = calibrate.thresholds(p_NK, truth_NK, undecided_K)
            classifier.thresholds.copy_(torch.from_numpy(cuts_K))


def calibrated(classifier: Decider, logits_NK: Logits) -> Logits:
    """Probabilities of logits, in float64."""
    with torch.no_grad():
        device = classifier.bias.device
        p_NK = classifier.calibrated(torch.from_numpy(logits_NK).to(device))
    return p_NK.cpu().numpy()


def judge(classifier: Decider, logits_NK: Logits, facts: Sequence[Fact], wanted: Targets) -> Judged:
    """What the classifier says of samples, beside the truth."""
    with torch.no_grad():
        decisions = classifier.decisions(torch.from_numpy(logits_NK).to(classifier.bias.device))
    return Judged(
        classes=wanted.classes,
        multi_label=wanted.multi_label,
        probabilities_NK=calibrated(classifier, logits_NK),
        decisions=decisions.long().cpu().numpy(),
        truth_NK=wanted.of(facts),
        groups_N=np.asarray([targets.patient_of(fact) for fact in facts]),
    )


def balanced_log_loss(logits_NK: Logits, truth_NK: npt.NDArray[np.int8], wanted: Targets) -> float:
    """Mean over classes (of findings: over present and absent) of the log loss within each."""
    logits = torch.from_numpy(logits_NK)
    losses: list[float] = []
    if not wanted.multi_label:
        surprise_NK = -logits.log_softmax(1).numpy()
        cells = [(surprise_NK[:, k], truth_NK[:, k] == 1) for k in range(len(wanted.classes))]
    else:
        log_p, log_not = (torch.nn.functional.logsigmoid(x).numpy() for x in (logits, -logits))
        cells = [(-log_p[:, k], truth_NK[:, k] == 1) for k in range(len(wanted.classes))]
        cells += [(-log_not[:, k], truth_NK[:, k] == 0) for k in range(len(wanted.classes))]
    losses = [float(values_N[here_N].mean()) for values_N, here_N in cells if here_N.any()]
    return float(np.mean(losses))
