"""Standard augmentation of a batch: one warp for shift, turn, zoom and mirror, then grey values.

Shape letters: N images, C channels, H = W pixels. What happens to an image is a function of (seed,
its number in the run), so a resumed run, or one on more ranks, sees the same pictures.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medray import rng
from medray.train.classifier_config import ClassifierConfig

STREAM = "classifier.augment"
# Noise fields are drawn once; an image gets one of them, rolled to a place of its own.
FIELDS = 64
SHIFT_X, SHIFT_Y, TURN, ZOOM, BRIGHTNESS, CONTRAST, NOISE, MIRROR = range(8)


class Augment:
    """Callable on images in [-1, 1] and their numbers in the run."""

    def __init__(self, config: ClassifierConfig, channels: int, device: torch.device) -> None:
        self._config, self._device = config, device
        px = config.size_px
        drawn = rng.normals(config.seed, f"{STREAM}.noise", np.arange(FIELDS), channels * px * px)
        self._fields = torch.from_numpy(drawn).view(FIELDS, channels, px, px).to(device)

    def __call__(self, images_NCHW: Tensor, numbers_N: npt.NDArray[np.int64]) -> Tensor:
        """Another picture of each image, as large."""
        drawn_N8 = rng.uniforms(self._config.seed, STREAM, numbers_N, 8)
        warped = self._warped(images_NCHW, drawn_N8)
        return self._graded(warped, drawn_N8, numbers_N)

    def _warped(self, images_NCHW: Tensor, drawn_N8: npt.NDArray[np.float32]) -> Tensor:
        c = self._config
        if not (c.shift or c.rotate_deg or c.zoom or c.mirror):
            return images_NCHW
        matrices = torch.from_numpy(self._matrices(drawn_N8)).to(self._device)
        grid = functional.affine_grid(matrices, list(images_NCHW.shape), align_corners=False)
        return functional.grid_sample(
            images_NCHW, grid, mode="bilinear", padding_mode="border", align_corners=False
        )

    def _matrices(self, drawn_N8: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Where an output pixel comes from, (N, 2, 3), in units of half the width."""
        c, either = self._config, 2 * drawn_N8 - 1
        turn = either[:, TURN] * math.radians(c.rotate_deg)
        scale = np.exp(either[:, ZOOM] * np.log1p(c.zoom))
        flip = np.where(c.mirror & (drawn_N8[:, MIRROR] < 0.5), -1.0, 1.0)
        cos, sin = np.cos(turn) * scale, np.sin(turn) * scale
        x, y = 2 * c.shift * either[:, SHIFT_X], 2 * c.shift * either[:, SHIFT_Y]
        rows = np.stack([cos * flip, -sin, x, sin * flip, cos, y], 1)
        return rows.reshape(-1, 2, 3).astype(np.float32)

    def _graded(
        self,
        images_NCHW: Tensor,
        drawn_N8: npt.NDArray[np.float32],
        numbers_N: npt.NDArray[np.int64],
    ) -> Tensor:
        c, either = self._config, 2 * drawn_N8 - 1
        contrast = np.exp(either[:, CONTRAST] * np.log1p(c.contrast))
        graded = images_NCHW * self._column(contrast)
        graded += self._column(either[:, BRIGHTNESS] * c.brightness)
        if c.noise:
            graded += self._noise(numbers_N) * self._column(drawn_N8[:, NOISE] * c.noise)
        return graded.clamp_(-1, 1)

    def _noise(self, numbers_N: npt.NDArray[np.int64]) -> Tensor:
        px = self._fields.shape[-1]
        which_N = rng.integers(self._config.seed, f"{STREAM}.field", numbers_N, 1, 0, FIELDS)[:, 0]
        roll_N2 = rng.integers(self._config.seed, f"{STREAM}.roll", numbers_N, 2, 0, px)
        rolled = [
            self._fields[which].roll((int(dy), int(dx)), (1, 2))
            for which, (dy, dx) in zip(which_N, roll_N2, strict=True)
        ]
        return torch.stack(rolled)

    def _column(self, values_N: npt.NDArray[np.floating]) -> Tensor:
        column = torch.from_numpy(values_N.astype(np.float32)).to(self._device)
        return column[:, None, None, None]
