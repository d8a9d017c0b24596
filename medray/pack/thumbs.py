"""The fine structure of a packed picture at a small size, by which near-duplicates are found.

It is what stays of a thumbnail when its own blur is taken away, in whole numbers and of length
`NORM`: so small that a product of two is exact in float32 in any order of adding, and what is made
of it is the same whatever the machine, the threads and the number of workers.

There are two of a picture: of the whole frame, and of what is left when dark margins are cut off,
so that a copy with other margins is found as well.

Shape letters: N pictures, D numbers of a thumbnail, H and W pixels, T frames.
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
FORMS, AT_ONCE = 2, 64

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def reduced(image: Array, frames: int | None = None) -> Array:
    """What thumbnails are made of: a picture (H, W) or (H, W, 3), or frames of a clip (T, H, W).

    (1, p, p) or (4, p, p), grey, at most a few times the size that is wanted.
    """
    if frames is None:
        return _grey(image)[None].copy()
    places = (2 * np.arange(CLIP_FRAMES) + 1) * frames // (2 * CLIP_FRAMES)
    return np.stack([_grey(image[place]) for place in places])


def _grey(picture: Array) -> Array:
    # Halves are several times faster than one step to a size that does not divide.
    while len(picture) >= 8 * THUMB_PX and len(picture) % 2 == 0:
        half = len(picture) // 2
        picture = cv2.resize(picture, (half, half), interpolation=cv2.INTER_AREA)
    return picture if picture.ndim == 2 else picture.mean(axis=2, dtype=np.float32)


def thumbnails(pictures: Sequence[Array], bits: int) -> npt.NDArray[np.int16]:
    """The fine structure of each of some `reduced` pictures of that many bits: (N, 2, D).

    All 0 for a picture with none, which is then like no other.
    """
    made = [
        _of_norm(_fine(_both(np.stack(pictures[at : at + AT_ONCE]))), bits)
        for at in range(0, len(pictures), AT_ONCE)
    ]
    return np.concatenate(made) if made else np.zeros((0, FORMS, 1), np.int16)


def _both(pictures_NTHW: Array) -> Floats:
    """Each frame at the size of thumbnails, whole and without margins: (N, 2, T, h, w)."""
    greys_NTHW = pictures_NTHW.astype(np.float32)
    count, frames, height, _ = greys_NTHW.shape
    boxes_N4 = _without_margins(greys_NTHW.max(axis=1))
    both = np.empty((count, FORMS, frames, THUMB_PX, THUMB_PX), np.float32)
    for n in range(count):
        top, bottom, left, right = boxes_N4[n]
        for frame in range(frames):
            grey = greys_NTHW[n, frame]
            both[n, 0, frame] = _scaled(grey)
            if bottom - top < height or right - left < height:
                both[n, 1, frame] = _scaled(grey[top:bottom, left:right])
            else:
                both[n, 1, frame] = both[n, 0, frame]
    return both


def _without_margins(greys_NHW: Floats) -> list[tuple[int, int, int, int]]:
    """First and last row and column + 1 that are no margin; the whole picture for a speck."""
    size = greys_NHW.shape[1]
    edges = []
    for axis in (2, 1):
        means_NH = greys_NHW.mean(axis=axis)
        bright_NH = means_NH > DARK * means_NH.max(axis=1, keepdims=True)
        edges += [bright_NH.argmax(axis=1), size - bright_NH[:, ::-1].argmax(axis=1)]
    boxes_N4 = np.stack(edges, axis=1)
    sides_N2 = boxes_N4[:, 1::2] - boxes_N4[:, ::2]
    boxes_N4[(sides_N2 <= SMALLEST_PX).any(axis=1)] = (0, size, 0, size)
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in boxes_N4.tolist()]


def _scaled(grey: Floats) -> Array:
    how = cv2.INTER_AREA if min(grey.shape) >= THUMB_PX else cv2.INTER_NEAREST
    return cv2.resize(grey, (THUMB_PX, THUMB_PX), interpolation=how)


def _fine(pictures: Floats) -> Floats:
    """Pictures (..., h, w) less their mean over `BLUR_PX` squared, mirrored at the edges."""
    reach = BLUR_PX // 2
    edges = [(0, 0)] * (pictures.ndim - 2) + [(reach, reach)] * 2
    wide = np.pad(pictures, edges, "reflect")
    tall = sum(wide[..., at : at + THUMB_PX, :] for at in range(BLUR_PX))
    blurred = sum(np.asarray(tall)[..., at : at + THUMB_PX] for at in range(BLUR_PX))
    return np.asarray(pictures - np.asarray(blurred) / np.float32(BLUR_PX**2), np.float32)


def _of_norm(fine: Floats, bits: int) -> npt.NDArray[np.int16]:
    """Fine structure (N, 2, T, h, w) in whole numbers and of length `NORM`, or 0: (N, 2, D)."""
    rows = fine.reshape(len(fine), FORMS, -1).astype(np.float64)
    lengths = np.sqrt(np.square(rows).sum(axis=2, keepdims=True))
    least = BLANK[bits] * (2**bits - 1) * np.sqrt(rows.shape[2])
    lengths[lengths < least] = np.inf
    return np.asarray(np.rint(rows * (NORM / lengths)), np.int16)


def packed(made: npt.NDArray[np.int16]) -> str:
    """Thumbnails as text, for the state of a shard."""
    return base64.b64encode(made.astype("<i2").tobytes()).decode()


def unpacked(text: str, count: int) -> npt.NDArray[np.int16]:
    """`count` thumbnails from text, (count, 2, D)."""
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(count, FORMS, -1)
