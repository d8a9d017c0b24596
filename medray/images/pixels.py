"""What a decoded image is, and how values become grey levels. Arrays only; no file format here.

Shapes: (H, W) grey or (H, W, 3) RGB. Grey levels fill 0 to 255 (uint8) or 0 to 65535 (uint16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medray.errors import DataError

Array = npt.NDArray[Any]
# "auto": the file's own window or levels; "minmax": darkest to brightest; (centre, width).
Window = Literal["auto", "minmax"] | tuple[float, float]

# 8192 x 8192: twice the largest radiograph; a decode of it stays within the child's memory.
MAX_PIXELS = 1 << 26
# Ranges of values that float32 can be scaled by.
_ORDINARY = (1e-30, 1e30)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels and the few facts that may go with them; nothing here can name a patient.

    `image` is uint8 or uint16, (H, W) or (H, W, 3); `window` = (centre, width) that made the grey
    levels from the file's values, None where they are the file's own; `frames` in the file.
    """

    image: Array
    bits: int
    modality: str | None = None
    spacing_mm: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    burned_in: bool | None = None
    frames: int = 1


def check_size(width: int, height: int) -> None:
    """DataError MR-D103 for a header whose pixels are too many, or none, to be decoded."""
    if width < 1 or height < 1:
        raise DataError(f"the header says {width} x {height} px; at least 1 x 1", code="MR-D102")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the header says {width} x {height} px; at most {MAX_PIXELS:,} pixels are decoded",
            code="MR-D103",
            hint="cut the image into tiles, or leave it out",
        )


def grey_levels(values: Array, low: float, high: float, bits: int) -> Array:
    """Values with `low` at black and `high` at white, linear between, as uint8 or uint16."""
    white = (1 << bits) - 1
    largest = max(abs(low), abs(high))
    if largest > _ORDINARY[1] or 0 < high - low < _ORDINARY[0]:
        # float32 does not hold such values, or such a factor: the same picture on another scale.
        within = np.clip(values.astype(np.float64), low, high) / largest - low / largest
        values, low, high = within, 0.0, high / largest - low / largest
    span = high - low if high > low else 1.0
    with np.errstate(over="ignore"):  # far past white is white
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(white / span)
    rounded = np.clip(scaled + np.float32(0.5), 0, white)
    levels: Array = rounded.astype(np.uint8 if bits == 8 else np.uint16)
    return levels


def windowed(values: Array, window: Window, bits: int) -> tuple[Array, tuple[float, float]]:
    """Grey levels of any finite values, and the (centre, width) that was used.

    "auto" and "minmax" take the image's own range. DataError MR-D114 for NaN or infinity.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("pixels are not finite (NaN or infinity)", code="MR-D114")
    if isinstance(window, str):
        low, high = float(values.min()), float(values.max())
    else:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    return grey_levels(values, low, high, bits), ((low + high) / 2, high - low)


def to_bits(image: Array, bits: int) -> Array:
    """The same picture with 8 or 16 bits a pixel; 8 -> 16 -> 8 gives back the same levels."""
    if image.itemsize * 8 == bits:
        return image
    if bits == 16:
        return image.astype(np.uint16) * np.uint16(257)
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def from_values(values: Array, window: Window, modality: str | None = None) -> Decoded:
    """The image of an array as a file without a window holds it.

    uint8 and uint16 stay as they are under "auto", booleans become black and white, anything else
    is spread over 16 bits. DataError MR-D107 for a shape or type that is no image.
    """
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise DataError(
            f"the array has shape {values.shape}; (H, W) or (H, W, 3) is wanted", code="MR-D107"
        )
    if values.dtype.kind not in "buif":
        raise DataError(f"the array holds {values.dtype}; numbers are wanted", code="MR-D107")
    check_size(values.shape[1], values.shape[0])
    if values.dtype == np.bool_:
        return Decoded(values.astype(np.uint8) * np.uint8(255), 8, modality)
    if window == "auto" and values.dtype in (np.uint8, np.uint16):
        native = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
        return Decoded(native, 8 * values.itemsize, modality)
    bits = 8 if values.dtype == np.uint8 else 16
    image, used = windowed(values, window, bits)
    return Decoded(image, bits, modality, window=used)
