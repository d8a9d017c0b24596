"""Configuration of the jigsaw pretext. No torch here, so that `--help` answers at once."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Frozen


class JigsawConfig(Frozen):
    """What decides the weights of a jigsaw's networks, but for the frames."""

    seed: int = Field(0, ge=0, lt=2**63, description="every random number is a function of it")
    form: Literal["compact", "published"] = Field(
        "compact",
        description="one encoder for all patches, or the published nine branches (170 million "
        "parameters)",
    )
    width: int = Field(
        32, ge=8, multiple_of=8, description="channels of the compact encoder's first layer"
    )
    permutations: int = Field(
        1000, ge=2, le=5000, description="permutations to tell apart, far from each other"
    )
    gap: bool = Field(
        True,
        description="patches smaller than their cells, at random offsets; --no-gap: whole cells "
        "(what the pretext gains by edges that go on is then seen)",
    )
    augment: bool = Field(
        True, description="turn, move and zoom patches, change their brightness, add noise"
    )
    noise: float = Field(0.1, ge=0, description="standard deviation of that noise, of a range of 1")
    total_images: int = Field(40_000, ge=1, description="frames to train on, at most")
    batch: int = Field(32, ge=1, description="frames a step, all workers together")
    lr: float = Field(1e-3, gt=0, description="Adam's learning rate at its height")
    warmup_images: int | None = Field(
        None, ge=0, description="frames over which it rises (none: a twentieth of the total)"
    )
    weight_decay: float = Field(0.05, ge=0, description="decoupled weight decay (AdamW)")
    ema_half_life_images: float = Field(
        2000, gt=0, description="half-life of the averaged weights, which are the model"
    )
    patience_images: int | None = Field(
        None,
        ge=1,
        description="stop after so many frames without a better score (none: 0.5 of the total)",
    )
    frames_per_clip: int | None = Field(
        None, ge=1, description="at most so many frames of a clip, evenly over it (none: all)"
    )
    memory_gib: float = Field(
        8.0, gt=0, description="most memory for the frames, which each worker holds"
    )
    validation_views: int = Field(
        512, ge=1, description="puzzles of held-out patients that the pretext is scored on"
    )
    probe_frames: int = Field(
        256, ge=0, description="frames whose nearest neighbours probe the features (0: no probe)"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="type of activations; auto: bf16 on a GPU or a CPU with AMX"
    )
    engine: Literal["torch", "deepspeed"] = Field("torch", description="optimiser engine")
    zero_stage: int = Field(
        0, ge=0, le=2, description="DeepSpeed ZeRO: 0, or 1 or 2 without weight decay"
    )

    @model_validator(mode="after")
    def _engine_fits(self) -> JigsawConfig:
        if self.zero_stage and self.engine != "deepspeed":
            raise ValueError(f"zero stage {self.zero_stage} needs the engine deepspeed")
        if self.zero_stage and self.weight_decay:
            raise ValueError(f"zero stage {self.zero_stage} goes with --weight-decay 0")
        return self

    def lr_at(self, images: int) -> float:
        """Learning rate after `images` frames: a linear rise, then half a cosine down to zero."""
        warmup = self.total_images // 20 if self.warmup_images is None else self.warmup_images
        if images < warmup:
            return self.lr * (images + 1) / warmup
        done = (images - warmup) / max(1, self.total_images - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    @property
    def patience(self) -> int:
        """Frames without a better score after which training stops."""
        share = max(1, self.total_images // 2)
        return share if self.patience_images is None else self.patience_images
