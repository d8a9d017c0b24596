"""Configuration of the ACGAN on features. No torch here, so that `--help` answers at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medray.config import Frozen


class ACGANConfig(Frozen):
    """What decides an ACGAN's weights, but for the features."""

    seed: int = Field(0, ge=0, lt=2**63, description="every random number is a function of it")
    form: Literal["auto", "vector", "map"] = Field(
        "auto", description="what the features are to be; auto: what the set holds"
    )
    regulariser: Literal["gradient", "spectral", "none"] = Field(
        "gradient",
        description="what keeps D smooth: a gradient penalty on real ones, or spectral weights",
    )
    penalty: float = Field(1.0, ge=0, description="weight of the gradient penalty")
    noise_dims: int = Field(64, ge=1, description="dimensions of the noise")
    width: int = Field(256, ge=4, description="width of the layers")
    layers: int = Field(2, ge=1, le=8, description="hidden layers of each network")
    total_images: int = Field(50_000, ge=1, description="features to train on, counted as seen")
    batch: int = Field(64, ge=2, description="features a step")
    lr: float = Field(2e-3, gt=0, description="learning rate of the generator")
    d_lr_factor: float = Field(1.0, gt=0, description="the discriminator's, in these")
    class_weight: float = Field(1.0, ge=0, description="weight of the class losses on real ones")
    fake_class_weight: float = Field(
        0.1, ge=0, description="weight of D's class loss on generated ones (Odena: 1)"
    )
    balanced: bool = Field(True, description="draw classes equally often, not as frequent as real")
    ema_half_life_images: float = Field(
        2000, gt=0, description="half-life of the averaged generator, which is the model"
    )
