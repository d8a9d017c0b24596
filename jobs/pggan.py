#!/usr/bin/env python3
"""Trains a progressive GAN on a set of shards, data-parallel on Ray.

Without --data it trains on phantoms. The run folder keeps pictures, curves, checkpoints and the
model; killed at any moment, the same command with --resume ends with the same weights.
"""

from __future__ import annotations

import sys

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import ImagesJob, job
from medray.train.pggan_config import STDDEV_GROUP, PgganConfig


class PgganJob(ImagesJob, PgganConfig):
    """A progressive GAN run: what to train on, where, how wide, how long."""

    phantom_images: int = Field(2000, ge=16, description="number of phantoms")
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="with --conditional: share of the patients whose labels are used, by class; "
        "the others' images are left out",
    )
    unlabelled_rest: bool = Field(
        False, description="keep the others' images, without their labels (semi-supervised)"
    )
    exclude_patients: Location | None = Field(
        None,
        description="keyed patient hashes, one a line: their images are left out",
        json_schema_extra={"metavar": "FILE"},
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="fewest workers: with Ray as many train as the cluster holds, up to --workers, "
        "while nodes come and go; batch, rates and schedule stay as they are",
    )
    resize_every_s: float = Field(
        60.0, gt=0, description="seconds between two looks for more workers, with --min-workers"
    )
    snapshot_images: int | None = Field(None, ge=1, description="images between picture grids")
    keep_best: int = Field(
        1, ge=0, description="best checkpoints kept, by sliced Wasserstein distance"
    )

    @model_validator(mode="after")
    def _fraction_is_of_labels(self) -> PgganJob:
        if self.fraction < 1 and not self.conditional:
            raise ValueError("--fraction is of labels: it goes with --conditional")
        if self.unlabelled_rest and self.fraction == 1:
            raise ValueError("--unlabelled-rest goes with --fraction below 1")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> PgganJob:
        for batch in self._batches():
            if batch % self.workers:
                raise ValueError(f"batch {batch} is not a multiple of workers {self.workers}")
            part, piece = batch // self.workers, self._piece(batch)
            if piece < part and (part % piece or piece % STDDEV_GROUP):
                fit = [n for n in range(STDDEV_GROUP, part, STDDEV_GROUP) if part % n == 0]
                raise ValueError(
                    f"images at once {piece}: a worker's part of batch {batch} is {part} images; "
                    f"allowed: {', '.join(map(str, [*fit, part]))} or more"
                )
        return self

    @model_validator(mode="after")
    def _may_have_fewer(self) -> PgganJob:
        if self.min_workers is None:
            return self
        if self.min_workers > self.workers:
            raise ValueError(f"min workers {self.min_workers} are above workers {self.workers}")
        if self.backend != "ray":
            raise ValueError(f"min workers go with the backend ray, got {self.backend}")
        if self.zero_stage == 3:
            raise ValueError("min workers go with zero stages 0 to 2, got 3")
        if not self._fits(self.min_workers):
            fit = [n for n in range(1, self.workers + 1) if self._fits(n)]
            raise ValueError(
                f"{self.min_workers} workers cannot share batch "
                f"{' and '.join(map(str, self._batches()))} evenly, in the pieces that "
                f"{self.workers} workers have; allowed: {', '.join(map(str, fit))}"
            )
        return self

    @property
    def worlds(self) -> tuple[int, ...]:
        """The numbers of workers that the run may have, `workers` last.

        Each shares every batch evenly, and in whole pieces.
        """
        least = self.min_workers or self.workers
        return tuple(n for n in range(least, self.workers + 1) if self._fits(n))

    def piece_of(self, part_images: int, px: int) -> int:
        """Images that the networks take at once: a part of the batch among `workers`, at most.

        So the same at every number of workers, and with it what of a batch is seen together.
        """
        return min(part_images, self._piece(self.batch_at(px)))

    def _batches(self) -> list[int]:
        return sorted({self.batch, *self.batch_by_px.values()})

    def _piece(self, batch: int) -> int:
        part = batch // self.workers
        return min(self.images_at_once or part, part)

    def _fits(self, workers: int) -> bool:
        return all(batch % (workers * self._piece(batch)) == 0 for batch in self._batches())


def run(config: PgganJob) -> None:
    """Trains, or with --dry-run says what it would take."""
    from jobs import _pggan_run as pggan_run

    if config.dry_run:
        pggan_run.describe(config)
    else:
        pggan_run.train(config)


main = job(PgganJob, run)

if __name__ == "__main__":
    sys.exit(main())
