"""Configuration of the segmenter. No torch here, so that `--help` answers at once."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from medray.config import Frozen


class SegmenterConfig(Frozen):
    """What decides a segmenter's weights, but for the images."""

    seed: int = Field(0, ge=0, lt=2**63, description="every random number is a function of it")
    size_px: int = Field(
        64,
        ge=32,
        multiple_of=16,
        description="size at which the network looks, from any other; a multiple of 16",
    )
    width: int = Field(
        16,
        ge=1,
        description="channels of the first level; levels have 1, 2, 4, 8, 16 times as many "
        "(64: the published network)",
    )
    loss: Literal["dice", "dice-bce"] = Field(
        "dice", description="soft Dice, or with binary cross-entropy added"
    )
    dice_over: Literal["batch", "image"] = Field(
        "batch",
        description="what a soft Dice is of: a worker's part of the batch as one, or each image "
        "(where most images show nothing, that learns slowly)",
    )
    total_images: int = Field(20_000, ge=1, description="images to train on, at most")
    batch: int = Field(16, ge=1, description="images a step, all workers together")
    lr: float = Field(1e-3, gt=0, description="Adam's learning rate at its height")
    warmup_images: int | None = Field(
        None, ge=0, description="images over which it rises (none: a twentieth of the total)"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    ema_half_life_images: float = Field(
        1000, gt=0, description="half-life of the averaged weights, which are the model"
    )
    patience_images: int | None = Field(
        None,
        ge=1,
        description="stop after so many images without a better score (none: 0.5 of the total)",
    )
    mirror: bool = Field(False, description="flip half of the images left to right")
    rotate_deg: float = Field(20.0, ge=0, le=180, description="rotation, up to so many degrees")
    shift: float = Field(0.10, ge=0, lt=1, description="shift, up to this share of the width")
    shear: float = Field(0.05, ge=0, lt=1, description="shear, up to this share")
    zoom: float = Field(0.10, ge=0, lt=1, description="zoom in or out, up to this share")
    elastic: float = Field(
        0.02, ge=0, lt=0.25, description="elastic warp, up to this share of the width a knot"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="type of activations")

    def lr_at(self, images: int) -> float:
        """Learning rate after `images` images: a linear rise, then half a cosine down to zero."""
        warmup = self.total_images // 20 if self.warmup_images is None else self.warmup_images
        if images < warmup:
            return self.lr * (images + 1) / warmup
        done = (images - warmup) / max(1, self.total_images - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    @property
    def patience(self) -> int:
        """Images without a better score after which training stops."""
        share = max(1, self.total_images // 2)
        return share if self.patience_images is None else self.patience_images
