"""Exponential moving average of a network's weights, with its half-life in images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Where a configuration has no share of its own.
RAMPUP = 0.1


def decay_at(images: int, batch: int, half_life_images: float, rampup: float) -> float:
    """Share of the average that survives a step of `batch` images ending at `images`.

    Early on the half-life is at most `rampup` times the images seen, so that the average does
    not hold on to random weights.
    """
    half_life = min(half_life_images, images * rampup)
    return float(0.5 ** (batch / half_life))


@torch.no_grad()
def update_(average: list[Tensor], current: list[Tensor], decay: float) -> None:
    """`average = decay * average + (1 - decay) * current`, in place, one pass for all tensors."""
    torch._foreach_lerp_(average, current, 1 - decay)


def follow(
    average: nn.Module, network: nn.Module, images: int, batch: int, half_life_images: float
) -> None:
    """Moves all of `average` towards `network`, after a step of `batch` images ending at `images`.

    Both have the same parameters; buffers stay as they are.
    """
    decay = decay_at(images, batch, half_life_images, RAMPUP)
    update_([*average.parameters()], [*network.parameters()], decay)
