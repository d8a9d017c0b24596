#!/usr/bin/env python3
"""Trains an ACGAN on a set of features that `medray features` made: it draws labelled features.

Only generates whose class the discriminator predicts are kept when it is sampled. The run folder
keeps the model, the Frechet distance to held-out real features as a curve, and a page. Killed at
any moment, the same command with --resume ends with the same weights.
"""

from __future__ import annotations

import sys

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import Split, TrainJob, job
from medray.train.acgan_config import ACGANConfig


class ACGANJob(TrainJob, ACGANConfig):
    """An ACGAN's run: on which features, where, which networks, how long."""

    features: Location = Field(
        description="set of features (folder or URL) that `medray features` made",
        json_schema_extra={"metavar": "URL"},
    )
    validation_split: Split = Field(
        "val", description="held-out split that the curve compares with; it moves no weight"
    )
    exclude_patients: Location | None = Field(
        None,
        description="keyed patient hashes, one a line: left out of training",
        json_schema_extra={"metavar": "FILE"},
    )
    cache_dir: Location | None = Field(None, description="where remote shards are kept")
    threads_per_worker: int | None = Field(None, ge=1, description="torch threads (auto: cores)")
    log_images: int | None = Field(None, ge=1, description="features between rows of metrics.jsonl")
    snapshot_images: int | None = Field(None, ge=1, description="features between comparisons")
    checkpoint_images: int | None = Field(None, ge=1, description="features between checkpoints")
    keep_best: int = Field(1, ge=0, description="best checkpoints kept, by the Frechet distance")

    @model_validator(mode="after")
    def _fits(self) -> ACGANJob:
        if self.split == self.validation_split:
            raise ValueError(f"--split and --validation-split are both {self.split}")
        return self


def run(config: ACGANJob) -> None:
    """Trains, or with --dry-run says what it would take."""
    from jobs import _acgan_run as acgan_run

    if config.dry_run:
        acgan_run.describe(config)
    else:
        acgan_run.train(config)


main = job(ACGANJob, run)

if __name__ == "__main__":
    sys.exit(main())
