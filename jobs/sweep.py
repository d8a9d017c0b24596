#!/usr/bin/env python3
"""How much synthetic data, of which kind, helps a task, and whether that is real or luck.

Arms (no augmentation, class weights, SMOTE, class Gaussians, ACGAN features, archive images, pre-
training) are searched on validation alone; then each touches the test split once, for every seed.
The end is a verdict in words and a picture, "did not help" and "not resolvable" among its answers.
Run again after an interruption, it goes on; the same flags give the same verdict.
"""

from __future__ import annotations

import math
import sys
from typing import Literal

from pydantic import Field, field_validator, model_validator

from medray.config import Location
from medray.job import OutJob, job

ON_FEATURES = ("none", "class-weights", "smote", "gaussian")
ON_IMAGES = ("none", "class-weights")


class SweepJob(OutJob):
    """A sweep: on what, which arms, how much of each, how it is judged."""

    data: tuple[Location, ...] = Field(
        (),
        description="sets of images: trials train classifiers, minutes each (or see --pixels)",
        json_schema_extra={"metavar": "URL"},
    )
    features: Location | None = Field(
        None,
        description="set of features (medray features): trials train small heads, seconds each; "
        "{fold} in it stands for the outer fold",
        json_schema_extra={"metavar": "URL"},
    )
    synthetic: Location | None = Field(
        None,
        description="archive for the arms archive and pretrain: images with --data, features of "
        "the same network with --features; {fold} as there",
        json_schema_extra={"metavar": "URL"},
    )
    phantoms: Literal["chest", "brain", "lung"] = Field(
        "chest", description="phantoms where neither --data nor --features is given"
    )
    phantom_images: int = Field(600, ge=60, description="number of phantoms, all splits together")
    pixels: int = Field(
        0, ge=0, le=32, description="trials on images shrunk to so many pixels a side (0: not so)"
    )
    arms: tuple[str, ...] = Field(
        (),
        description="arms with commas between them: none, class-weights, smote, adasyn, mixup, "
        "gaussian, acgan, archive, pretrain, shuffled (a control); without it those that fit",
        json_schema_extra={"metavar": "NAME"},
    )
    ratios: tuple[float, ...] = Field(
        (0, 1, 2, 4, 8), description="synthetic samples for each real one that a search may choose"
    )
    ratio_of: Literal["minority", "all"] = Field(
        "minority", description="classes that get them: those below the largest, or all"
    )
    classes: tuple[str, ...] = Field((), description="only these classes")
    fractions: tuple[float, ...] = Field((1.0,), description="shares of the labels, by patient")
    fraction_seed: int = Field(0, ge=0, description="which patients a fraction has")
    seeds: int = Field(3, ge=1, description="trainings of each setting, paired between arms")
    folds: int = Field(
        0, ge=0, description="outer patient folds over all splits joined (0: the set's own splits)"
    )
    inner: int = Field(
        0,
        ge=0,
        description="inner folds of the training patients to choose by (0: the split val, or 3 "
        "with --folds)",
    )
    unit: Literal["sample", "patient"] = Field(
        "sample", description="patient: features are averaged over each patient's samples first"
    )
    trials: int = Field(24, ge=1, le=24, description="trials of each arm, fraction and fold")
    width: int = Field(4, ge=1, description="trials that are proposed at once")
    eta: int = Field(3, ge=2, description="at a rung a trial must be in the best 1/eta to go on")
    select: Literal["balanced_accuracy", "auroc", "log_loss"] = Field(
        "balanced_accuracy", description="validation score that chooses"
    )
    hidden: int = Field(0, ge=0, description="hidden units of the head on features (0: linear)")
    steps: int = Field(240, ge=10, description="optimiser steps of a head, at most")
    size_px: int = Field(32, ge=16, description="size at which classifiers of images look")
    model_width: int = Field(16, ge=8, multiple_of=8, description="channels of their first layer")
    total_images: int = Field(8000, ge=64, description="images of one training on images")
    batch: int = Field(32, ge=1, description="images a step")
    acgan_images: int = Field(20_000, ge=64, description="rows that an ACGAN on features sees")
    margin: float = Field(
        0.03, gt=0, lt=1, description="smallest gain of balanced accuracy that matters"
    )
    interval_draws: int = Field(4000, ge=200, description="draws of the paired bootstrap")
    backend: Literal["ray", "local"] = Field(
        "ray", description="Ray Tune, or this process alone: the same results"
    )
    workers: int | None = Field(None, ge=1, description="trials side by side (auto: CPUs)")
    cpus_per_trial: float = Field(1, gt=0, description="CPUs of each trial, for placement")
    cache_dir: Location | None = Field(
        None, description="where remote shards and phantoms are kept"
    )

    @field_validator("ratios")
    @classmethod
    def _not_negative(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if not given or any(not math.isfinite(ratio) or ratio < 0 for ratio in given):
            raise ValueError("ratios are synthetic samples per real one: 0 or more, at least one")
        return tuple(sorted(set(given)))

    @field_validator("fractions")
    @classmethod
    def _shares(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if not given or any(not 0 < share <= 1 for share in given):
            raise ValueError("fractions are above 0 and at most 1, at least one")
        return tuple(sorted(set(given)))

    @field_validator("arms", "classes")
    @classmethod
    def _apart(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(part.strip() for text in given for part in text.split(","))
        if not all(names) or len(names) != len(set(names)):
            raise ValueError("name different ones with commas between them")
        return names

    @model_validator(mode="after")
    def _fits(self) -> SweepJob:
        if self.data and self.features:
            raise ValueError("--data (images) and --features are two sweeps: give one of them")
        if self.on_images and (self.folds or self.inner):
            raise ValueError(
                "--folds and --inner need --features or --pixels: trials on images use the set's "
                "own splits"
            )
        if 1 in (self.folds, self.inner):
            raise ValueError("--folds and --inner are 0 or at least 2")
        if self.unit == "patient" and self.on_images:
            raise ValueError("--unit patient needs --features or --pixels")
        return self

    @property
    def on_images(self) -> bool:
        """Whether trials train classifiers of images."""
        return bool(self.data) and not self.pixels


def run(config: SweepJob) -> None:
    """Searches, tests once, judges; or with --dry-run says what it would take."""
    from jobs import _sweep_run as sweep_run

    sweep_run.sweep(config)


main = job(SweepJob, run)

if __name__ == "__main__":
    sys.exit(main())
