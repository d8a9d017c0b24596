#!/usr/bin/env python3
"""Trains a progressive GAN on a set of shards, data-parallel on Ray.

Without --data it trains on phantoms. The run folder keeps pictures, curves, checkpoints and the
model; killed at any moment, the same command with --resume ends with the same weights.
"""

from __future__ import annotations

import sys

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import ImagesJob, job
from medray.train.pggan_config import PgganConfig


class PgganJob(ImagesJob, PgganConfig):
    """A progressive GAN run: what to train on, where, how wide, how long."""

    phantom_images: int = Field(2000, ge=16, description="number of phantoms")
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="with --conditional: share of the patients whose labels are used, by class; "
        "the others' images are left out",
    )
    unlabelled_rest: bool = Field(
        False, description="keep the others' images, without their labels (semi-supervised)"
    )
    exclude_patients: Location | None = Field(
        None,
        description="keyed patient hashes, one a line: their images are left out",
        json_schema_extra={"metavar": "FILE"},
    )
    snapshot_images: int | None = Field(None, ge=1, description="images between picture grids")
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
