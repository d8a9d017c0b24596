"""A mask of one image moved into the head of another.

Shape letters: H and W pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
# Of Otsu's threshold between grey and black: the head's edges are darker than its middle.
DARK = 0.5


def head_of(grey_HW: Array) -> Mask:
    """Where the head is: brighter than black, holes filled; empty in a blank slice."""
    eight = (np.clip(grey_HW, 0, 1) * 255).astype(np.uint8)
    level, _ = cv2.threshold(eight, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    bright = (eight > max(DARK * level, 5)).astype(np.uint8)
    outer, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(bright)
    cv2.drawContours(filled, outer, -1, 1, cv2.FILLED)
    return filled.astype(np.bool_)


def shifted_inside(
    mask_HW: Mask, arrays: tuple[Array, ...], grey_of_HW: Array, grey_into_HW: Array
) -> tuple[Array, ...]:
    """`arrays` moved the least that gets `mask_HW` as far into the new head as it was in its own.

    Or as far as it can be with all of it in the image.
    """
    down, right = least_shift(mask_HW, head_of(grey_of_HW), head_of(grey_into_HW))
    return tuple(moved(array, down, right) for array in arrays)


def least_shift(mask_HW: Mask, head_HW: Mask, into_HW: Mask) -> tuple[int, int]:
    """Rows down and columns right; none where mask or head is empty."""
    if not mask_HW.any() or not into_HW.any():
        return 0, 0
    height, width = mask_HW.shape
    size = (2 * height, 2 * width)
    # How much of the mask is inside at every shift at once: a correlation.
    product = np.fft.rfft2(into_HW, size) * np.conj(np.fft.rfft2(mask_HW, size))
    inside = np.rint(np.fft.irfft2(product, size)).astype(np.int64)
    down = np.fft.fftfreq(size[0], 1 / size[0])[:, None]
    right = np.fft.fftfreq(size[1], 1 / size[1])[None]
    # None of the mask may leave the image: its area must tell nothing.
    rows, columns = (np.flatnonzero(mask_HW.any(axis)) for axis in (1, 0))
    stays = (down >= -rows[0]) & (down < height - rows[-1])
    stays = stays & (right >= -columns[0]) & (right < width - columns[-1])
    enough = min(int((mask_HW & head_HW).sum()), int(inside[stays].max()))
    far = np.where(stays & (inside >= enough), down**2 + right**2, np.inf)
    at = np.unravel_index(int(far.argmin()), far.shape)
    return int(down[at[0], 0]), int(right[0, at[1]])


def moved(array_HW: Array, down: int, right: int) -> Array:
    """Shifted; of a mask nothing comes in, of heat what it is at its edge."""
    height, width = array_HW.shape
    rows = np.arange(height) - down
    columns = np.arange(width) - right
    out: Array = array_HW[np.ix_(np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))]
    if array_HW.dtype == np.bool_:
        inside = (rows >= 0) & (rows < height)
        out = out & inside[:, None] & ((columns >= 0) & (columns < width))
    return out
