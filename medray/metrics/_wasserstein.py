"""Sliced Wasserstein distance of two sets of images, per level of a Laplacian pyramid.

Shape letters: N images, C channels, H and W pixels, M patches, D values of a patch, K directions.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medray import rng
from medray.metrics._checks import Floats, Images, check_pair, grey_parts

# Karras et al. 2018: 128 patches of 7 x 7 an image and level, 512 directions, figures times 1000.
PATCH_PX = 7
PATCHES_PER_IMAGE = 128
REPEATS, DIRECTIONS_PER_REPEAT = 4, 128
COARSEST_PX = 16
SCALE = 1000.0

# A divisor of the directions; a million patches make 64 MB of projections.
_DIRECTIONS_AT_ONCE = 16
# Patches normalised at once: 25 MB in float64.
_PATCHES_AT_ONCE = 2**16
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def sliced_wasserstein(real: Images, fake: Images, seed: int = 0) -> dict[int, float]:
    """Distance per level {px: figure}, finest first, 0 for equal sets, smaller is better.

    The figures of Karras et al. ("Progressive Growing of GANs", ICLR 2018): at each level of a
    Laplacian pyramid from the images' size to 16 px, patches of both sets, normalised by their
    set's mean and deviation, are projected on random directions, where optimal transport is
    sorting; the mean distance times 1000. Patch places and directions are functions of the seed and
    the same for both sets. A figure depends on the number of images: compare at one number only.

    Beyond the two sets it takes 25 kB an image and level, whatever the images' size.

    ValueError unless both sets have the same shape (N, px, px), or (N, C, px, px) for the mean of
    the channels, with px = 16, 32, 64 ... and finite values.
    """
    check_pair(real, fake)
    levels_px = _levels_px(real.shape[-1])
    reals, fakes = (descriptors(images, levels_px, seed) for images in (real, fake))
    scores = {}
    for level_px in levels_px:
        first_MD, second_MD = (normalised(found.pop(level_px)) for found in (reals, fakes))
        scores[level_px] = SCALE * sliced_distance(first_MD, second_MD, seed)
    return scores


def descriptors(images: Images, levels_px: list[int], seed: int) -> dict[int, Floats]:
    """Patches (N * 128, 49) of each level of the Laplacian pyramid, at random places."""
    chunks: dict[int, list[Floats]] = {level_px: [] for level_px in levels_px}
    for first, part_NHW in grey_parts(images, np.float32):
        numbers_N = np.arange(first, first + len(part_NHW))
        for level_NHW in laplacian_pyramid(part_NHW, len(levels_px)):
            chunks[level_NHW.shape[1]].append(_patches(level_NHW, numbers_N, seed))
    return {level_px: np.concatenate(parts) for level_px, parts in chunks.items()}


def laplacian_pyramid(images_NHW: Floats, levels: int) -> list[Floats]:
    """`levels` images, each half the size of the one before: differences, then the last residue."""
    pyramid = [images_NHW]
    for _ in range(levels - 1):
        smaller_NHW = halved(pyramid[-1])
        pyramid[-1] = pyramid[-1] - doubled(smaller_NHW)
        pyramid.append(smaller_NHW)
    return pyramid


def halved(images_NHW: Floats) -> Floats:
    """Binomial 5 x 5 filter, mirrored at the border, and every second pixel."""
    return np.ascontiguousarray(_filtered(images_NHW, 1.0)[:, ::2, ::2])


def doubled(images_NHW: Floats) -> Floats:
    """Zeros between the pixels, then the same filter times 4."""
    count, height_px, width_px = images_NHW.shape
    spread_NHW = np.zeros((count, 2 * height_px, 2 * width_px), np.float32)
    spread_NHW[:, ::2, ::2] = images_NHW
    return _filtered(spread_NHW, 2.0)


def _filtered(images_NHW: Floats, gain_per_axis: float) -> Floats:
    kernel = _BINOMIAL * gain_per_axis
    rows_NHW = ndimage.correlate1d(images_NHW, kernel, axis=1, mode="mirror")
    return np.asarray(ndimage.correlate1d(rows_NHW, kernel, axis=2, mode="mirror"))


def _patches(level_NHW: Floats, numbers_N: NDArray[np.int64], seed: int) -> Floats:
    """128 patches an image, whole ones only, placed by the image's number and the level's size."""
    level_px = level_NHW.shape[1]
    stream = f"metrics.sliced_wasserstein.places.{level_px}"
    last = level_px - PATCH_PX + 1
    corner_NP = rng.integers(seed, stream, numbers_N, 2 * PATCHES_PER_IMAGE, 0, last)
    windows = np.lib.stride_tricks.sliding_window_view(level_NHW, (PATCH_PX, PATCH_PX), (1, 2))
    image_N1 = np.arange(len(level_NHW))[:, None]
    chosen = windows[image_N1, corner_NP[:, 0::2], corner_NP[:, 1::2]]
    return np.asarray(chosen.reshape(-1, PATCH_PX * PATCH_PX))


def normalised(patches_MD: Floats) -> Floats:
    """Patches less their common mean, over their common deviation (kept at 0 if all are equal)."""
    mean, deviation = patches_MD.mean(dtype=np.float64), patches_MD.std(dtype=np.float64)
    scaled_MD = np.empty(patches_MD.shape, np.float32)
    for first in range(0, len(patches_MD), _PATCHES_AT_ONCE):
        rows = slice(first, first + _PATCHES_AT_ONCE)
        scaled_MD[rows] = (patches_MD[rows] - mean) / (deviation if deviation > 0 else 1.0)
    return scaled_MD


def sliced_distance(first_MD: Floats, second_MD: Floats, seed: int = 0) -> float:
    """Mean Wasserstein-1 distance of two sets of M rows over 512 random directions."""
    means = [
        _distance_along(first_MD, second_MD, _directions(seed, repeat, first_MD.shape[1]))
        for repeat in range(REPEATS)
    ]
    return float(np.mean(means))


def _directions(seed: int, repeat: int, dims: int) -> Floats:
    """Unit vectors (D, K), evenly spread over the sphere."""
    stream = "metrics.sliced_wasserstein.directions"
    drawn = rng.normals(seed, stream, repeat, dims * DIRECTIONS_PER_REPEAT).astype(np.float64)
    directions_DK = drawn.reshape(dims, DIRECTIONS_PER_REPEAT)
    unit_DK: Floats = (directions_DK / np.linalg.norm(directions_DK, axis=0)).astype(np.float32)
    return unit_DK


def _distance_along(first_MD: Floats, second_MD: Floats, directions_DK: Floats) -> float:
    """On a line, optimal transport pairs the sorted projections."""
    totals = []
    for first in range(0, directions_DK.shape[1], _DIRECTIONS_AT_ONCE):
        some_KD = directions_DK[:, first : first + _DIRECTIONS_AT_ONCE].T
        gaps_KM = np.sort(some_KD @ first_MD.T, axis=1)
        gaps_KM -= np.sort(some_KD @ second_MD.T, axis=1)
        totals.append(np.abs(gaps_KM, out=gaps_KM).mean(dtype=np.float64))
    return float(np.mean(totals))


def _levels_px(final_px: int) -> list[int]:
    """Sizes from the images' own down to 16 px; ValueError if halving does not arrive there."""
    levels_px = [final_px]
    while levels_px[-1] > COARSEST_PX and levels_px[-1] % 2 == 0:
        levels_px.append(levels_px[-1] // 2)
    if levels_px[-1] != COARSEST_PX:
        raise ValueError(f"images must be 16, 32, 64 ... px, a power of two, got {final_px} px")
    return levels_px
