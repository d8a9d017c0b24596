"""Trials on images: minutes each. A step trains one classifier on the train split of a fraction.

The rows are the archive's and the set's own shards, read through `medray.stream`; arms differ in
what a step sees: real images, real and synthetic ones mixed, or synthetic first and real then, at
the same number of images.

Shape letters: N images, K classes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy import special

from medray import rng
from medray.errors import DataError, Stopped
from medray.stream import Fact, Roster, Source
from medray.train import fraction, mixture, targets
from medray.train.targets import Targets
from medray.tune.cells import Cell
from medray.tune.data import Numbers, Probabilities
from medray.tune.features import score_of
from medray.tune.spaces import Settings

# Looks at validation in one training; what was best is kept.
LOOKS = 8
AUGMENTED = ("shift", "rotate_deg", "zoom", "brightness", "contrast", "noise")


@dataclass(frozen=True)
class ImageRows:
    """Labelled images of one split, read when they are asked for."""

    roster: Roster
    facts: tuple[Fact, ...]
    labels_N: Numbers
    patients: tuple[str, ...]
    keys: tuple[str, ...]


def rows_of(roster: Roster, task: Targets, facts: Sequence[Fact] | None = None) -> ImageRows:
    """The images of a split whose class is known."""
    found = tuple(f for f in (roster.facts if facts is None else facts) if task.known(f))
    return ImageRows(
        roster,
        found,
        task.of(found).argmax(1).astype(np.int64),
        tuple(targets.patient_of(fact) for fact in found),
        tuple(fact.key for fact in found),
    )


@dataclass
class ImageTrials:
    """What trials on images need; only the splits train and val are ever opened here."""

    data: tuple[str, ...]
    synthetic: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    fraction_seed: int = 0
    seed: int = 0
    seeds: int = 3
    select: str = "balanced_accuracy"
    ratio_of: str = "minority"
    cache_dir: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What was read stays in its process.
        names = set(self.__dataclass_fields__)
        return {name: value for name, value in self.__dict__.items() if name in names}

    def steps(self, cell: Cell) -> int:
        """A training for each seed."""
        return self.seeds

    def score(self, cell: Cell, settings: Settings, step: int) -> float:
        """How well one training does on validation: higher is better."""
        training = self._trained(cell, settings, step)
        return score_of(_said(training, self.val), self.val.labels_N, self.select)

    def fit(self, cell: Cell, settings: Settings, seed: int) -> bytes:
        """The weights of a seed."""
        network = self._trained(cell, settings, seed)
        tensors = {n: p.detach().contiguous() for n, p in network.named_parameters()}
        return bytes(save_tensors(tensors))

    def predict(self, cell: Cell, weights: bytes, rows: ImageRows) -> Probabilities:
        """What the weights say of images, (N, K)."""
        import torch

        network = self._training(cell, {}, 0, self._mixtures(Cell("none", cell.fraction), {})[0])
        with torch.no_grad():
            for name, tensor in load_tensors(weights).items():
                dict(network.average.named_parameters())[name].copy_(tensor)
        network.context.close()
        return _said(network.average, rows)

    # --- what there is ------------------------------------------------------------------------

    @functools.cached_property
    def train(self) -> Roster:
        """The train split."""
        return Roster([Source(url) for url in self.data], "train", self.cache_dir)

    @functools.cached_property
    def archive(self) -> Roster:
        """The archive's train split."""
        if self.synthetic is None:
            raise DataError("no archive was given", code="MR-D416", hint="give --synthetic")
        return Roster([Source(self.synthetic)], "train", self.cache_dir)

    @functools.cached_property
    def task(self) -> Targets:
        """The classes of the train split."""
        found = targets.choose(
            self.train.facts, self.train.classes, labels="one", where=self.train.name
        )
        return found

    @functools.cached_property
    def val(self) -> ImageRows:
        """The validation images."""
        sources = [Source(url) for url in self.data]
        return rows_of(Roster(sources, "val", self.cache_dir), self.task)

    def facts_of(self, share: float) -> list[Fact]:
        """The training images of a label fraction."""
        known = [fact for fact in self.train.facts if self.task.known(fact)]
        chosen = fraction.in_fraction(fraction.labels_by_patient(known), share, self.fraction_seed)
        return [fact for fact in known if targets.patient_of(fact) in chosen]

    # --- a training ---------------------------------------------------------------------------

    def _mixtures(self, cell: Cell, settings: Settings) -> list[mixture.Mixture]:
        facts = self.facts_of(cell.fraction)
        sources = [Source(url) for url in self.data]
        real = mixture.real(sources, self.train, facts, self.task)
        if cell.arm == "pretrain":
            archive = [Source(str(self.synthetic))]
            known = [fact for fact in self.archive.facts if self.task.known(fact)]
            return [mixture.real(archive, self.archive, known, self.task), real]
        if cell.arm != "archive":
            return [real]
        wanted = mixture.synthetic_counts(
            mixture.counts_of(facts, self.task), settings["ratio"], self.ratio_of
        )
        return [mixture.mixed(real, facts, self.archive, self.task, wanted)]

    def _training(self, cell: Cell, settings: Settings, seed: int, last: mixture.Mixture) -> Any:
        from medray.dist.context import local
        from medray.train.classifier import ClassifierTraining
        from medray.train.classifier_config import ClassifierConfig

        plain = ClassifierConfig.model_validate(self.settings)
        strength = settings.get("augment", 1.0)
        scaled = {name: min(0.99, getattr(plain, name) * strength) for name in AUGMENTED}
        scaled["rotate_deg"] = plain.rotate_deg * strength
        address = int(rng.integers(self.seed, "tune.fit", seed, 1, 0, 2**31)[0])
        own = {name: settings[name] for name in ("lr", "weight_decay") if name in settings}
        config = plain.model_copy(update={**scaled, **own, "seed": address})
        weights_2K = np.ones((2, len(self.task.classes)))
        if cell.arm == "class-weights":
            weights_2K = targets.weights(last.truth_NK, False, config.max_weight)
        return ClassifierTraining(
            config, self.task, self.train.channels, weights_2K, local(threads_per_rank=1)
        )

    def _trained(self, cell: Cell, settings: Settings, seed: int) -> Any:
        """The averaged network of one training, as it was best on validation."""
        from medray.train import validation

        parts = self._mixtures(cell, settings)
        training = self._training(cell, settings, seed, parts[-1])
        config = training.config
        total = config.total_images // config.batch * config.batch
        look = max(config.batch, total // LOOKS)
        named: dict[str, Any] = {"split": "train", "seed": config.seed, "threads": 1}
        named["cache_dir"] = self.cache_dir
        stream: Any = parts[-1].stream(**named)
        boundary = 0
        if len(parts) > 1:
            boundary = int(total * settings["share"]) // config.batch * config.batch
            stream = mixture.Staged(parts[0].stream(**named), boundary, stream)
        truth_NK = self.task.of(self.val.facts)
        with contextlib.closing(training.context), stream as batches:
            for images in range(0, total, config.batch):
                training.step(batches.next(config.batch), images)
                done = images + config.batch
                # While a context is open, SIGTERM is a wish that somebody must ask for.
                if reason := training.context.stop_reason():
                    raise Stopped(
                        f"stopped in a trial ({reason}); finished ones are saved",
                        hint="run the same command again to go on",
                    )
                if done > boundary and (done // look > images // look or done == total):
                    logits_NK = validation.logits_of(
                        training.average, self.val.roster, self.val.facts, training.context.device
                    )
                    loss = validation.balanced_log_loss(logits_NK, truth_NK, self.task)
                    training.keep_if_best(loss, done)
        return training.take_best()


def _said(network: Any, rows: ImageRows) -> Probabilities:
    import torch

    from medray.train import validation

    logits_NK = validation.logits_of(network, rows.roster, rows.facts, torch.device("cpu"))
    return np.asarray(special.softmax(logits_NK, axis=1), np.float32)
