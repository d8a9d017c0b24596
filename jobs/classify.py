#!/usr/bin/env python3
"""Trains an image classifier on a set of shards, data-parallel on Ray; calibrated and evaluated.

Without --data it trains on phantoms. The run folder keeps the model (the best by validation),
curves, confusion matrix, reliability curve and figures with intervals. Killed at any moment, the
same command with --resume ends with the same weights. A judge that shares no patient with it:
another --architecture, another --seed, and the other half of the patients (--patients half-b).

With --pretrain it trains on an archive's images first and then on the real ones, with --synthetic
on both mixed; an archive that saw a held-out patient, or a label outside --fraction, is refused.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import RunJob, job
from medray.train.classifier_config import ClassifierConfig

Split = Literal["train", "val", "test"]


class ClassifyJob(RunJob, ClassifierConfig):
    """A classifier's run: what to train on, where, which network, how long."""

    data: tuple[Location, ...] = Field(
        (),
        description="sets of shards (folder or URL); none: phantoms",
        json_schema_extra={"metavar": "URL"},
    )
    phantoms: Literal["chest", "brain", "lung"] = Field(
        "chest", description="phantoms where --data is not given"
    )
    phantom_images: int = Field(2000, ge=16, description="number of phantoms, all splits together")
    split: Split = Field("train", description="split to train on")
    validation_split: Split = Field(
        "val", description="split that chooses the weights and calibrates them"
    )
    evaluate_split: Literal["val", "test"] = Field(
        "val", description="test: the test split is read as well, once, at the end"
    )
    patients: Literal["all", "half-a", "half-b"] = Field(
        "all", description="patients to train and validate on; the halves share none"
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the patients whose labels are used, class by class"
    )
    fraction_seed: int = Field(0, ge=0, lt=2**63, description="which patients those are")
    exclude_patients: Location | None = Field(
        None,
        description="keyed patient hashes, one a line: left out of training and validation",
        json_schema_extra={"metavar": "FILE"},
    )
    validation_patients: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the patients to train on who validate instead; --validation-split is "
        "not read then",
    )
    pretrain: Location | None = Field(
        None,
        description="archive whose images alone are trained on first, for --pretrain-images",
        json_schema_extra={"metavar": "URL"},
    )
    synthetic: Location | None = Field(
        None,
        description="archive whose images are mixed with the real ones",
        json_schema_extra={"metavar": "URL"},
    )
    ratio: float = Field(
        1.0, ge=0, description="synthetic images for each real one of a class, with --synthetic"
    )
    ratio_of: Literal["minority", "all"] = Field(
        "minority", description="classes that get synthetic images: all but the largest, or all"
    )
    interval_draws: int = Field(1000, ge=20, description="draws of the bootstrap over patients")
    on_error: Literal["raise", "skip"] = Field("raise", description="what a damaged sample does")
    cache_dir: Location | None = Field(
        None, description="where remote shards and phantoms are kept"
    )
    loader_threads: int = Field(2, ge=1, description="threads that read and decode, per worker")
    backend: Literal["ray", "torchrun", "local"] = Field(
        "ray", description="who starts the workers"
    )
    workers: int = Field(1, ge=1, description="data-parallel workers (ranks)")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each worker")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs of each worker, for Ray's placement")
    threads_per_worker: int | None = Field(
        None, ge=1, description="torch threads of each worker (auto: cores / workers)"
    )
    max_failures: int = Field(3, ge=0, description="restarts of the workers before giving up")
    log_images: int | None = Field(None, ge=1, description="images between rows of metrics.jsonl")
    snapshot_images: int | None = Field(None, ge=1, description="images between validations")
    checkpoint_images: int | None = Field(None, ge=1, description="images between checkpoints")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_best: int = Field(1, ge=0, description="best checkpoints kept, by validation score")

    @model_validator(mode="after")
    def _fits(self) -> ClassifyJob:
        if self.batch % self.workers:
            raise ValueError(f"batch {self.batch} is not a multiple of workers {self.workers}")
        if (self.pretrain is None) != (self.pretrain_images == 0):
            raise ValueError("--pretrain URL and --pretrain-images N go together")
        if self.synthetic is not None and self.split != "train":
            raise ValueError("--synthetic goes with --split train: an archive has no other")
        splits = [self.split]
        if self.validation_patients is None:
            splits.append(self.validation_split)
        if self.evaluate_split == "test":
            splits.append("test")
        if len(set(splits)) < len(splits):
            raise ValueError(
                "training, validation and test need a split each, got "
                f"{', '.join(splits)} (--split, --validation-split, --evaluate-split)"
            )
        return self


def run(config: ClassifyJob) -> None:
    """Trains, or with --dry-run says what it would take."""
    from jobs import _classify_run as classify_run

    if config.dry_run:
        classify_run.describe(config)
    else:
        classify_run.train(config)


main = job(ClassifyJob, run)

if __name__ == "__main__":
    sys.exit(main())
