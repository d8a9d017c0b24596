"""A file as frames: NIfTI volumes, DICOM of one or many frames, NPY stacks, single pictures.

What comes out are the file's values, not grey levels: a clip has one window, and may be many files.
Letters: T frames, H and W pixels. Directions are those of the patient: right, front, head (RAS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.errors import DataError
from medray.images import _named, decode, format_of
from medray.images.files import damaged, npy_header
from medray.images.pixels import Array, check_size

# 512 frames of 512 x 512; what more a file holds is no clip that a network is shown.
MAX_VALUES = 1 << 27
Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one file, in its order, and where they lie; nothing here names a patient.

    `values_THW` are numbers of any kind. `directions` are the patient's directions of T, H and W,
    `places_mm` where along T each frame lies (None: evenly, in order). `number` is the file's place
    in its series as it says itself, `series` a digest of the series' name, `window` is (centre,
    width) where all frames have one, `inverted` where the lowest value is white.
    """

    values_THW: Array
    bits: int
    modality: str | None = None
    spacing_mm: tuple[float, float] | None = None
    slice_mm: float | None = None
    window: tuple[float, float] | None = None
    burned_in: bool | None = None
    inverted: bool = False
    directions: tuple[Vector, Vector, Vector] | None = None
    places_mm: tuple[float, ...] | None = None
    number: int | None = None
    series: str | None = None


def decode_frames(data: bytes, *, name: str = "") -> Frames:
    """All frames of a file's bytes, in this process; DataError alone, naming `name`.

    For files that nobody vouches for use `child.LimitedDecoder.frames_many`.
    """
    return _named(name, lambda: _decode(data))


def _decode(data: bytes) -> Frames:
    kind = format_of(data)
    if kind == "nifti":
        from medray.images.nifti import nifti_frames

        return nifti_frames(data)
    if kind == "dicom":
        from medray.images.dicom_frames import dicom_frames

        return dicom_frames(data)
    if kind == "npy":
        return _npy_frames(data)
    decoded = decode(data)
    return Frames(_grey(decoded.image)[None], decoded.bits, modality=decoded.modality)


def _grey(image: Array) -> Array:
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image


def _npy_frames(data: bytes) -> Frames:
    """(T, H, W), or (H, W) as one frame; a colour picture cannot be told from frames 3 px wide."""
    shape, fortran, dtype, start = npy_header(data)
    check_frames(shape if len(shape) == 3 else (1, *shape))
    count = int(np.prod(shape))
    if len(data) - start < count * dtype.itemsize:
        raise damaged(
            "NPY", f"{len(data) - start} bytes of pixels, {count * dtype.itemsize} are needed"
        )
    flat = np.frombuffer(data, dtype, count, start)
    values = flat.reshape(shape, order="F" if fortran else "C")
    return Frames(native(values if len(shape) == 3 else values[None]), _bits(dtype))


def _bits(dtype: np.dtype[Any]) -> int:
    return 8 if dtype.itemsize == 1 and dtype.kind in "bu" else 16


def native(values: Array) -> Array:
    """The same numbers, C order, this machine's bytes; booleans become 0 and 255."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def check_frames(shape_THW: tuple[int, ...]) -> None:
    """DataError for a header whose frames are none, or too many values, to be decoded."""
    if len(shape_THW) != 3 or shape_THW[0] < 1:
        raise DataError(f"the header says {shape_THW}; frames (T, H, W) are wanted", code="MR-D107")
    check_size(shape_THW[2], shape_THW[1])
    if int(np.prod(shape_THW, dtype=np.int64)) > MAX_VALUES:
        raise DataError(
            f"the header says {shape_THW} frames and px; at most {MAX_VALUES:,} values are decoded",
            code="MR-D103",
            hint="cut the clip into parts, or scale it down first",
        )
