#!/usr/bin/env python3
"""Trains a progressive GAN on a set of shards, data-parallel on Ray.

Without --data it trains on phantoms. The run folder keeps pictures, curves, checkpoints and the
model; killed at any moment, the same command with --resume ends with the same weights.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import RunJob, job
from medray.train.pggan_config import PgganConfig


class PgganJob(RunJob, PgganConfig):
    """A progressive GAN run: what to train on, where, how wide, how long."""

    data: tuple[Location, ...] = Field(
        (),
        description="sets of shards (folder or URL); none: phantoms",
        json_schema_extra={"metavar": "URL"},
    )
    phantoms: Literal["chest", "brain", "lung"] = Field(
        "chest", description="phantoms where --data is not given"
    )
    phantom_images: int = Field(2000, ge=16, description="number of phantoms")
    split: Literal["train", "val", "test"] = Field("train", description="split to train on")
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="with --conditional: share of the patients whose labels are used, by class; "
        "the others' images are left out",
    )
    fraction_seed: int = Field(0, ge=0, lt=2**63, description="which patients those are")
    unlabelled_rest: bool = Field(
        False, description="keep the others' images, without their labels (semi-supervised)"
    )
    exclude_patients: Location | None = Field(
        None,
        description="keyed patient hashes, one a line: their images are left out",
        json_schema_extra={"metavar": "FILE"},
    )
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
    snapshot_images: int | None = Field(None, ge=1, description="images between picture grids")
    checkpoint_images: int | None = Field(None, ge=1, description="images between checkpoints")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_best: int = Field(
        1, ge=0, description="best checkpoints kept, by sliced Wasserstein distance"
    )

    @model_validator(mode="after")
    def _fraction_is_of_labels(self) -> PgganJob:
        if self.fraction < 1 and not self.conditional:
            raise ValueError("--fraction is of labels: it goes with --conditional")
        if self.unlabelled_rest and self.fraction == 1:
            raise ValueError("--unlabelled-rest goes with --fraction below 1")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> PgganJob:
        for batch in (self.batch, *self.batch_by_px.values()):
            if batch % self.workers:
                raise ValueError(f"batch {batch} is not a multiple of workers {self.workers}")
        return self


def run(config: PgganJob) -> None:
    """Trains, or with --dry-run says what it would take."""
    from jobs import _pggan_run as pggan_run

    if config.dry_run:
        pggan_run.describe(config)
    else:
        pggan_run.train(config)


main = job(PgganJob, run)

if __name__ == "__main__":
    sys.exit(main())
