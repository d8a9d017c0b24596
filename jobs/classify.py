#!/usr/bin/env python3
"""Trains an image classifier on a set of shards, data-parallel on Ray; calibrated and evaluated.

Without --data it trains on phantoms. The run folder keeps the model (the best by validation),
curves, confusion matrix, reliability curve and figures with intervals. Killed at any moment, the
same command with --resume ends with the same weights. A judge that shares no patient with it:
another --architecture, another --seed, and the other half of the patients (--patients half-b).

With --pretrain it trains on an archive's images first and then on the real ones, with --synthetic
on both mixed; an archive that saw a held-out patient, or a label outside --fraction, is refused.

With --encoder the network stands on a trunk that was trained before (jigsaw, or classify with
--encoder), fine-tuned; with --clips it classifies clips: frames through the encoder, pooled over
the clip by attention, ConvLSTM or mean, one logit a finding, findings that are not known left out.
Without --data clips are phantoms of knees.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import JudgedJob, Split, job
from medray.train.clips_config import ClipsConfig


class ClassifyJob(JudgedJob, ClipsConfig):
    """A classifier's run: what to train on, where, which network, how long."""

    validation_split: Split = Field(
        "val", description="split that chooses the weights and calibrates them"
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

    @model_validator(mode="after")
    def _fits(self) -> ClassifyJob:
        if self.batch % self.workers:
            raise ValueError(f"batch {self.batch} is not a multiple of workers {self.workers}")
        if (self.pretrain is None) != (self.pretrain_images == 0):
            raise ValueError("--pretrain URL and --pretrain-images N go together")
        if self.synthetic is not None and self.split != "train":
            raise ValueError("--synthetic goes with --split train: an archive has no other")
        if self.clips and (self.pretrain or self.synthetic or self.init_from):
            raise ValueError("--clips does not go with --pretrain, --synthetic or --init-from")
        if self.encoder and self.init_from:
            raise ValueError("--encoder begins with a trunk, --init-from with a whole network")
        self.check_splits()
        return self


def run(config: ClassifyJob) -> None:
    """Trains, or with --dry-run says what it would take."""
    if config.clips:
        from jobs import _classify_clips as of_clips

        (of_clips.describe if config.dry_run else of_clips.train)(config)
        return
    from jobs import _classify_run as of_images

    (of_images.describe if config.dry_run else of_images.train)(config)


main = job(ClassifyJob, run)

if __name__ == "__main__":
    sys.exit(main())
