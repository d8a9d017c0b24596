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
from medray.job import JudgedJob, job
from medray.train.segmenter_config import SegmenterConfig


class SegmentJob(JudgedJob, SegmenterConfig):
    """A segmenter's run: what to train on, where, which network, how long."""

    data: tuple[Location, ...] = Field(
        (),
        description="sets of shards with masks (folder or URL); none: phantoms",
        json_schema_extra={"metavar": "URL"},
    )
    phantoms: Literal["brain", "lung"] = Field(
        "brain", description="phantoms where --data is not given"
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the patients whose masks are used, class by class"
    )

    @model_validator(mode="after")
    def _fits(self) -> SegmentJob:
        if self.batch % self.workers:
            raise ValueError(f"batch {self.batch} is not a multiple of workers {self.workers}")
        self.check_splits()
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
