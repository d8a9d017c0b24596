#!/usr/bin/env python3
"""Makes a labelled archive of synthetic images as shards, each image with its address.

Workers come, go and die: the same command goes on with what is missing, and the shards are the same
bytes. --verify checks an archive and makes a random sample again; --repair mends it.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import OutJob, job


class ArchiveJob(OutJob):
    """An archive: of which generator and latents, how many, judged by whom, where to."""

    generator: Location | None = Field(
        None,
        description="run or model folder of a generator (needed to make an archive; to check one: "
        "where it is now, if it moved)",
        json_schema_extra={"metavar": "RUN"},
    )
    latents: Location | None = Field(
        None,
        description="what `medray latents` made (none: plain latents)",
        json_schema_extra={"metavar": "URL"},
    )
    classifier: Location | None = Field(
        None,
        description="run of a classifier: only images on which it sees the wanted label are kept",
        json_schema_extra={"metavar": "RUN"},
    )
    min_probability: float = Field(
        0.5, ge=0, le=1, description="least calibrated probability of the wanted label"
    )
    gate: Location | None = Field(
        None,
        description="privacy gate: copies of training images are dropped (none: unaudited)",
        json_schema_extra={"metavar": "URL"},
    )
    count: int | None = Field(None, ge=1, description="images (none: those of the labels file)")
    labels: Annotated[str, Field(min_length=1)] = Field(
        "balanced",
        description="balanced, natural (the shares of --data; without latents: as they come), or a "
        "CSV of label,count",
        json_schema_extra={"metavar": "balanced|natural|FILE"},
    )
    data: Location | None = Field(
        None, description="set of shards whose train split gives the natural shares"
    )
    format: Literal["png", "npy", "dicom"] = Field("png", description="how images are stored")
    body_part: str = Field(
        "", max_length=16, description="DICOM's term for what is shown, such as CHEST"
    )
    samples_per_shard: int = Field(1000, ge=1, le=100_000, description="samples of a shard")
    batch: int = Field(16, ge=1, le=1024, description="fixed, padded batch of the generator")
    dtype: Literal["float32", "bf16"] = Field("float32", description="arithmetic of the generator")
    name: str | None = Field(None, description="the set's name (none: the last part of --out)")
    workers: int | None = Field(
        None,
        ge=0,
        description="most Ray actors; 0: in this process (none: as many as Ray has CPUs where "
        "RAY_ADDRESS is set, else 0)",
    )
    min_workers: int = Field(1, ge=1, description="fewest Ray actors; waits for that many")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs of each actor")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each actor, or of this process")
    retries: int = Field(3, ge=0, description="times a shard is tried again where its worker died")
    wait_s: float = Field(30, ge=0, description="wait for another command's end on --out")
    cost_per_hour: float | None = Field(
        None, gt=0, description="what the cluster costs per hour: tells the cost of a million"
    )
    verify: bool = Field(
        False, description="check digests, counts and addresses; make a random sample again"
    )
    repair: bool = Field(False, description="make damaged and missing shards again")
    sample: int = Field(64, ge=0, description="images that --verify makes again")

    @model_validator(mode="after")
    def _makes_sense(self) -> ArchiveJob:
        if self.verify and self.repair:
            raise ValueError("--verify looks and --repair mends: give one of them")
        if (self.verify or self.repair) and self.overwrite:
            raise ValueError("--overwrite removes what --verify and --repair look at")
        if not (self.verify or self.repair) and self.generator is None:
            raise ValueError("--generator is needed to make an archive")
        if self.workers and self.min_workers > self.workers:
            raise ValueError(f"--min-workers {self.min_workers} is above --workers {self.workers}")
        return self


def run(config: ArchiveJob) -> None:
    """Makes, checks or mends an archive."""
    from jobs import _archive_run as archive_run

    if config.verify:
        archive_run.verify(config)
    elif config.repair:
        archive_run.repair(config)
    else:
        archive_run.make(config)


main = job(ArchiveJob, run)

if __name__ == "__main__":
    sys.exit(main())
