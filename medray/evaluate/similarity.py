"""How alike two images are: best pixel correlation and best embedding cosine, flips and shifts.

Both are looked for over mirroring and shifts of up to a 32nd of the width in each direction. The
pixel part compares pictures of 32 px and moves the image that is judged, by half pixels (whole ones
where an image has no more than 32); the embedding part has the training images moved beforehand,
which is the same set of pairs at one pass of the network.

Shape letters: N images, B of one block, M training images, H and W pixels, F and P the side of the
grid of shifts and of the pixel part, V variants (mirrorings times shifts), D values of a window,
E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medray.errors import DataError
from medray.models.extract import BATCH, Extractor

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

PIXEL_PX = 32
SHIFTS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))
FLIPS = (False, True)
VARIANTS = len(SHIFTS) * len(FLIPS)
# Below this deviation, in grey levels, an image is blank: it is like no other, whatever its noise.
BLANK_LEVELS = 0.5
# Similarities are compared at this many decimals: what rounding does lies far below.
DECIMALS = 5
# Training images of one product; the product's work array stays at some tens of megabytes.
_TRAINING_AT_ONCE = 4096


def grey_NHW(images: Pixels) -> Tensor:
    """float32 (N, H, W), in grey levels, of uint8 (N, H, W) or (N, H, W, 3)."""
    as_float = torch.from_numpy(images.astype(np.float32))
    return as_float if as_float.ndim == 3 else as_float.mean(3)


def fine_of(size_px: int) -> int:
    """Steps of a shift in one pixel of the pixel part: 2, or 1 where images have no more pixels."""
    return 2 if size_px > PIXEL_PX else 1


def fine_NFF(images: Pixels) -> Tensor:
    """Grey images on the grid in which they are shifted: 64 px, or as they are up to 32 px."""
    grey_N1HW = grey_NHW(images)[:, None]
    side = fine_of(images.shape[1]) * min(PIXEL_PX, images.shape[1])
    if images.shape[1] > side:
        grey_N1HW = functional.adaptive_avg_pool2d(grey_N1HW, (side, side))
    elif images.shape[1] < side:
        grey_N1HW = functional.interpolate(grey_N1HW, (side, side), mode="bilinear")
    return grey_N1HW[:, 0]


def window_ND(fine_NFF: Tensor, fine: int, down: int = 0, right: int = 0) -> Tensor:
    """Everything but a border of one pixel of the pixel part, moved by fine steps.

    As unit vectors without their mean; a blank window is all zeros.
    """
    inner = fine_NFF.shape[1] - 2 * fine
    top, left = fine + down, fine + right
    cut_NFF = fine_NFF[:, top : top + inner, left : left + inner]
    small_NPP = functional.avg_pool2d(cut_NFF[:, None], fine) if fine > 1 else cut_NFF
    values_ND = small_NPP.reshape(len(fine_NFF), -1)
    centred_ND = values_ND - values_ND.mean(1, keepdim=True)
    norms_N1 = centred_ND.norm(dim=1, keepdim=True)
    blank_N1 = norms_N1 < BLANK_LEVELS * values_ND.shape[1] ** 0.5
    return torch.where(blank_N1, torch.zeros(()), centred_ND / norms_N1.clamp_min(1e-12))


def windows_NVD(images: Pixels) -> Tensor:
    """The windows of every mirroring and shift of each image."""
    fine, grid_NFF = fine_of(images.shape[1]), fine_NFF(images)
    steps = range(-fine, fine + 1)
    variants = [
        window_ND(grid_NFF.flip(2) if mirrored else grid_NFF, fine, down, right)
        for mirrored in FLIPS
        for down in steps
        for right in steps
    ]
    return torch.stack(variants, 1)


def moved(images: Pixels, mirrored: bool, down: int, right: int) -> Pixels:
    """Images mirrored and shifted by whole steps of a 32nd of the width, borders repeated."""
    turned = images[:, :, ::-1] if mirrored else images
    step = max(1, round(images.shape[1] / PIXEL_PX))
    rows = np.clip(np.arange(images.shape[1]) - down * step, 0, images.shape[1] - 1)
    columns = np.clip(np.arange(images.shape[2]) - right * step, 0, images.shape[2] - 1)
    return np.ascontiguousarray(turned[:, rows][:, :, columns])


def channels_first(images: Pixels) -> Pixels:
    """(N, H, W) or (N, H, W, 3) as (N, C, H, W)."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class Training:
    """What is kept of the training images: windows (M, D), embeddings (M * V, E), their scale."""

    windows_MD: Tensor
    embeddings_ME: Tensor
    mean_E: Tensor
    deviation_E: Tensor

    def __len__(self) -> int:
        return len(self.windows_MD)

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are written; half precision holds a cosine to 1e-5."""
        return {
            "windows": self.windows_MD.half(),
            "embeddings": self.embeddings_ME.half(),
            "mean": self.mean_E,
            "deviation": self.deviation_E,
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Training:
        """What `tensors()` gave."""
        halves = (tensors["windows"].float(), tensors["embeddings"].float())
        return cls(*halves, tensors["mean"], tensors["deviation"])


Scale = tuple[Tensor, Tensor]


def training_of(
    batches: Iterable[Pixels], extractor: Extractor, scale: Scale | None = None
) -> Training:
    """The training side, one batch in memory at a time; DataError where there is no image.

    `scale` (mean and deviation of the features) comes from these images where it is not given.
    """
    windows, plain, variants = [], [], []
    for images in batches:
        windows.append(window_ND(fine_NFF(images), fine_of(images.shape[1])).half())
        found_NVE = np.stack(
            [
                extractor.features(channels_first(moved(images, mirrored, down, right)))
                for mirrored in FLIPS
                for down, right in SHIFTS
            ],
            axis=1,
        )
        plain.append(found_NVE[:, SHIFTS.index((0, 0))])
        variants.append(found_NVE)
    if not windows:
        raise DataError("no training images to compare with", code="MR-D305")
    mean_E, deviation_E = scale or _scale(np.concatenate(plain).astype(np.float64))
    found_ME = torch.from_numpy(np.concatenate(variants).reshape(-1, len(mean_E)))
    embeddings_ME = unit(found_ME, mean_E, deviation_E).half()
    # What is compared with is what is written: rounded to halves, here as after loading.
    return Training(torch.cat(windows).float(), embeddings_ME.float(), mean_E, deviation_E)


def _scale(plain_ME: npt.NDArray[np.float64]) -> Scale:
    mean_E, spread_E = plain_ME.mean(0), plain_ME.std(0)
    # A feature that never changes says nothing: it must not be blown up to say it loudly.
    spread_E = np.where(spread_E > 1e-6 * np.abs(plain_ME).max(0), spread_E, np.inf)
    return torch.from_numpy(mean_E).float(), torch.from_numpy(spread_E).float()


def unit(features_NE: Tensor, mean_E: Tensor, deviation_E: Tensor) -> Tensor:
    """Features less the training mean over its deviation, at length 1."""
    return functional.normalize((features_NE - mean_E) / deviation_E, dim=1)


def similarities(
    images: Pixels, training: Training, extractor: Extractor
) -> Iterator[tuple[Floats, Floats]]:
    """Of each image in turn: best correlation and best cosine with every training image, (M,).

    Every product has one shape whatever the number of images, so an image's row is a function of
    the image alone.
    """
    for first in range(0, len(images), BATCH):
        some = images[first : first + BATCH]
        padded = np.zeros((BATCH, *some.shape[1:]), np.uint8)
        padded[: len(some)] = some
        cosine_BM = _cosines(padded, training, extractor)
        windows_BVD = windows_NVD(padded)
        for number in range(len(some)):
            pixel_M = (windows_BVD[number] @ training.windows_MD.T).amax(0)
            yield _rounded(pixel_M), _rounded(cosine_BM[number])


def _cosines(padded: Pixels, training: Training, extractor: Extractor) -> Tensor:
    features_NE = torch.from_numpy(extractor.features(channels_first(padded)))
    if features_NE.shape[1] != len(training.mean_E):
        raise DataError(
            f"the gate holds {len(training.mean_E)} features an image, the extractor gives "
            f"{features_NE.shape[1]}",
            code="MR-D306",
        )
    units_NE = unit(features_NE, training.mean_E, training.deviation_E)
    step = _TRAINING_AT_ONCE * VARIANTS
    parts = []
    for first in range(0, len(training.embeddings_ME), step):
        some_ME = training.embeddings_ME[first : first + step]
        parts.append((units_NE @ some_ME.T).reshape(len(units_NE), -1, VARIANTS).amax(2))
    return torch.cat(parts, 1)


def _rounded(row_M: Tensor) -> Floats:
    return np.round(row_M.numpy(), DECIMALS)
