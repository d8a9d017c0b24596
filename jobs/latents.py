#!/usr/bin/env python3
"""Finds latents that show wanted findings, and fits a Gaussian to draw any number of them from.

Generator and classifier stay as they are; many latents at once are moved until the classifier sees
what is wanted. Several findings at once are joined by +, never seen together in training or not.
Run again after an interruption, it goes on; the same flags give the same bytes.
"""

from __future__ import annotations

import sys

from pydantic import Field, field_validator

from medray.config import Location
from medray.job import OutJob, job


class LatentsJob(OutJob):
    """A search: which generator and classifier, what is wanted, how hard to look."""

    generator: Location = Field(
        description="run folder of a generator, or its model folder",
        json_schema_extra={"metavar": "RUN"},
    )
    classifier: Location = Field(
        description="run folder of the classifier that steers, or its model folder",
        json_schema_extra={"metavar": "RUN"},
    )
    classes: tuple[str, ...] = Field(
        description="wanted labels with commas between them, such as bacteria,effusion+nodule",
        json_schema_extra={"metavar": "NAME"},
    )
    judge: Location | None = Field(
        None,
        description="run of an independent classifier that judges; none: the one that steers",
        json_schema_extra={"metavar": "RUN"},
    )
    real: Location | None = Field(
        None,
        description="set of real shards, to compare coverage and the judge's accuracy with",
        json_schema_extra={"metavar": "URL"},
    )
    real_split: str = Field("val", description="split of --real to compare with")
    per_class: int = Field(512, ge=16, description="accepted latents wanted for each target")
    threshold: float = Field(
        0.9, gt=0, lt=1, description="least probability of an accepted latent's label"
    )
    steps: int = Field(100, ge=1, description="steps after which a latent is given up")
    lr: float = Field(0.05, gt=0, description="step size of Adam on the latents")
    shell: float = Field(1.0, ge=0, description="weight of the Gaussian shell")
    anchor: float = Field(1.0, ge=0, description="weight of staying near the start")
    spread: float = Field(
        1.0, gt=0, le=2, description="scales the fitted deviations: below 1 surer, less diverse"
    )
    slots: int = Field(32, ge=1, description="latents that are moved at once")
    restarts: int = Field(128, ge=8, description="latents that a chunk starts with")
    most_starts: float = Field(
        8.0, ge=1, description="starts for each wanted latent before a target is given up"
    )
    check_images: int = Field(500, ge=0, description="fresh draws judged for each target")
    plain_images: int = Field(2000, ge=100, description="plain images they are compared with")
    min_accepted: int = Field(
        0, ge=0, description="exit code 5 if a target has fewer accepted latents (0: never)"
    )
    workers: int | None = Field(
        None, ge=0, description="Ray workers, 0: none (auto: 0, with RAY_ADDRESS as many as fit)"
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each worker")

    @field_validator("classes")
    @classmethod
    def _apart(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(part.strip() for text in given for part in text.split(","))
        if not all(names) or len(names) != len(set(names)):
            raise ValueError("name different labels with commas between them")
        return names


def run(config: LatentsJob) -> None:
    """Searches, or with --dry-run says what it would take."""
    from jobs import _latents_run as latents_run

    latents_run.search(config)


main = job(LatentsJob, run)

if __name__ == "__main__":
    sys.exit(main())
