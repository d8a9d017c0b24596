"""Any picture as a classifier's training set would hold it: a square, of its channels.

Aspect kept, black around it, area-averaged on the way down, colour to luminance: as `pack`. Done
once an upload is decoded, so that what goes on to a model is small and of one shape.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from medray.errors import UsageError
from serve.records import Array


def fitted(image: Array, size_px: int, channels: int) -> Array:
    """The image in the middle of a square: (S, S), or (S, S, 3) for three channels; same type.

    A fitted image stays as it is. UsageError for what is no image.
    """
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or not image.size:
        raise UsageError(
            f"images are uint8 or uint16 (H, W) or (H, W, 3), got {image.dtype} {image.shape}"
        )
    if image.ndim == 3 and channels == 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    square = _padded(_scaled(image, size_px), size_px)
    return np.stack([square] * 3, axis=-1) if square.ndim == 2 and channels == 3 else square


# A grey film that was photographed or saved as a JPEG in colour has below 0.015, a red marker on it
# adds 0.02; the sample photographs of matplotlib and scikit-learn have 0.06, 0.11 and 0.16.
COLOURED = 0.03
_COLOUR_PIXELS = 2**16


def colour(image: Array) -> float:
    """How far the channels of (H, W, 3) are from shades of one tint, of 1; 0 for a grey image."""
    if image.ndim == 2:
        return 0.0
    step = max(1, int((image.shape[0] * image.shape[1] / _COLOUR_PIXELS) ** 0.5))
    pixels_N3 = image[::step, ::step].reshape(-1, 3) / np.float64(np.iinfo(image.dtype).max)
    grey_N = pixels_N3.mean(axis=1)
    tint_3 = grey_N @ pixels_N3 / max(float(grey_N @ grey_N), 1e-12)
    return float(1.5 * np.abs(pixels_N3 - grey_N[:, None] * tint_3).mean())


class Box(NamedTuple):
    """Where the picture lies within the square, in pixels of the square."""

    top: int
    left: int
    height: int
    width: int


def box_of(height: int, width: int, size_px: int) -> Box:
    """Where `fitted` puts a picture of this size."""
    scale = size_px / max(height, width)
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    return Box((size_px - high) // 2, (size_px - wide) // 2, high, wide)


def _scaled(image: Array, size_px: int) -> Array:
    height, width = image.shape[:2]
    _, _, new_height, new_width = box_of(height, width, size_px)
    if (new_height, new_width) == (height, width):
        return image
    shrinks = new_height < height or new_width < width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scaled: Array = cv2.resize(image, (new_width, new_height), interpolation=how)
    return scaled


def _padded(image: Array, size_px: int) -> Array:
    height, width = image.shape[:2]
    if (height, width) == (size_px, size_px):
        return image
    square = np.zeros((size_px, size_px, *image.shape[2:]), image.dtype)
    top, left = (size_px - height) // 2, (size_px - width) // 2
    square[top : top + height, left : left + width] = image
    return square
