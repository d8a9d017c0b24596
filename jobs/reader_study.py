#!/usr/bin/env python3
"""Makes a blinded set of real and synthetic images for readers, and afterwards their report.

medray reader_study --real SET --synthetic SET --out STUDY --images 100 --mode rating
medray reader_study --out STUDY --report answers.jsonl

The set is balanced, its ids are opaque, and every image leaves one pipeline with the same size,
depth, format and length. The truth lies in a file of its own. Run again after an interruption, it
goes on; the same flags give the same bytes.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import OutJob, job


class ReaderStudyJob(OutJob):
    """A study: which images, how many, what readers are asked; or the report on their answers."""

    real: Location | None = Field(
        None, description="set of real shards", json_schema_extra={"metavar": "URL"}
    )
    synthetic: Location | None = Field(
        None,
        description="set of synthetic shards, such as an archive",
        json_schema_extra={"metavar": "URL"},
    )
    real_split: Literal["train", "val", "test"] = Field(
        "test", description="split of --real that is shown"
    )
    synthetic_split: Literal["train", "val", "test"] = Field(
        "train", description="split of --synthetic that is shown"
    )
    images: int = Field(
        100,
        ge=4,
        le=4000,
        description="different images, half of them real; 2afc shows them paired",
    )
    mode: Literal["feedback", "rating", "2afc"] = Field(
        "rating",
        description="training with the truth after each answer, five points, or which of a pair",
    )
    classes: bool = Field(
        False, description="balance the classes, and ask readers which one an image shows"
    )
    repeats: float = Field(
        0.1, ge=0, le=0.5, description="share shown twice, for self-agreement (feedback: none)"
    )
    name: str = Field(
        "reader study", max_length=80, description="what readers see it called, no truth in it"
    )
    report: Location | None = Field(
        None,
        description="answers as the study exported them: write the report on them into --out",
        json_schema_extra={"metavar": "ANSWERS"},
    )

    @model_validator(mode="after")
    def _makes_or_reports(self) -> ReaderStudyJob:
        sets = [self.real, self.synthetic]
        if self.report is None and None in sets:
            raise ValueError("--real and --synthetic are required, or --report for the report")
        if self.report is not None and any(sets):
            raise ValueError("--report goes with --out alone, the study that it is the report on")
        if self.mode == "2afc" and self.classes:
            raise ValueError("--classes asks about one image: not with --mode 2afc")
        if self.images % 2:
            raise ValueError(f"--images must be even, half of them are real, got {self.images}")
        return self


def run(config: ReaderStudyJob) -> None:
    """Makes the set, or the report."""
    from jobs import _reader_study_run as reader_study_run

    if config.report is None:
        reader_study_run.make(config)
    else:
        reader_study_run.report_on(config)


main = job(ReaderStudyJob, run)

if __name__ == "__main__":
    sys.exit(main())
