"""Differentiable augmentation of all that a discriminator sees (Zhao et al., NeurIPS 2020).

Shape letters: N images, C channels, H = W = px pixels, A draws an image.

Real and made images are changed alike, in D's step and in G's, so that D never learns the few real
images by heart and G is not asked to make changed ones. As in the paper: brightness +-0.5 and
contrast 0.5 to 1.5 on images in [-1, 1], a shift of up to an eighth of the side, a square of half
the side cut out, both filled with 0. (Their saturation is left out: it does nothing to grey.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

BRIGHTNESS, CONTRAST, SHIFT_Y, SHIFT_X, CUT_Y, CUT_X = range(6)
DRAWS = 6
SHIFT_SHARE, CUT_SHARE = 1 / 8, 1 / 2


def augment(images_NCHW: Tensor, draws_NA: Tensor, kinds: Sequence[str]) -> Tensor:
    """The images changed in the ways named, by uniform draws (N, 6); no wait for the device."""
    for kind in kinds:
        images_NCHW = KINDS[kind](images_NCHW, draws_NA)
    return images_NCHW


def tone(images_NCHW: Tensor, draws_NA: Tensor) -> Tensor:
    """Another brightness, and another contrast about the image's mean."""
    shift, factor = (_column(draws_NA[:, n]) for n in (BRIGHTNESS, CONTRAST))
    mean = images_NCHW.mean((1, 2, 3), keepdim=True)
    return (images_NCHW - mean) * (factor + 0.5) + (mean + shift - 0.5)


def translation(images_NCHW: Tensor, draws_NA: Tensor) -> Tensor:
    """Shifted by whole pixels, the same number of images at every shift."""
    count, channels, px, _ = images_NCHW.shape
    most = _share(px, SHIFT_SHARE)
    padded = functional.pad(images_NCHW, (most, most, most, most))
    along = torch.arange(px, device=draws_NA.device)
    # Every pixel is taken at most once: the gradient has no sum whose order could vary.
    rows, columns = (
        along + (draws_NA[:, n] * (2 * most + 1)).long()[:, None] for n in (SHIFT_Y, SHIFT_X)
    )
    rows = rows[:, None, :, None].expand(-1, channels, -1, padded.shape[3])
    columns = columns[:, None, None, :].expand(-1, channels, px, -1)
    return padded.gather(2, rows).gather(3, columns)


def cutout(images_NCHW: Tensor, draws_NA: Tensor) -> Tensor:
    """A square anywhere, partly outside too, set to 0."""
    px = images_NCHW.shape[2]
    side = _share(px, CUT_SHARE)
    along = torch.arange(px, device=draws_NA.device)
    rows, columns = (
        _between(along, (draws_NA[:, n] * (px + 1 - side % 2)).long() - side // 2, side)
        for n in (CUT_Y, CUT_X)
    )
    kept = ~(rows[:, None, :, None] & columns[:, None, None, :])
    return images_NCHW * kept.to(images_NCHW.dtype)


KINDS = {"tone": tone, "translation": translation, "cutout": cutout}


def _share(px: int, share: float) -> int:
    return int(px * share + 0.5)


def _between(along: Tensor, first_N: Tensor, side: int) -> Tensor:
    return (along >= first_N[:, None]) & (along < first_N[:, None] + side)


def _column(values_N: Tensor) -> Tensor:
    return values_N[:, None, None, None]
