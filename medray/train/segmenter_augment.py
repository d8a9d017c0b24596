"""Augmentation of images with their masks through MONAI's transforms, one resampling a pair.

`monai.transforms.AffineGrid` makes the grid of rotation, shear, shift, zoom and flip, a smooth
random field bends it, `monai.transforms.Resample` reads image and mask at it. What happens to an
image is a function of (seed, its number in the run): MONAI's own random transforms would draw from
a generator with a state.

Shape letters: N images, C channels, H = W pixels, K = knots of a field a side.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms.spatial.array import AffineGrid, Resample
from torch import Tensor
from torch.nn import functional

from medray import rng
from medray.train.segmenter_config import SegmenterConfig

STREAM, FIELD_STREAM = "segmenter.augment", "segmenter.elastic"
TURN, SHIFT_Y, SHIFT_X, SHEAR_Y, SHEAR_X, ZOOM, MIRROR = range(7)
DRAWS = 7
KNOTS = 6

Draws = npt.NDArray[np.float32]


class AugmentPairs:
    """Callable on images in [-1, 1], masks of 0 and 1, and the images' numbers in the run."""

    def __init__(self, config: SegmenterConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        # Beyond its edge a picture goes on as it ends: black around a brain, tissue in a crop.
        self._read = Resample(
            mode="bilinear", padding_mode="border", device=device, dtype=np.float32
        )

    def __call__(
        self, images_NCHW: Tensor, masks_N1HW: Tensor, numbers_N: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Another picture of each image, and its mask, as large."""
        if not self._any():
            return images_NCHW, masks_N1HW
        c, px = self._config, images_NCHW.shape[-1]
        drawn_N7 = rng.uniforms(c.seed, STREAM, numbers_N, DRAWS)
        bent_N2HW = self._bent(numbers_N, px)
        pairs = torch.cat([images_NCHW, masks_N1HW], 1)
        moved = torch.stack(
            [
                self._read(pair, self._grid(drawn_7, px, bent_2HW)).as_subclass(Tensor)
                for pair, drawn_7, bent_2HW in zip(pairs, drawn_N7, bent_N2HW, strict=True)
            ]
        )
        return moved[:, :-1].contiguous(), (moved[:, -1:] >= 0.5).float()

    def _any(self) -> bool:
        c = self._config
        return bool(c.rotate_deg or c.shift or c.shear or c.zoom or c.elastic or c.mirror)

    def _grid(self, drawn_7: Draws, px: int, bent_2HW: Tensor) -> Tensor:
        """Where each output pixel is read, (3, H, W), in px from the middle (rows, columns, 1)."""
        c, either_7 = self._config, (2.0 * drawn_7.astype(np.float64) - 1.0).tolist()
        zoom = math.exp(either_7[ZOOM] * math.log1p(c.zoom))
        flip = -1.0 if c.mirror and drawn_7[MIRROR] < 0.5 else 1.0
        make = AffineGrid(
            rotate_params=(either_7[TURN] * math.radians(c.rotate_deg),),
            shear_params=(either_7[SHEAR_Y] * c.shear, either_7[SHEAR_X] * c.shear),
            translate_params=(either_7[SHIFT_Y] * c.shift * px, either_7[SHIFT_X] * c.shift * px),
            scale_params=(zoom, zoom * flip),
            device=self._device,
        )
        made, _ = make(spatial_size=(px, px))
        assert made is not None, "a grid that is not made lazily"
        grid_3HW = made.as_subclass(Tensor)
        grid_3HW[:2] += bent_2HW
        return grid_3HW

    def _bent(self, numbers_N: npt.NDArray[np.int64], px: int) -> Tensor:
        """How far the elastic warp moves each pixel, (N, 2, H, W) px: smooth between its knots."""
        c = self._config
        drawn = rng.uniforms(c.seed, FIELD_STREAM, numbers_N, 2 * KNOTS * KNOTS)
        knots = (2 * torch.from_numpy(drawn) - 1).view(-1, 2, KNOTS, KNOTS).to(self._device)
        return functional.interpolate(
            knots * (c.elastic * px), (px, px), mode="bicubic", align_corners=True
        )
