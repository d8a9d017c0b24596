"""Any picture to a square of N px: aspect kept, black around it, area-averaged on the way down.

Shapes: (H, W) or (H, W, 3), uint8 or uint16; masks (H, W) uint8 with 0 and 255.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.images import to_bits

Array = npt.NDArray[Any]
Box = tuple[float, float, float, float]


def fitted_px(height: int, width: int, size_px: int) -> tuple[int, int]:
    """Height and width of the picture within the square; at least 1 px each."""
    scale = size_px / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def fit(image: Array, size_px: int) -> Array:
    """The image scaled into the middle of a `size_px` square."""
    height, width = image.shape[:2]
    new_height, new_width = fitted_px(height, width, size_px)
    if (new_height, new_width) != (height, width):
        shrinks = new_height < height or new_width < width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = cv2.resize(image, (new_width, new_height), interpolation=how)
    return _padded(image, size_px)


def fit_mask(mask: Array, size_px: int) -> Array:
    """A mask scaled like its image, without new values."""
    new_height, new_width = fitted_px(mask.shape[0], mask.shape[1], size_px)
    near = cv2.resize(mask, (new_width, new_height), interpolation=cv2.INTER_NEAREST_EXACT)
    return _padded(near, size_px)


def _padded(image: Array, size_px: int) -> Array:
    height, width = image.shape[:2]
    if (height, width) == (size_px, size_px):
        return image
    square = np.zeros((size_px, size_px, *image.shape[2:]), image.dtype)
    top, left = (size_px - height) // 2, (size_px - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def as_set(image: Array, size_px: int, channels: int, bits: int) -> Array:
    """The image as the set holds it: channels, size and bits."""
    if image.ndim == 3 and channels == 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if bits == 16:
        image = to_bits(image, 16)  # before scaling, so that averages keep their fractions
    image = to_bits(fit(image, size_px), bits)
    return np.stack([image] * 3, axis=-1) if image.ndim == 2 and channels == 3 else image


def as_mask(mask: Array, image_shape: tuple[int, ...], size_px: int) -> Array:
    """A mask file's pixels as 0 and 255, scaled like the image.

    DataError MR-D209 for a mask of another size than its image, or with more than two values.
    """
    if mask.shape[:2] != image_shape[:2]:
        found, wanted = ("x".join(map(str, shape[:2])) for shape in (mask.shape, image_shape))
        raise DataError(f"its mask is {found}, the image {wanted} px", code="MR-D209")
    if mask.ndim == 3:
        mask = mask.max(axis=2)
    inside = mask[mask != 0]
    if inside.size and (inside != inside[0]).any():
        raise DataError(
            "its mask has more than two values; 0 and one other are wanted", code="MR-D209"
        )
    return fit_mask((mask != 0).astype(np.uint8) * np.uint8(255), size_px)


def box_mask(box_px: Box, image_shape: tuple[int, ...], size_px: int) -> Array:
    """A box (left, top, right, bottom) in px of the image, filled in and scaled like the image.

    DataError MR-D213 for a box that has no pixel of the image.
    """
    height, width = image_shape[:2]
    left, top, right, bottom = (round(edge) for edge in box_px)
    mask = np.zeros((height, width), np.uint8)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 255
    if not mask.any():
        raise DataError(
            f"its box {box_px} has no pixel of the image, {height}x{width} px", code="MR-D213"
        )
    return fit_mask(mask, size_px)


def scaled_spacing_mm(
    spacing_mm: tuple[float, float] | None, image_shape: tuple[int, ...], size_px: int
) -> tuple[float, float] | None:
    """Millimetres between the centres of the new pixels, (rows, columns)."""
    if spacing_mm is None:
        return None
    new = fitted_px(image_shape[0], image_shape[1], size_px)
    rows_mm, columns_mm = (
        mm * old / px for mm, old, px in zip(spacing_mm, image_shape[:2], new, strict=True)
    )
    return rows_mm, columns_mm
