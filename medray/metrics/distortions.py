"""Sets made worse by known steps, to see whether a score notices: images in, images out, or rows.

Each is a pure function of what it is given, the seed, and the numbers of the rows, and nested: what
a weak step changes a stronger one changes more, so that a good score rises with the strength. The
set's size never changes. Strength 0 changes nothing.

Shape letters: N images, H and W pixels, C channels, K modes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medray import rng

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
Labels = NDArray[Any]

# Of the image's width (blur) and of 255 grey levels (noise), at strength 1.
BLUR_SHARE, NOISE_SHARE = 0.03, 0.15


def blur(images: Pixels, strength: float) -> Pixels:
    """Gaussian blur of strength x 3% of the width (2 px at 64 px for strength 1)."""
    _check_images(images)
    _check_strength(strength, most=None)
    sigma_px = strength * BLUR_SHARE * images.shape[2]
    blurred = np.empty_like(images)
    for number, image in enumerate(images):
        filtered = ndimage.gaussian_filter(image.astype(float), sigma_px, axes=(0, 1))
        blurred[number] = np.rint(filtered)
    return blurred


def noise(images: Pixels, strength: float, *, seed: int, first: int = 0) -> Pixels:
    """Normal noise of strength x 38 grey levels, cut off at black and white.

    The noise of image i is that of number `first + i`, at every strength the same but for its size.
    """
    _check_images(images)
    _check_strength(strength, most=None)
    noisy = np.empty_like(images)
    for number, image in enumerate(images):
        drawn = rng.normals(seed, "metrics.distortions.noise", first + number, image.size)
        changed = image + strength * NOISE_SHARE * 255 * drawn.reshape(image.shape)
        noisy[number] = np.clip(np.rint(changed), 0, 255)
    return noisy


def drop_modes(modes_N: Labels, strength: float, *, seed: int) -> Rows:
    """Row numbers (N,) of a set that lost modes, rarest first; the commonest stays at strength 1.

    A mode is a class, a cluster, a patient. At strength s the first s (K - 1) modes are gone, the
    last of them in part; each row that went is replaced by one that stayed. ValueError with fewer
    than two modes.
    """
    _check_strength(strength, most=1.0)
    rank_N = _rarity(modes_N)
    modes = int(rank_N.max()) + 1
    rows_N = np.arange(len(rank_N))
    part_N, pick_N = rng.uniforms(seed, "metrics.distortions.drop", rows_N, 2).T
    gone_N = rank_N + part_N < strength * (modes - 1)
    kept = np.flatnonzero(~gone_N)
    return np.where(gone_N, kept[(pick_N * len(kept)).astype(np.int64)], rows_N)


def mix_labels(labels_N: Labels, strength: float, *, seed: int) -> Rows:
    """Row numbers (N,) of a set whose label mix moved towards the rarest label: all at strength 1.

    At strength s a row is replaced by one of the rarest label with probability s. ValueError with
    fewer than two labels.
    """
    _check_strength(strength, most=1.0)
    rarest = np.flatnonzero(_rarity(labels_N) == 0)
    rows_N = np.arange(len(labels_N))
    part_N, pick_N = rng.uniforms(seed, "metrics.distortions.mix", rows_N, 2).T
    return np.where(part_N < strength, rarest[(pick_N * len(rarest)).astype(np.int64)], rows_N)


def _rarity(labels_N: Labels) -> Rows:
    """Each row's label's place, from the rarest, 0 (equally rare ones in order of name)."""
    if np.ndim(labels_N) != 1:
        raise ValueError(f"labels must have shape (N,), got {np.shape(labels_N)}")
    names, label_N, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"this needs two different labels at least, got {list(names)}")
    place = np.empty(len(names), np.int64)
    place[np.argsort(counts, kind="stable")] = np.arange(len(names))
    return np.asarray(place[label_N])


def _check_images(images: Pixels) -> None:
    if images.ndim not in (3, 4) or images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 (N, H, W) or (N, H, W, C), "
            f"got {images.dtype} of shape {images.shape}"
        )


def _check_strength(strength: float, most: float | None) -> None:
    if not 0 <= strength <= (np.inf if most is None else most):
        raise ValueError(f"a strength must be 0 to {most or 'infinity'}, got {strength}")
