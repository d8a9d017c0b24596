#!/usr/bin/env python3
"""Runs one of the studies: from a published set to tables that say whether synthetic data helped.

    medray study brain-grade     tumour grade by patient, on features of segmenters, five folds
    medray study lung-signs      signs of lung nodules: archive images, pre-training, features
    medray study brain-classes   three tumour classes, in a short form
    medray study chest           chest x-rays, in a short form
    medray study mr-clips        encoders made without labels on MR clips, five outer folds
    medray study gradcam         heat of classifiers as masks; trained again on what is left

A study is a list of other jobs with their flags (--dry-run prints them, with the time they take).
Each works in a folder of its own below --out; run again after an interruption, it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from medray.config import Location
from medray.job import OutJob, job


class StudyJob(OutJob):
    """A study: which, on which data, how large, where."""

    out: Location = Field(
        "", description="the study's folder (none: runs/studies/NAME)", validate_default=True
    )
    name: Literal["brain-grade", "lung-signs", "brain-classes", "chest", "gradcam", "mr-clips"] = (
        Field(description="which study; the word after `medray study` does the same")
    )
    sets: Location = Field(
        "../shared/data", description="folder with the tars of the published sets"
    )
    scale: Literal["trial", "cpu", "gpu"] = Field(
        "cpu",
        description="cpu: 32 px and 3 seeds, for 2 cores; gpu: 64 px and 5 seeds; trial: minutes, "
        "to see whether everything works (its figures mean nothing)",
    )
    fractions: tuple[float, ...] = Field(
        (), description="shares of the labels (none: those of the study)"
    )
    at_once: int = Field(2, ge=1, description="jobs side by side, one thread each")
    backend: Literal["local", "ray"] = Field(
        "local", description="how each job runs: one process, or on Ray (see RAY_ADDRESS)"
    )


def run(config: StudyJob) -> None:
    """Runs what is not done yet; or with --dry-run says what that is."""
    from jobs import _study_run as study_run

    study_run.study(config)


_main = job(StudyJob, run)


def main(argv: Sequence[str] | None = None) -> int:
    """As every job's; the first word may be the study's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words = ["--name", *words]
    return _main(words)


if __name__ == "__main__":
    sys.exit(main())
