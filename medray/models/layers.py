"""Layers of the progressive GAN: equalised weights, pixel norm, minibatch standard deviation.

Shape letters: N images, C channels, H rows, W columns, F features, L latent dimensions.

Parameters stay float32; a layer computes in the type of what comes in. Sums that decide a scale
(pixel norm, minibatch standard deviation) are taken in float32 whatever that type is.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.kernels.activations import EPSILON, LEAK
from medray.models import ops
from medray.models.ops import at_least_float32

STDDEV_GROUP = 4


class EqualConv(nn.Module):
    """Convolution with an equalised learning rate, `(N, C, H, W) -> (N, out, H, W)`.

    The stored weight is N(0, 1) and is scaled by gain / sqrt(fan in) at run time, so that Adam
    moves every layer at the same relative speed (Karras et al., ICLR 2018, part 4.1). The bias
    starts at zero and is not scaled.
    """

    def __init__(self, fan_in: int, fan_out: int, kernel_px: int, gain: float = math.sqrt(2)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, kernel_px, kernel_px))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.scale = gain / math.sqrt(fan_in * kernel_px**2)
        self.padding_px = kernel_px // 2

    def forward(self, x_NCHW: Tensor) -> Tensor:
        weight, bias = self._scaled(x_NCHW.dtype)
        return functional.conv2d(x_NCHW, weight, bias, padding=self.padding_px)

    def _scaled(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return _for_convolution(self.weight * self.scale, dtype), self.bias.to(dtype)


def _for_convolution(weight: Tensor, dtype: torch.dtype) -> Tensor:
    # Every use would put the weight in this order for itself: forward and two backward passes.
    return weight.to(dtype=dtype, memory_format=torch.channels_last)


class LeakyConv(EqualConv):
    """`EqualConv` -> leaky ReLU, the discriminator's layer; any number of times differentiable."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return ops.conv_leaky(x_NCHW, *self._scaled(x_NCHW.dtype))


class NormConv(EqualConv):
    """`EqualConv` -> leaky ReLU -> pixel norm, the generator's layer; once differentiable."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        weight, bias = self._scaled(x_NCHW.dtype)
        return ops.conv_leaky_norm(functional.conv2d, x_NCHW, weight, bias, 1, self.padding_px)


class DoublingConv(EqualConv):
    """Nearest up-sampling by 2 -> `EqualConv` -> leaky ReLU -> pixel norm; once differentiable.

    A 3x3 kernel over doubled pixels meets only 2x2 different ones. So this is a transposed
    convolution of stride 2, whose 4x4 kernel holds the sums of the weights that meet the same
    pixel: the same function with 4/9 of the multiplications.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        padded = functional.pad(self.weight * self.scale, (1, 1, 1, 1))
        rows = padded[:, :, 1:] + padded[:, :, :-1]
        kernel = (rows[..., 1:] + rows[..., :-1]).flip(2, 3).transpose(0, 1)
        kernel = _for_convolution(kernel, x_NCHW.dtype)
        bias = self.bias.to(x_NCHW.dtype)
        return ops.conv_leaky_norm(functional.conv_transpose2d, x_NCHW, kernel, bias, 2, 1)


class EqualLinear(nn.Module):
    """Dense layer with an equalised learning rate, `(N, F) -> (N, out)`; see `EqualConv`."""

    def __init__(self, fan_in: int, fan_out: int, gain: float = math.sqrt(2)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.scale = gain / math.sqrt(fan_in)

    def forward(self, x_NF: Tensor) -> Tensor:
        weight = (self.weight * self.scale).to(x_NF.dtype)
        return functional.linear(x_NF, weight, self.bias.to(x_NF.dtype))


def channels_last(x_NCHW: Tensor) -> Tensor:
    """The same values in channels-last order, with strides that say so for one channel too.

    One channel is contiguous either way; convolutions would take it for channels first and write
    their many output channels in that order, to be copied at the next layer.
    """
    if x_NCHW.shape[1] == 1:
        return x_NCHW.squeeze(1).contiguous().unsqueeze(3).permute(0, 3, 1, 2)
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2 below zero."""
    return functional.leaky_relu(x, LEAK)


def pixel_norm(x: Tensor) -> Tensor:
    """`x * rsqrt(mean over channels of x^2 + 1e-8)`, channels on axis 1 (Karras et al., 4.2)."""
    scale = torch.rsqrt(at_least_float32(x).square().mean(1, keepdim=True) + EPSILON)
    return x * scale.to(x.dtype)


def stddev_group(images: int) -> int:
    """Images in a group of the minibatch standard deviation, for a batch of `images`.

    4 where 4 divides the batch, else the largest of 3 and 2 that does, else the whole batch (so
    a batch of 5 or 7 is one group; a batch of 1 has no spread and gets a constant channel).
    """
    return next((size for size in (STDDEV_GROUP, 3, 2) if images % size == 0), images)


def minibatch_stddev(x_NCHW: Tensor, parts: int = 1) -> Tensor:
    """Append one channel: the mean spread inside the image's group (Karras et al., part 3).

    Groups are strided: of M groups, image i belongs to group i mod M. The spread is the square
    root of the biased variance + 1e-8, averaged over channels and pixels. `parts` batches that
    were joined one behind another (real and fake) keep their own groups.
    """
    n, c, h, w = x_NCHW.shape
    group = stddev_group(n // parts)
    grouped = at_least_float32(x_NCHW).reshape(parts, group, n // parts // group, c * h * w)
    spread = (grouped.var(1, correction=0) + EPSILON).sqrt().mean(2)
    channel = spread[:, None, :].expand(-1, group, -1).reshape(n, 1, 1, 1).expand(n, 1, h, w)
    return torch.cat([x_NCHW, channel.to(x_NCHW.dtype)], 1)


def double(x_NCHW: Tensor) -> Tensor:
    """Nearest up-sampling by 2."""
    return functional.interpolate(x_NCHW, scale_factor=2, mode="nearest")
