#!/usr/bin/env python3
"""How long a progressive GAN would take on more GPUs than are here: a model, with ranges.

The model is fitted to a published run on one GPU and held against that on 2, 4 and 8; then it
predicts the training of --train. Nothing is trained, and nothing is written but --page.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field

from medray.config import JobConfig, Location
from medray.job import job


class ScalingJob(JobConfig):
    """Which training, on which machines."""

    train: Location = Field(
        description="configuration of a training, as `medray pggan --config` takes it",
        json_schema_extra={"metavar": "FILE"},
    )
    machine: Literal["h100"] = Field("h100", description="kind of node")
    gpus: tuple[int, ...] = Field(
        (1, 8, 64, 512), description="numbers of GPUs", json_schema_extra={"metavar": "N"}
    )
    images_per_gpu: int | None = Field(
        None,
        ge=1,
        description="images of a GPU in a step at the last resolution, whatever the number of "
        "GPUs (none: the training's batch, shared out)",
    )
    page: Location | None = Field(
        None,
        description="write the tables there, as Markdown",
        json_schema_extra={"metavar": "FILE"},
    )


def run(config: ScalingJob) -> None:
    """Predicts, prints, and writes the page where one is wanted."""
    from jobs import _scaling_run as scaling_run

    scaling_run.tell(config)


main = job(ScalingJob, run)

if __name__ == "__main__":
    sys.exit(main())
