"""What the scores of images take: one check and one way of going through a set in bounded memory.

Shape letters: N images, C channels, H and W pixels.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.generic]
Floats = NDArray[np.float32]

# Pixels converted and filtered at once: 16 MB in float32, four images of 1024 px.
_PIXELS_AT_ONCE = 2**22


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
