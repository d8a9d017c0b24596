#!/usr/bin/env python3
"""Makes masks of where a classifier looks: Grad-CAM heat, cut; scored where there are true masks.

Layer and cut are chosen by Dice on the validation split alone. The set comes out with the masks
beside its images, with pictures, a page and scores next to random masks, the middle of the image,
Otsu and, with --segmenter, a U-Net. --layer '?' lists the layers. With --arms classifiers are
trained again on images of which the heat is kept or removed. A folder of DICOM files as --data
becomes DICOM segmentations as well. Run again after an interruption, it goes on.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import OutJob, Split, job

LIST = "?"
ARMS = ("original", "kept", "removed", "tumour", "no-tumour", "random")


class GradcamJob(OutJob):
    """Which classifier, of which images, how its heat becomes masks."""

    out: Location = Field(
        "",
        description="folder or URL for the masks (not needed for --layer '?')",
        json_schema_extra={"metavar": "URL"},
    )
    classifier: Location = Field(
        description="run folder of a classifier, or its model folder",
        json_schema_extra={"metavar": "RUN"},
    )
    data: Location = Field(
        description="set of shards, or a folder of DICOM files",
        json_schema_extra={"metavar": "URL"},
    )
    layer: tuple[str, ...] = Field(
        (),
        description="layers to choose from (none: those that end a stage); ? lists all",
        json_schema_extra={"metavar": "NAME"},
    )
    method: Literal["gradcam", "gradcam++", "both"] = Field(
        "gradcam", description="how maps are weighted; both: chosen with the layer"
    )
    cut: tuple[str, ...] = Field(
        (),
        description="cuts to choose from: threshold:T, quantile:Q, otsu (none: many of each)",
        json_schema_extra={"metavar": "CUT"},
    )
    choice: Location | None = Field(
        None,
        description="finished result of this command whose layer and cut are taken",
        json_schema_extra={"metavar": "URL"},
    )
    background: tuple[str, ...] = Field(
        (),
        description="classes without a place: an image that is said to be of one gets no mask",
        json_schema_extra={"metavar": "NAME"},
    )
    choose_split: Split = Field("val", description="split that layer and cut are chosen on")
    split: Split = Field("test", description="split that is scored")
    score: bool = Field(
        False, description="exit code 3 where there are no true masks, instead of no scores"
    )
    segmenter: Location | None = Field(
        None,
        description="run of a segmenter whose scores stand beside",
        json_schema_extra={"metavar": "RUN"},
    )
    interval_draws: int = Field(1000, ge=20, description="draws of the bootstrap over patients")
    arms: tuple[
        Literal["all", "original", "kept", "removed", "tumour", "no-tumour", "random"], ...
    ] = Field((), description="trainings again, by what is left of the images; all: all six")
    arm_seeds: int = Field(2, ge=1, description="trainings of each arm")
    arm_images: int = Field(8000, ge=32, description="images that each of them sees")
    arm_px: int = Field(64, ge=16, description="size at which they look")
    arm_width: int = Field(16, ge=8, multiple_of=8, description="channels of their first layer")
    mirror: bool = Field(False, description="flip half of their images left to right")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="type of their activations")
    cache_dir: Location | None = Field(None, description="where remote shards are kept")

    @model_validator(mode="after")
    def _fits(self) -> GradcamJob:
        if not self.out and self.layer != (LIST,):
            raise ValueError("--out is required, a folder or URL for the masks")
        if self.choice is not None and (self.layer or self.cut):
            raise ValueError("--choice takes layer and cut from elsewhere: no --layer, no --cut")
        if self.choose_split == self.split:
            raise ValueError(
                f"--choose-split and --split are both {self.split}: what is chosen on a split "
                "cannot be scored on it"
            )
        return self


def run(config: GradcamJob) -> None:
    """Makes the masks, or lists the layers."""
    from jobs import _gradcam_run as gradcam_run

    if config.layer == (LIST,):
        gradcam_run.list_layers(config)
    else:
        gradcam_run.explain(config)


main = job(GradcamJob, run)

if __name__ == "__main__":
    sys.exit(main())
