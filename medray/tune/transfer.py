"""What encoders are worth: classifiers of clips on each, of the same patients, seeds and budget.

A fit takes a fraction of the patients (drawn by its seed, the same for every encoder), splits them
into inner parts, trains on each part but one and chooses its weights on that one; what it says of
the test clips is the mean over parts of calibrated probabilities. No test clip is looked at before.

Shape letters: N clips, K findings, T frames, D maps, g cells a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medray.dist.context import local
from medray.models.encoder import Encoder
from medray.stream import Fact
from medray.train import fraction, targets, validation
from medray.train.clips import ClipTraining, encoder_of, standard_of
from medray.train.clips_config import ClipsConfig
from medray.train.clips_data import ClipBatches, ClipRoster
from medray.train.targets import Targets
from medray.tune import folds

Probabilities = npt.NDArray[np.float64]
INNER = "tune.transfer.inner"
LOOKS = 12


@dataclass(frozen=True)
class Mode:
    """How an encoder is used: frozen or not, at which size, for how long."""

    name: str
    settings: ClipsConfig
    # So many of the inner parts are trained; the others' validation patients train in all.
    parts: int


@dataclass
class Transfer:
    """The clips of a set, those to test on apart; maps of an encoder are made once and kept."""

    roster: ClipRoster
    train_facts: Sequence[Fact]
    test_facts: Sequence[Fact]
    task: Targets
    inner: int = 3
    _encoded: str = field(default="", init=False)

    def fit(self, mode: Mode, trunk: Encoder, name: str, share: float, seed: int) -> Probabilities:
        """What is said of the test clips, (N, K); `name` tells encoders apart."""
        self._encode(mode, trunk, name)
        facts = self.facts_of(share, seed)
        settings = mode.settings.model_copy(update={"seed": seed})
        parts = inner_parts(facts, self.inner, seed)[: mode.parts]
        said = [self._said(settings, trunk, *part) for part in parts]
        mean_NK: Probabilities = np.mean(said, axis=0, dtype=np.float64)
        return mean_NK

    def facts_of(self, share: float, seed: int) -> list[Fact]:
        """The clips of the patients whose labels a fit may use."""
        chosen = fraction.in_fraction(fraction.labels_by_patient(self.train_facts), share, seed)
        return [fact for fact in self.train_facts if targets.patient_of(fact) in chosen]

    def _encode(self, mode: Mode, trunk: Encoder, name: str) -> None:
        wanted = f"{mode.name} {name}" if mode.settings.freeze else ""
        if wanted != self._encoded or self.roster.frames != mode.settings.frames:
            self.roster.frames = mode.settings.frames
            context = local(threads_per_rank=1)
            encode = encoder_of(trunk, mode.settings, context) if mode.settings.freeze else None
            self.roster.encode_with(encode)
            context.close()
            self._encoded = wanted

    def _said(
        self, settings: ClipsConfig, trunk: Encoder, train: list[Fact], val: list[Fact]
    ) -> Probabilities:
        """One training on `train`, its weights and calibration chosen on `val`."""
        context = local(threads_per_rank=1)
        truth_NK = self.task.of(train)
        weights_2K = targets.weights(truth_NK, True, settings.max_weight)
        standard = standard_of(self.roster, train, encoder_of(trunk, settings, context))
        training = ClipTraining(settings, self.task, trunk, weights_2K, context, standard)
        val_truth_NK = self.task.of(val)
        batches, batch = ClipBatches(self.roster, train, settings.seed), settings.batch
        total = settings.total_images // batch * batch
        look = max(batch, total // LOOKS)
        for images in range(0, total, batch):
            training.step(batches.next(batch), images)
            done = images + batch
            if done // look > images // look or done == total:
                logits_NK = self._logits(training, val)
                loss = validation.balanced_log_loss(logits_NK, val_truth_NK, self.task)
                training.keep_if_best(loss, done)
        network = training.take_best()
        bias_K = targets.bias_of(weights_2K, True)
        validation.settled(network, self._logits(training, val), val_truth_NK, bias_K)
        said = validation.calibrated(network, self._logits(training, list(self.test_facts)))
        context.close()
        return said

    def _logits(self, training: ClipTraining, facts: list[Fact]) -> validation.Logits:
        return validation.logits_of(training.average, self.roster, facts, training.context.device)


def inner_parts(
    facts: Sequence[Fact], inner: int, seed: int
) -> list[tuple[list[Fact], list[Fact]]]:
    """(to train on, to choose on) for each of `inner` parts, by patient, findings spread evenly."""
    fold = folds.folds_of(strata_of(facts), inner, seed, INNER)
    return [
        (
            [fact for fact in facts if fold.get(targets.patient_of(fact), -1) not in (part, -1)],
            [fact for fact in facts if fold.get(targets.patient_of(fact), -1) == part],
        )
        for part in range(inner)
    ]


def strata_of(facts: Sequence[targets.Labelled]) -> dict[str, str]:
    """The stratum of each patient: the rarest finding, "" where that would be a patient alone."""
    names = fraction.labels_by_patient(facts)
    counts = {n: sum(n in some for some in names.values()) for some in names.values() for n in some}
    label = {patient: fraction.rarest(some, counts) for patient, some in names.items()}
    # A finding that one patient alone has goes with those that have nothing of their own.
    alone = {n for n in label.values() if list(label.values()).count(n) == 1}
    label = {patient: "" if name in alone else name for patient, name in label.items()}
    if list(label.values()).count("") == 1:
        label = dict.fromkeys(label, "")
    return label
