"""Stored pixels into what networks take, and to the size they work at.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medray.errors import DataError

HALF_RANGE = {torch.uint8: 127.5, torch.uint16: 32767.5}


def to_unit(images_NCHW: Tensor) -> Tensor:
    """uint8 or uint16 -> float32 in [-1, 1]; DataError on another type."""
    if images_NCHW.dtype not in HALF_RANGE:
        raise DataError(f"images must be uint8 or uint16, got {images_NCHW.dtype}")
    return images_NCHW.float() / HALF_RANGE[images_NCHW.dtype] - 1


def resized(images_NCHW: Tensor, size_px: int) -> Tensor:
    """Images `size_px` square, from any size: box means by a whole factor, else area-true bilinear.

    Once differentiable by the images, so that a network may work at another size than a generator.
    """
    height, width = images_NCHW.shape[2:]
    if height == width == size_px:
        return images_NCHW
    if height == width and height % size_px == 0:
        return functional.avg_pool2d(images_NCHW, height // size_px)
    size = (size_px, size_px)
    return functional.interpolate(
        images_NCHW, size, mode="bilinear", align_corners=False, antialias=True
    )
