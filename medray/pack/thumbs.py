"""The fine structure of a packed picture at a small size, by which near-duplicates are found.

It is what stays of a thumbnail when its own blur is taken away, in whole numbers and of length
`NORM`: so small that a product of two is exact in float32 in any order of adding, and what is made
of it is the same whatever the machine, the threads and the number of workers.

Shape letters: D numbers of a thumbnail, H and W pixels, T frames.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

# At 24 px of fine structure the films of different children stay below 0.91 of 1 (2 million pairs),
# a film that was compressed, scaled, brightened or made noisier stays above 0.95.
THUMB_PX, BLUR_PX = 24, 5
# NORM squared, and so every sum on the way to it, is below 2**24: exact in float32.
NORM = 4000
# Fine structure of less than this part of the range is noise in black: such pictures are alike.
BLANK = {8: 1 / 255, 16: 1 / 4095}
CLIP_FRAMES = 4

Array = npt.NDArray[Any]


def thumbnail(image: Array, frames: int | None = None) -> npt.NDArray[np.int16]:
    """The fine structure of a picture (H, W) or (H, W, 3), or of a clip (T, H, W): (D,) int16.

    All 0 for a picture with none, which is then like no other.
    """
    if frames is None:
        pictures = [image]
    else:
        places = (2 * np.arange(CLIP_FRAMES) + 1) * frames // (2 * CLIP_FRAMES)
        pictures = [image[place] for place in places]
    fine = np.stack([_fine(picture) for picture in pictures]).ravel()
    length = float(np.sqrt(np.dot(fine, fine)))
    levels = np.iinfo(image.dtype).max
    if length < BLANK[8 * image.itemsize] * levels * np.sqrt(fine.size):
        return np.zeros(fine.size, np.int16)
    return np.rint(fine * (NORM / length)).astype(np.int16)


def _fine(picture: Array) -> npt.NDArray[np.float64]:
    # Halves are several times faster than one step to a size that does not divide.
    while len(picture) >= 4 * THUMB_PX and len(picture) % 2 == 0:
        half = len(picture) // 2
        picture = cv2.resize(picture, (half, half), interpolation=cv2.INTER_AREA)
    grey = picture.astype(np.float32)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    side = min(THUMB_PX, len(grey))
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small - cv2.blur(small, (BLUR_PX, BLUR_PX)), np.float64)


def packed(thumbs: Sequence[npt.NDArray[np.int16]]) -> str:
    """Thumbnails as text, for the state of a shard."""
    return base64.b64encode(b"".join(thumb.astype("<i2").tobytes() for thumb in thumbs)).decode()


def unpacked(text: str, count: int) -> npt.NDArray[np.int16]:
    """`count` thumbnails from text, (count, D)."""
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(count, -1)
