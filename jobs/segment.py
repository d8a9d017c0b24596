#!/usr/bin/env python3
"""Trains a segmenter (MONAI's U-Net) on a set of shards with masks, data-parallel on Ray.

Without --data it trains on phantoms. Dice and IoU are by patient, with intervals; the run folder
keeps the model (the best by validation), curves and overlays of truth and prediction. --init-from
begins with another run's weights: pre-train on one set, fine-tune on another. Killed at any moment,
the same command with --resume ends with the same weights.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import RunJob, job
from medray.train.segmenter_config import SegmenterConfig

Split = Literal["train", "val", "test"]


class SegmentJob(RunJob, SegmenterConfig):
    """A segmenter's run: what to train on, where, which network, how long."""

    data: tuple[Location, ...] = Field(
        (),
        description="sets of shards with masks (folder or URL); none: phantoms",
        json_schema_extra={"metavar": "URL"},
    )
    phantoms: Literal["brain", "lung"] = Field(
        "brain", description="phantoms where --data is not given"
    )
    phantom_images: int = Field(2000, ge=16, description="number of phantoms, all splits together")
    split: Split = Field("train", description="split to train on")
    validation_split: Split = Field("val", description="split that chooses the weights")
    evaluate_split: Literal["val", "test"] = Field(
        "val", description="test: the test split is read as well, once, at the end"
    )
    patients: Literal["all", "half-a", "half-b"] = Field(
        "all", description="patients to train and validate on; the halves share none"
    )
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
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the patients whose masks are used, class by class"
    )
    fraction_seed: int = Field(0, ge=0, lt=2**63, description="which patients those are")
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
    def _fits(self) -> SegmentJob:
        if self.batch % self.workers:
            raise ValueError(f"batch {self.batch} is not a multiple of workers {self.workers}")
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


def run(config: SegmentJob) -> None:
    """Trains, or with --dry-run says what it would take."""
    from jobs import _segment_run as segment_run

    if config.dry_run:
        segment_run.describe(config)
    else:
        segment_run.train(config)


main = job(SegmentJob, run)

if __name__ == "__main__":
    sys.exit(main())
