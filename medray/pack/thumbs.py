"""The fine structure of a packed picture at a small size, by which near-duplicates are found.

It is what stays of a thumbnail when its own blur is taken away, in whole numbers and of length
`NORM`: so small that a product of two is exact in float32 in any order of adding, and what is made
of it is the same whatever the machine, the threads and the number of workers.

There are two of a picture: of the whole frame, and of what is left when dark margins are cut off,
so that a copy with other margins is found as well.

Shape letters: D numbers of a thumbnail, H and W pixels, T frames.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

# At 24 px of fine structure films of different children stay below 0.92 of 1 (2 million pairs),
# a film that was compressed, scaled, brightened or made noisier stays above 0.95.
THUMB_PX, BLUR_PX = 24, 5
# NORM squared, and so every sum on the way to it, is below 2**24: exact in float32.
NORM = 4000
# Fine structure of less than this part of the range is noise in black: such pictures are alike.
BLANK = {8: 1 / 255, 16: 1 / 4095}
# A row or column of a margin is darker on average than this part of the brightest.
DARK = 0.2
SMALLEST_PX = 8
CLIP_FRAMES = 4
FORMS = 2

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def thumbnail(image: Array, frames: int | None = None) -> npt.NDArray[np.int16]:
    """The fine structure of a picture (H, W) or (H, W, 3), or of a clip (T, H, W): (2, D) int16.

    All 0 for a picture with none, which is then like no other.
    """
    if frames is None:
        pictures = [_grey(image)]
    else:
        places = (2 * np.arange(CLIP_FRAMES) + 1) * frames // (2 * CLIP_FRAMES)
        pictures = [_grey(image[place]) for place in places]
    least = BLANK[8 * image.itemsize] * np.iinfo(image.dtype).max
    rows, columns = _without_margins(pictures)
    within = [picture[rows, columns] for picture in pictures]
    whole = _of_norm([_fine(picture) for picture in pictures], least)
    if within[0].shape == pictures[0].shape:
        return np.stack([whole, whole])
    return np.stack([whole, _of_norm([_fine(picture) for picture in within], least)])


def _grey(picture: Array) -> Floats:
    """Square, float32, in steps of a half at most a few times the size that is wanted."""
    # Halves are several times faster than one step to a size that does not divide.
    while len(picture) >= 8 * THUMB_PX and len(picture) % 2 == 0:
        half = len(picture) // 2
        picture = cv2.resize(picture, (half, half), interpolation=cv2.INTER_AREA)
    grey: Floats = picture.astype(np.float32)
    return grey if grey.ndim == 2 else grey.mean(axis=2)


def _without_margins(pictures: Sequence[Floats]) -> tuple[slice, slice]:
    """The rows and columns that are not margins of all the pictures; all of them for a speck."""
    brightest = pictures[0] if len(pictures) == 1 else np.max(np.stack(pictures), axis=0)
    found = []
    for axis in (1, 0):
        means = cv2.reduce(brightest, axis, cv2.REDUCE_AVG).ravel()
        bright = np.flatnonzero(means > DARK * means.max())
        if len(bright) < 2 or bright[-1] - bright[0] < SMALLEST_PX:
            return slice(None), slice(None)
        found.append(slice(int(bright[0]), int(bright[-1]) + 1))
    return found[0], found[1]


def _fine(grey: Floats) -> Floats:
    side = min(THUMB_PX, *grey.shape)
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    fine: Floats = small - cv2.blur(small, (BLUR_PX, BLUR_PX))
    if side < THUMB_PX:
        larger = cv2.resize(fine, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_NEAREST)
        fine = np.asarray(larger, np.float32)
    return fine


def _of_norm(parts: Sequence[Floats], least: float) -> npt.NDArray[np.int16]:
    fine = np.concatenate(parts, axis=None, dtype=np.float64)
    length = float(np.sqrt(np.dot(fine, fine)))
    if length < least * np.sqrt(fine.size):
        return np.zeros(fine.size, np.int16)
    return np.rint(fine * (NORM / length)).astype(np.int16)


def packed(thumbs: Sequence[npt.NDArray[np.int16]]) -> str:
    """Thumbnails as text, for the state of a shard."""
    return base64.b64encode(b"".join(thumb.astype("<i2").tobytes() for thumb in thumbs)).decode()


def unpacked(text: str, count: int) -> npt.NDArray[np.int16]:
    """`count` thumbnails from text, (count, 2, D)."""
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(count, FORMS, -1)
