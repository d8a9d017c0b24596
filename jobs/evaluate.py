#!/usr/bin/env python3
"""Judges synthetic images against real ones: distances, memorisation, membership, diversity.

Leaves one page with plots and picture grids (report.html), summary.json and the PNGs. It shows
training images, so it is as private as they are. Run again after an interruption, it goes on; the
same sets and flags give the same bytes. Ends with exit code 5 where a near-copy of a training
image is found. With --make-gate it makes the privacy gate of the real set and nothing else.
"""

from __future__ import annotations

import sys

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import OutJob, job


class EvaluateJob(OutJob):
    """An evaluation: what is compared with what, by which extractor and judge."""

    real: Location = Field(
        description="set of real shards, with the splits below",
        json_schema_extra={"metavar": "URL"},
    )
    synthetic: Location | None = Field(
        None, description="archive or set to judge", json_schema_extra={"metavar": "URL"}
    )
    synthetic_split: str | None = Field(None, description="one split of --synthetic (none: all)")
    unconditional: Location | None = Field(
        None,
        description="set of plain generates (no class wanted), for diversity and coverage",
        json_schema_extra={"metavar": "URL"},
    )
    extractor: str = Field(
        "random:0",
        description="random:SEED (a smoke test), a TorchScript file PATH.pt[,px=N][,channels=1|3]"
        "[,norm=bytes|unit|signed|imagenet], or a classifier's run folder",
    )
    judge: Location | None = Field(
        None,
        description="run of an independent classifier: label hit rate, disease diversity",
        json_schema_extra={"metavar": "RUN"},
    )
    gate: Location | None = Field(
        None,
        description="gate made before (none: one is made here)",
        json_schema_extra={"metavar": "URL"},
    )
    make_gate: bool = Field(False, description="make the privacy gate of --real in --out, no more")
    train_split: str = Field("train", description="split that the generator was trained on")
    holdout_split: str = Field("val", description="split of other patients, for the gate")
    test_split: str = Field("test", description="split for the judge and the classifiers")
    max_images: int = Field(
        20_000, ge=100, description="images read of each set at most, evenly spread over it"
    )
    bootstrap: int = Field(200, ge=20, description="bootstrap draws of each interval")
    validation_images: int = Field(
        500, ge=0, description="real images distorted to validate FID itself (0: left out)"
    )
    tstr_images: int = Field(
        0, ge=0, description="images each classifier sees that is trained on synthetic or on real "
        "images and tested on real ones (0: left out)",
    )  # fmt: skip
    workers: int = Field(0, ge=0, description="Ray workers that compute features (0: here)")

    @model_validator(mode="after")
    def _something_to_judge(self) -> EvaluateJob:
        if self.make_gate == (self.synthetic is not None):
            raise ValueError("give --synthetic URL to judge a set, or --make-gate to make a gate")
        if self.make_gate and self.gate:
            raise ValueError("--make-gate makes a gate: it does not go with --gate")
        return self


def run(config: EvaluateJob) -> None:
    """Judges, makes a gate, or with --dry-run says what it would take."""
    from jobs import _evaluate_run as evaluate_run

    if config.make_gate:
        evaluate_run.make_gate(config)
    else:
        evaluate_run.evaluate(config)


main = job(EvaluateJob, run)

if __name__ == "__main__":
    sys.exit(main())
