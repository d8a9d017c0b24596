"""Residual blocks with group norm, which classifiers and encoders are made of.

Shape letters: N images, F maps, H and W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

GROUP_CHANNELS = 8


def norm(channels: int) -> nn.GroupNorm:
    """Normalisation by groups of channels within an image: no row knows its batch."""
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


def conv(fan_in: int, fan_out: int, kernel_px: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size, or divides it by `stride`."""
    return nn.Conv2d(fan_in, fan_out, kernel_px, stride, kernel_px // 2, bias=False)


class Block(nn.Module):
    """conv -> norm -> ReLU -> conv -> norm, plus what came in; halves and widens if asked."""

    def __init__(self, fan_in: int, fan_out: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv1 = conv(fan_in, fan_out, 3, 2 if halve else 1)
        self.norm1 = norm(fan_out)
        self.conv2 = conv(fan_out, fan_out, 3)
        self.norm2 = norm(fan_out)
        self.skip = conv(fan_in, fan_out, 1) if fan_in != fan_out else None

    def forward(self, x_NFHW: Tensor) -> Tensor:
        branch = functional.relu(self.norm1(self.conv1(x_NFHW)), inplace=True)
        branch = self.norm2(self.conv2(branch))
        if self.halve:
            x_NFHW = functional.avg_pool2d(x_NFHW, 2, ceil_mode=True)
        if self.skip is not None:
            x_NFHW = self.skip(x_NFHW)
        return functional.relu(branch + x_NFHW)
