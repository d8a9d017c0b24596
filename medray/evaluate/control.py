"""The gate's positive control: copies of training images that are planted and must be caught.

Shape letters: N images, H and W pixels.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.evaluate.similarity import PIXEL_PX

Pixels = npt.NDArray[np.uint8]

KINDS = ("mirrored", "shifted", "noisy", "contrast", "all")
# Of 256 grey levels: seen at a glance, and no reason to call it another patient.
NOISE_LEVELS = 5.0
GAINS = (0.8, 1.2)
OFFSETS_LEVELS = (-10.0, 10.0)


class Sample:
    """A random sample of the images that pass by, the same whatever the batches are."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._kept: list[tuple[int, int, Pixels]] = []
        self._seen = 0
        self.shape: tuple[int, ...] = ()

    def watching(self, batches: Iterable[Pixels]) -> Iterator[Pixels]:
        """Hands the batches on."""
        for images in batches:
            for image in images:
                priority = -int(rng.bits(self._seed, "evaluate.planted", self._seen, 1)[0])
                if len(self._kept) < self._count:
                    heapq.heappush(self._kept, (priority, -self._seen, image.copy()))
                elif priority > self._kept[0][0]:
                    heapq.heapreplace(self._kept, (priority, -self._seen, image.copy()))
                self._seen += 1
            self.shape = images.shape[1:]
            yield images

    def images(self) -> Pixels:
        """The sample, in the order in which it passed."""
        return np.stack([image for _, _, image in sorted(self._kept, key=lambda it: -it[1])])


def near_copies(images: Pixels, kind: str, seed: int) -> Pixels:
    """One near-copy of each image: mirrored, shifted, noisy, of other contrast, or all of it.

    Shifts reach a 32nd of the width in each direction, noise has a deviation of 5 grey levels,
    gains are 0.8 to 1.2 and offsets 10 grey levels; "all" mirrors half of the images.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    made = [_near_copy(image, kind, seed, number) for number, image in enumerate(images)]
    return np.stack(made)


def _near_copy(image: Pixels, kind: str, seed: int, number: int) -> Pixels:
    drawn = rng.uniforms(seed, f"evaluate.near_copy.{kind}", number, 4)
    levels = image.astype(np.float32)
    if kind == "mirrored" or (kind == "all" and drawn[0] < 0.5):
        levels = levels[:, ::-1]
    if kind in ("shifted", "all"):
        levels = _shifted(levels, seed, number)
    if kind in ("contrast", "all"):
        gain = GAINS[0] + (GAINS[1] - GAINS[0]) * drawn[1]
        offset = OFFSETS_LEVELS[0] + (OFFSETS_LEVELS[1] - OFFSETS_LEVELS[0]) * drawn[2]
        levels = (levels - 128) * gain + 128 + offset
    if kind in ("noisy", "all"):
        noise = rng.normals(seed, "evaluate.near_copy.noise", number, levels.size)
        levels = levels + NOISE_LEVELS * noise.reshape(levels.shape)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _shifted(levels: npt.NDArray[np.float32], seed: int, number: int) -> npt.NDArray[np.float32]:
    """Moved by -step to step pixels in each direction, not by nothing; borders repeated."""
    step = max(1, round(levels.shape[0] / PIXEL_PX))
    side = 2 * step + 1
    place = int(rng.integers(seed, "evaluate.near_copy.shift", number, 1, 0, side * side - 1)[0])
    # The middle of the square is no shift: the last place stands in for it.
    place = side * side - 1 if place == side * side // 2 else place
    down, right = place // side - step, place % side - step
    rows = np.clip(np.arange(levels.shape[0]) - down, 0, levels.shape[0] - 1)
    columns = np.clip(np.arange(levels.shape[1]) - right, 0, levels.shape[1] - 1)
    moved: npt.NDArray[np.float32] = levels[rows][:, columns]
    return moved
