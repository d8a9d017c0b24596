"""Growth of the progressive GAN as pure functions of the images seen so far.

At level 0 the networks train at `start_px`. Each level after doubles the resolution: its new
layers fade in over `fade_images`, then everything trains on for `stable_images` (Karras et al.,
ICLR 2018, appendix A). No torch here: the command line and a dry run read it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Growth:
    """Where growth stands: resolution, weight of its newest layers in (0, 1], level from 0."""

    px: int
    alpha: float
    level: int


@dataclass(frozen=True)
class Stretch:
    """A stretch of the schedule: images `first` to `end` (exclusive; None: until the run ends)."""

    px: int
    kind: Literal["fade", "stable"]
    first: int
    end: int | None


def levels(final_px: int, start_px: int) -> int:
    """Number of levels from `start_px` to `final_px`, both powers of two."""
    return final_px.bit_length() - start_px.bit_length() + 1


def equal_share(total_images: int, final_px: int, start_px: int) -> int:
    """Images of each of the 2L - 1 phases of L levels when they share `total_images` equally."""
    return -(-total_images // (2 * levels(final_px, start_px) - 1))


def images_to_level(level: int, *, fade_images: int, stable_images: int) -> int:
    """Images seen when `level` begins to fade in."""
    return 0 if level == 0 else stable_images + (level - 1) * (fade_images + stable_images)


def growth_at(
    images: int, *, final_px: int, fade_images: int, stable_images: int, start_px: int = 4
) -> Growth:
    """Growth after `images` images; at the last level it stays."""
    last = levels(final_px, start_px) - 1
    period = fade_images + stable_images
    reached = last if period == 0 else max(0, (images + fade_images) // period)
    level = min(last, reached)
    into = images - images_to_level(level, fade_images=fade_images, stable_images=stable_images)
    fading = level > 0 and into < fade_images
    # The first step of a fade sees one image's worth of the new layers: at 0 they get no gradient.
    alpha = max(into, 1) / fade_images if fading else 1.0
    return Growth(start_px << level, alpha, level)


def plan(
    *, final_px: int, fade_images: int, stable_images: int, start_px: int = 4
) -> tuple[Stretch, ...]:
    """The whole schedule as stretches, in order; the last one has no end."""
    stretches: list[Stretch] = []
    for level in range(levels(final_px, start_px)):
        px = start_px << level
        first = images_to_level(level, fade_images=fade_images, stable_images=stable_images)
        if level:
            stretches.append(Stretch(px, "fade", first, first + fade_images))
            first += fade_images
        stretches.append(Stretch(px, "stable", first, first + stable_images))
    stretches[-1] = Stretch(stretches[-1].px, "stable", stretches[-1].first, None)
    return tuple(s for s in stretches if s.end is None or s.end > s.first)


def is_due(images: int, batch: int, every: int) -> bool:
    """Whether a lazy term is due in the step from `images` to `images + batch`.

    True in one step of `every`: where a multiple of `every * batch` lies among the step's images.
    A function of images alone, so that a resumed run keeps the rhythm.
    """
    return -images % (every * batch) < batch
