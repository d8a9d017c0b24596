"""Configuration of the progressive GAN. No torch here, so that `--help` answers at once.

Defaults are those of Karras et al., ICLR 2018, but for the loss: logistic with lazy R1.
"""

from __future__ import annotations

from typing import Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from medray.config import Frozen
from medray.train import schedule
from medray.train.schedule import Growth, Stretch

R1_REFERENCE_PX = 64
# Images whose spread D sees together: `medray.models.layers.STDDEV_GROUP`.
STDDEV_GROUP = 4
PAPER_LR_BY_PX = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}
AUGMENTATIONS = ("tone", "translation", "cutout")
# Left out of a stored configuration where they are off: a run from before them can be resumed.
OPTIONS = frozenset(
    "conditional classes class_counts class_weight class_on_fakes fake_labels diffaugment "
    "images_at_once".split()
)


class PgganConfig(Frozen):
    """What decides a progressive GAN's weights, but for the images."""

    seed: int = Field(0, ge=0, lt=2**63, description="every random number is a function of it")
    final_px: int = Field(64, description="resolution at the end of growth, 4 to 1024")
    start_px: int = Field(4, description="resolution at the start")
    total_images: int = Field(12_000_000, ge=1, description="images to train on")
    fade_images: int | None = Field(
        None, ge=0, description="images over which a resolution fades in (none: an equal share)"
    )
    stable_images: int | None = Field(
        None, ge=0, description="images after a fade, before the next (none: an equal share)"
    )
    channels: int = Field(1, description="image channels, 1 or 3")
    latent_dims: int = Field(512, ge=1, description="length of a latent vector")
    fmap_base: int = Field(8192, ge=4, description="width: min(fmap_base / 2^s, fmap_max)")
    fmap_max: int = Field(512, ge=1, description="greatest width")
    loss: Literal["r1", "wgan-gp"] = Field("r1", description="logistic with lazy R1, or WGAN-GP")
    r1_gamma: float = Field(
        1.0, ge=0, description="R1 weight at 64 px; grows as the square of the resolution"
    )
    r1_every: int = Field(16, ge=1, description="one step of so many carries the R1 term")
    gp_weight: float = Field(10.0, ge=0, description="gradient penalty of WGAN-GP")
    drift: float = Field(0.001, ge=0, description="weight of the squared real score in WGAN-GP")
    batch: int = Field(32, ge=1, description="images a step, all workers together")
    batch_by_px: dict[int, int] = Field({}, description="batch from a resolution on")
    images_at_once: int | None = Field(
        None,
        ge=1,
        description="most images of a worker that the networks take at once; the rest of its part "
        "of a batch follows before the step (none: all of it)",
    )
    lr: float = Field(0.001, gt=0, description="learning rate of Adam, both networks")
    lr_by_px: dict[int, float] = Field(
        PAPER_LR_BY_PX, description="learning rate from a resolution on"
    )
    ema_half_life_images: float = Field(
        10_000, gt=0, description="half-life of the averaged generator"
    )
    ema_rampup: float = Field(
        0.05, gt=0, description="the half-life is at most this share of the images seen"
    )
    mirror: bool = Field(False, description="flip half of the real images left to right")
    conditional: bool = Field(
        False, description="one generator for all classes: label beside the latent, class term in D"
    )
    classes: tuple[str, ...] = Field((), description="the set's classes (none: read from the set)")
    class_counts: tuple[int, ...] = Field(
        (), description="labelled images of each class (none: counted in the set)"
    )
    class_weight: float = Field(1.0, ge=0, description="weight of the class term in both losses")
    class_on_fakes: bool = Field(
        True, description="D's class term on made images too, as published; off: on real ones alone"
    )
    fake_labels: Literal["natural", "balanced"] = Field(
        "natural", description="classes of the images made in training: as in the set, or equally"
    )
    diffaugment: tuple[Literal["tone", "translation", "cutout"], ...] = Field(
        (),
        description="differentiable augmentation of all that D sees, for few images",
        json_schema_extra={"metavar": "translation,cutout,tone"},
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="type of activations; auto measures which is faster, once"
    )
    engine: Literal["torch", "deepspeed"] = Field("torch", description="optimiser engine")
    zero_stage: int = Field(0, ge=0, le=3, description="DeepSpeed ZeRO; at 3, D stays at 2")

    @field_validator("final_px", "start_px")
    @classmethod
    def _is_resolution(cls, px: int) -> int:
        if not 4 <= px <= 1024 or px & (px - 1):
            raise ValueError("must be a power of two from 4 to 1024")
        return px

    @field_validator("channels")
    @classmethod
    def _one_or_three(cls, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError("must be 1 or 3")
        return channels

    @field_validator("batch_by_px", "lr_by_px")
    @classmethod
    def _positive(cls, by_px: dict[int, float]) -> dict[int, float]:
        for px, value in by_px.items():
            cls._is_resolution(px)
            if value <= 0:
                raise ValueError(f"must be above 0 at every resolution, got {value} at {px} px")
        return by_px

    @field_validator("diffaugment", mode="before")
    @classmethod
    def _in_one_order(cls, given: Any) -> Any:
        """Words separated by commas or not, each once, in the order in which they are applied."""
        if not isinstance(given, str | list | tuple):
            return given
        words = [w for part in ([given] if isinstance(given, str) else given) for w in _words(part)]
        if len(set(words)) < len(words):
            raise ValueError(f"names one twice: {', '.join(words)}")
        known = [name for name in AUGMENTATIONS if name in words]
        return tuple(known + [word for word in words if word not in known])

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        if self.classes and not self.conditional:
            raise ValueError("classes are for a conditional generator: give --conditional")
        if len(self.class_counts) not in (0, len(self.classes)):
            raise ValueError(
                f"{len(self.class_counts)} class counts for {len(self.classes)} classes"
            )
        if len(set(self.classes)) < len(self.classes) or min(self.class_counts, default=0) < 0:
            raise ValueError(f"classes once each, counts from 0, got {self.classes}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        off = {name for name in OPTIONS if getattr(self, name) == fields[name].default}
        return {name: value for name, value in values.items() if name not in off}

    @model_validator(mode="after")
    def _grows_upwards(self) -> Self:
        if self.start_px > self.final_px:
            raise ValueError(f"start px {self.start_px} is above final px {self.final_px}")
        if self.zero_stage and self.engine != "deepspeed":
            raise ValueError(f"zero stage {self.zero_stage} needs the engine deepspeed")
        if self.zero_stage == 3 and self.images_at_once:
            raise ValueError("images at once go with zero stages 0 to 2, got 3")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that there are images of, in the set's order: those the networks know."""
        pairs = zip(self.classes, self.class_counts, strict=True)
        return tuple(name for name, count in pairs if count)

    def network_arguments(self) -> dict[str, int]:
        """What decides the shape of both networks."""
        names = ("final_px", "channels", "latent_dims", "fmap_base", "fmap_max")
        arguments: dict[str, int] = {name: getattr(self, name) for name in names}
        return arguments | ({"classes": len(self.class_names)} if self.conditional else {})

    def growth_at(self, images: int) -> Growth:
        """Resolution, fade and level after `images` images."""
        return schedule.growth_at(images, **self._growth())

    def plan(self) -> tuple[Stretch, ...]:
        """The stretches of the schedule, in order."""
        return schedule.plan(**self._growth())

    def _growth(self) -> dict[str, int]:
        share = schedule.equal_share(self.total_images, self.final_px, self.start_px)
        return {
            "final_px": self.final_px,
            "start_px": self.start_px,
            "fade_images": share if self.fade_images is None else self.fade_images,
            "stable_images": share if self.stable_images is None else self.stable_images,
        }

    def batch_at(self, px: int) -> int:
        """Images a step at `px`, all workers together."""
        return _from(self.batch_by_px, px, self.batch)

    def piece_of(self, part_images: int, px: int) -> int:
        """Images that the networks take at once, of a worker's `part_images` of a batch at `px`."""
        return min(self.images_at_once or part_images, part_images)

    def lr_at(self, px: int) -> float:
        """Learning rate at `px`."""
        return _from(self.lr_by_px, px, self.lr)

    def r1_gamma_at(self, px: int) -> float:
        """R1 weight at `px`.

        The same function of an image of twice the resolution has a quarter of the squared
        gradient norm (four times the pixels, a quarter of the slope each): the weight goes
        with px^2.
        """
        return self.r1_gamma * (px / R1_REFERENCE_PX) ** 2


def _words(part: Any) -> list[Any]:
    return (
        [word.strip() for word in part.split(",") if word.strip()]
        if isinstance(part, str)
        else [part]
    )


Number = TypeVar("Number", int, float)


def _from(by_px: dict[int, Number], px: int, otherwise: Number) -> Number:
    """The value of the greatest resolution up to `px`, or `otherwise`."""
    return max(((at, value) for at, value in by_px.items() if at <= px), default=(0, otherwise))[1]
