"""Configuration of the classifier. No torch here, so that `--help` answers at once."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from medray.config import Frozen


class ClassifierConfig(Frozen):
    """What decides a classifier's weights, but for the images."""

    seed: int = Field(0, ge=0, lt=2**63, description="every random number is a function of it")
    architecture: Literal["residual", "plain", "encoder"] = Field(
        "residual",
        description="residual network, a plain one to judge by, or the trunk that --encoder takes",
    )
    labels: Literal["auto", "one", "many"] = Field(
        "auto",
        description="one class an image, or many findings; auto: many where findings meet",
    )
    classes: tuple[str, ...] = Field((), description="only these classes or findings")
    size_px: int = Field(64, ge=16, description="size at which the network looks, from any other")
    width: int = Field(32, ge=8, multiple_of=8, description="channels of the first layer")
    total_images: int = Field(40_000, ge=1, description="images to train on, at most")
    pretrain_images: int = Field(
        0, ge=0, description="so many of them first, on the images of --pretrain alone"
    )
    batch: int = Field(32, ge=1, description="images a step, all workers together")
    lr: float = Field(1e-3, gt=0, description="learning rate at its height")
    warmup_images: int | None = Field(
        None, ge=0, description="images over which it rises (none: a twentieth of the total)"
    )
    weight_decay: float = Field(0.05, ge=0, description="decoupled weight decay (AdamW)")
    label_smoothing: float = Field(0.05, ge=0, lt=0.5, description="share moved off the label")
    max_weight: float = Field(
        20.0, ge=1, description="a rare class counts at most so much more than a mean one"
    )
    ema_half_life_images: float = Field(
        2000, gt=0, description="half-life of the averaged weights, which are the model"
    )
    patience_images: int | None = Field(
        None,
        ge=1,
        description="stop after so many images without a better score (none: 0.4 of the total)",
    )
    mirror: bool = Field(False, description="flip half of the images left to right")
    shift: float = Field(0.08, ge=0, lt=1, description="shift, up to this share of the width")
    rotate_deg: float = Field(10.0, ge=0, le=180, description="rotation, up to so many degrees")
    zoom: float = Field(0.12, ge=0, lt=1, description="zoom in or out, up to this share")
    brightness: float = Field(0.15, ge=0, description="added, up to this share of half the range")
    contrast: float = Field(0.25, ge=0, lt=1, description="contrast, up to this share")
    noise: float = Field(0.06, ge=0, description="noise, standard deviation up to this")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="type of activations")

    @model_validator(mode="after")
    def _stages(self) -> ClassifierConfig:
        first = self.pretrain_images
        if first and (first >= self.total_images or first % self.batch):
            raise ValueError(
                f"--pretrain-images {first} must be a multiple of the batch ({self.batch}) and "
                f"below --total-images ({self.total_images}), which counts both stages"
            )
        return self

    @field_validator("classes")
    @classmethod
    def _different(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError(f"names a class twice: {', '.join(classes)}")
        return classes

    def lr_at(self, images: int) -> float:
        """Learning rate after `images` images: a linear rise, then half a cosine down to zero.

        Each stage has its own: pre-training up to `pretrain_images`, then fine-tuning anew.
        """
        images, total = self.in_stage(images)
        warmup = total // 20 if self.warmup_images is None else self.warmup_images
        if images < warmup:
            return self.lr * (images + 1) / warmup
        done = (images - warmup) / max(1, total - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def in_stage(self, images: int) -> tuple[int, int]:
        """(images into the stage that follows `images` images, images of the whole stage)."""
        first = self.pretrain_images
        if images < first:
            return images, first
        return images - first, self.total_images - first

    @property
    def patience(self) -> int:
        """Images without a better score after which training stops.

        Those of pre-training do not count, but the share is of both stages: as patient as without.
        """
        share = max(1, 2 * self.total_images // 5)
        return share if self.patience_images is None else self.patience_images
