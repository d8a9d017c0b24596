#!/usr/bin/env python3
"""Takes features of a named layer of a trained network for every sample of a set, as shards.

Each row lies with the label, patient and split of its image in one record. --layer '?' lists the
layers with their shapes. Run again after an interruption, it goes on; the same flags give the same
bytes.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import OutJob, job

LIST = "?"


class FeaturesJob(OutJob):
    """Which network and layer, of which images, how the maps become features."""

    out: Location = Field(
        "",
        description="folder or URL for the features (not needed for --layer '?')",
        json_schema_extra={"metavar": "URL"},
    )
    model: Location = Field(
        description="run folder of a segmenter or classifier, or its model folder",
        json_schema_extra={"metavar": "RUN"},
    )
    data: Location = Field(
        description="set of shards (folder or URL)", json_schema_extra={"metavar": "URL"}
    )
    layer: str = Field(
        description="name of the layer; ? lists them", json_schema_extra={"metavar": "NAME"}
    )
    pool: Literal["mean", "max", "whole", "masked"] = Field(
        "mean",
        description="of each map its mean, its greatest value, all of it, or the mean in a region",
    )
    mask: Literal["predicted", "true"] = Field(
        "predicted",
        description="region of --pool masked: what a segmenter predicts, or the set's own masks",
    )
    mask_model: Location | None = Field(
        None,
        description="segmenter that predicts the region; none: --model, if it is one",
        json_schema_extra={"metavar": "RUN"},
    )
    cache_dir: Location | None = Field(None, description="where remote shards are kept")
    workers: int | None = Field(
        None, ge=0, description="Ray workers, 0: none (auto: 0, with RAY_ADDRESS as many as fit)"
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each worker")

    @model_validator(mode="after")
    def _fits(self) -> FeaturesJob:
        if not self.out and self.layer != LIST:
            raise ValueError("--out is required, a folder or URL for the features")
        if self.mask_model is not None and (self.pool != "masked" or self.mask == "true"):
            raise ValueError("--mask-model is for --pool masked --mask predicted")
        if self.mask == "true" and self.pool != "masked":
            raise ValueError("--mask true is for --pool masked")
        return self


def run(config: FeaturesJob) -> None:
    """Takes the features, or lists the layers."""
    from jobs import _features_run as features_run

    if config.layer == LIST:
        features_run.list_layers(config)
    else:
        features_run.take(config)


main = job(FeaturesJob, run)

if __name__ == "__main__":
    sys.exit(main())
