#!/usr/bin/env python3
"""Pre-trains an encoder without labels: which permutation shuffled the nine patches of a frame?

Takes sets of clips (MR series, videos) or of images; without --data phantoms. The run folder keeps
the encoder (the best by validation), for `medray classify --encoder RUN`, pretext accuracy on
held-out patients, shuffled and solved puzzles, and how labels of nearest neighbours agree. Killed
at any moment, the same command with --resume ends with the same weights.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.job import JudgedJob, job
from medray.train.jigsaw_config import JigsawConfig


class JigsawJob(JudgedJob, JigsawConfig):
    """A jigsaw's run: what to train on, where, which network, how long."""

    phantoms: Literal["chest", "brain", "lung"] = Field(
        "brain", description="phantoms where --data is not given"
    )
    phantom_images: int = Field(600, ge=16, description="number of phantoms, all splits together")
    phantom_px: int = Field(96, ge=24, description="size of phantoms; sets have their own")
    fraction: float = Field(1.0, ge=1, le=1, description="no labels are used: always 1")
    on_error: Literal["raise"] = Field("raise", description="a damaged clip ends the run")

    @model_validator(mode="after")
    def _fits(self) -> JigsawJob:
        if self.batch % self.workers:
            raise ValueError(f"batch {self.batch} is not a multiple of workers {self.workers}")
        if self.init_from is not None and self.form != "compact":
            raise ValueError("--init-from takes an encoder: it goes with --form compact")
        self.check_splits()
        return self


def run(config: JigsawJob) -> None:
    """Trains, or with --dry-run says what it would take."""
    from jobs import _jigsaw_run as jigsaw_run

    if config.dry_run:
        jigsaw_run.describe(config)
    else:
        jigsaw_run.train(config)


main = job(JigsawJob, run)

if __name__ == "__main__":
    sys.exit(main())
