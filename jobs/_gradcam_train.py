"""One small training of a classifier on images in memory, for the arms of jobs/gradcam.py.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import special

from jobs._gradcam_data import Pixels
from jobs.gradcam import GradcamJob
from medray.dist.context import local
from medray.errors import Stopped
from medray.records import Batch
from medray.train import targets, validation
from medray.train.classifier import ClassifierTraining
from medray.train.classifier_config import ClassifierConfig
from medray.train.table_batches import TableBatches
from medray.train.targets import Targets

BATCH, LOOKS, READ = 32, 8, 64


@dataclass(frozen=True)
class Part:
    """Images of one split and the numbers of their classes."""

    images_NCHW: Pixels
    numbers_N: npt.NDArray[np.int64]

    def truth(self, classes: int) -> npt.NDArray[np.int8]:
        """1 for the class that holds, (N, K)."""
        return np.eye(classes, dtype=np.int8)[self.numbers_N]


class _Batches:
    """Batches of a part in epochs; every record has its image's class."""

    def __init__(self, part: Part, wanted: Targets, seed: int) -> None:
        rows: Any = part.images_NCHW
        self._table = TableBatches(rows, part.numbers_N, seed=seed, balanced=False)
        self._classes = wanted.classes

    def next(self, count: int) -> Batch:
        """The next `count` images."""
        batch = self._table.next(count)
        labels = [{"label": self._classes[number]} for number in batch.labels_N]
        return replace(batch, records=labels)


def trained(
    config: GradcamJob, wanted: Targets, train: Part, choose: Part, test: Part, *, seed: int
) -> npt.NDArray[np.float64]:
    """Trains on `train`, keeps what is best on `choose`; probabilities of `test`, (N, K)."""
    training = _training(config, wanted, train, seed)
    try:
        return _run(config, wanted, training, train, choose, test, seed)
    finally:
        training.context.close()


def _run(
    config: GradcamJob,
    wanted: Targets,
    training: ClassifierTraining,
    train: Part,
    choose: Part,
    test: Part,
    seed: int,
) -> npt.NDArray[np.float64]:
    total = max(BATCH, config.arm_images // BATCH * BATCH)
    look = max(BATCH, total // LOOKS // BATCH * BATCH)
    batches, truth_NK = _Batches(train, wanted, seed), choose.truth(len(wanted.classes))
    for images in range(0, total, BATCH):
        training.step(batches.next(BATCH), images)
        done = images + BATCH
        # While a context is open, SIGTERM is a wish that somebody must ask for.
        if reason := training.context.stop_reason():
            raise Stopped(
                f"stopped in a training of an arm ({reason}); finished ones are saved",
                hint="run the same command again to go on",
            )
        if done % look == 0 or done == total:
            logits_NK = _logits(training, choose.images_NCHW)
            training.keep_if_best(validation.balanced_log_loss(logits_NK, truth_NK, wanted), done)
    training.take_best()
    said_NK = special.softmax(_logits(training, test.images_NCHW), axis=1)
    return np.asarray(said_NK, np.float64)


def _training(config: GradcamJob, wanted: Targets, train: Part, seed: int) -> ClassifierTraining:
    given = {
        "seed": seed,
        "size_px": config.arm_px,
        "width": config.arm_width,
        "total_images": max(BATCH, config.arm_images // BATCH * BATCH),
        "batch": BATCH,
        "mirror": config.mirror,
        "precision": config.precision,
        "labels": "one",
    }
    settings = ClassifierConfig.model_validate(given)
    weights_2K = targets.weights(train.truth(len(wanted.classes)), False, settings.max_weight)
    context = local(threads_per_rank=torch.get_num_threads())
    channels = train.images_NCHW.shape[1]
    return ClassifierTraining(settings, wanted, channels, weights_2K, context)


def _logits(training: ClassifierTraining, images_NCHW: Pixels) -> npt.NDArray[np.float64]:
    parts = [
        training.logits(images_NCHW[at : at + READ]) for at in range(0, len(images_NCHW), READ)
    ]
    return np.concatenate(parts).astype(np.float64)
