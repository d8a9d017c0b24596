"""MS-SSIM of pairs of grey images: 1 is the same image, about 0 nothing in common.

Shape letters: N pairs, H and W pixels, S scales.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Images = NDArray[np.generic]
Floats = NDArray[np.float64]

# Wang, Simoncelli and Bovik, "Multi-scale structural similarity", Asilomar 2003.
WEIGHTS_S = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW_PX, SIGMA_PX = 11, 1.5
K1, K2 = 0.01, 0.03

_PIXELS_AT_ONCE = 2**21


def ms_ssim(first_NHW: Images, second_NHW: Images, peak: float = 255.0) -> Floats:
    """MS-SSIM of each pair, (N,); `peak` is the range of grey values.

    Five scales, each half the one before, where the smaller side has 176 px or more; else as many
    as keep 11 px, with the first weights made to add up to 1 (64 px: three, 16 px: one), so compare
    at one size only. A contrast term below 0 counts as 0. ValueError unless both are finite, of one
    shape (N, H, W), with at least 11 px a side.
    """
    _check(first_NHW, second_NHW, peak)
    count, height_px, width_px = first_NHW.shape
    scales = len(_sizes(min(height_px, width_px)))
    weights_S = np.array(WEIGHTS_S[:scales]) / sum(WEIGHTS_S[:scales])
    at_once = max(1, _PIXELS_AT_ONCE // (height_px * width_px))
    parts = [
        _scores(
            first_NHW[start : start + at_once].astype(np.float64),
            second_NHW[start : start + at_once].astype(np.float64),
            weights_S,
            peak,
        )
        for start in range(0, count, at_once)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _sizes(side_px: int) -> list[int]:
    """The sides of the scales, at most five, none below the window."""
    sizes = [side_px]
    while len(sizes) < len(WEIGHTS_S) and sizes[-1] // 2 >= WINDOW_PX:
        sizes.append(sizes[-1] // 2)
    return sizes


def _scores(first_NHW: Floats, second_NHW: Floats, weights_S: Floats, peak: float) -> Floats:
    scores_N = np.ones(len(first_NHW))
    for scale, weight in enumerate(weights_S):
        if scale:
            first_NHW, second_NHW = _halved(first_NHW), _halved(second_NHW)
        light_N, contrast_N = _terms(first_NHW, second_NHW, peak)
        last = scale == len(weights_S) - 1
        scores_N *= np.maximum(light_N if last else contrast_N, 0) ** weight
    return scores_N


def _terms(first_NHW: Floats, second_NHW: Floats, peak: float) -> tuple[Floats, Floats]:
    """SSIM, and its part of contrast and structure alone, each the mean over places, (N,)."""
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mean1, mean2 = _windowed(first_NHW), _windowed(second_NHW)
    variance1 = _windowed(first_NHW**2) - mean1**2
    variance2 = _windowed(second_NHW**2) - mean2**2
    covariance = _windowed(first_NHW * second_NHW) - mean1 * mean2
    contrast = (2 * covariance + c2) / (variance1 + variance2 + c2)
    light = (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    return (light * contrast).mean(axis=(1, 2)), contrast.mean(axis=(1, 2))


def _windowed(images_NHW: Floats) -> Floats:
    """Gaussian mean over the window, where it fits whole."""
    half = WINDOW_PX // 2
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * SIGMA_PX**2))
    kernel /= kernel.sum()
    rows_NHW = ndimage.correlate1d(images_NHW, kernel, axis=1)[:, half:-half]
    return np.asarray(ndimage.correlate1d(rows_NHW, kernel, axis=2)[:, :, half:-half])


def _halved(images_NHW: Floats) -> Floats:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    even = images_NHW[:, : images_NHW.shape[1] // 2 * 2, : images_NHW.shape[2] // 2 * 2]
    return (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4


def _check(first_NHW: Images, second_NHW: Images, peak: float) -> None:
    shapes = (first_NHW.shape, second_NHW.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or min(shapes[0][1:]) < WINDOW_PX:
        raise ValueError(
            f"pairs must be of one shape (N, H, W), at least {WINDOW_PX} px a side, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    if not peak > 0:
        raise ValueError(f"the range of grey values must be above 0, got {peak}")
    for images in (first_NHW, second_NHW):
        if images.dtype.kind not in "uif" or not np.isfinite(images).all():
            raise ValueError(f"images must be finite real numbers, got {images.dtype}")
