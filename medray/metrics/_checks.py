"""What scores take: the checks of images and features, and a set's images in bounded memory.

Shape letters: N images or rows, M rows, C channels, H and W pixels, D features.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medray.errors import DataError

Images = NDArray[np.generic]
Floats = NDArray[np.float32]

# Pixels converted and filtered at once: 16 MB in float32, four images of 1024 px.
_PIXELS_AT_ONCE = 2**22


class UndefinedMetricError(DataError):
    """A score that these numbers do not have; never 0 instead."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="MR-D050")


def grey_parts(images: Images, dtype: type) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """(first number, images (n, H, W) in `dtype`), a bounded number at a time, in order.

    Images are (N, H, W) or (N, C, H, W), of which the mean over channels is taken in float64.
    """
    at_once = max(1, _PIXELS_AT_ONCE // images.shape[-1] ** 2)
    for first in range(0, len(images), at_once):
        part = images[first : first + at_once]
        grey_NHW = part.mean(axis=1, dtype=np.float64) if part.ndim == 4 else part
        yield first, grey_NHW.astype(dtype)


def check_pair(real: Images, fake: Images) -> None:
    """ValueError unless both are finite, of one shape (N, px, px) or (N, C, px, px)."""
    shape, other = real.shape, fake.shape
    square = real.ndim in (3, 4) and shape[-1] == shape[-2] >= 4
    if shape != other or not square or not real.size:
        raise ValueError(
            f"both sets must have one shape (N, px, px) or (N, C, px, px), N at least 1 and px at "
            f"least 4, got {shape} and {other}"
        )
    for images in (real, fake):
        if images.dtype.kind not in "uif":
            raise ValueError(f"images must be real numbers, got {images.dtype}")
        if images.dtype.kind == "f" and not all(np.isfinite(image).all() for image in images):
            raise ValueError("images must be finite, got nan or infinity")


def check_features(first_ND: Images, second_MD: Images, least: int) -> None:
    """ValueError unless both are finite (N, D) of one D >= 1, each of `least` rows at least."""
    shapes = (first_ND.shape, second_MD.shape)
    for features, shape in zip((first_ND, second_MD), shapes, strict=True):
        if len(shape) != 2 or shape[1] < 1 or shape[1] != shapes[0][-1] or len(features) < least:
            raise ValueError(
                f"features must be (N, D) and (M, D), at least {least} rows each, "
                f"got {shapes[0]} and {shapes[1]}"
            )
        if features.dtype.kind != "f" or not np.isfinite(features).all():
            raise ValueError(
                f"features must be finite floating numbers, got {features.dtype}"
                f"{' with nan or infinity' if features.dtype.kind == 'f' else ''}"
            )
