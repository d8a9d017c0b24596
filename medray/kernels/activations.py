"""What stands around a convolution, each in one pass over its pixels, on a GPU alone.

torch takes several passes for each and has no quick ones for channels-last images: at 256 pixels
they were more than half of a GAN's step. On the CPU torch's own are as quick, and are used.

Shape letters: N images, C channels, H and W pixels. Images are channels-last in memory, float32 or
bfloat16; sums are float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

LEAK, EPSILON = 0.2, 1e-8


def fits(x_NCHW: Tensor) -> bool:
    """Whether the kernels take such images: on a GPU, channels last, a multiple of 4 of them."""
    import torch

    return (
        x_NCHW.is_cuda
        and x_NCHW.dtype in (torch.float32, torch.bfloat16)
        and x_NCHW.shape[1] % 4 == 0
        and x_NCHW.numel() > 0
        and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    )


def halves(width: int) -> bool:
    """Whether `halve` and `spread` go with a smaller image of this width: a power of two."""
    return width > 0 and not width & (width - 1)


def bias_leaky_(y_NCHW: Tensor, bias_C: Tensor) -> None:
    """`leaky_relu(y + bias, 0.2)` in place."""
    from medray.kernels._launch import launch_rows

    launch_rows("activations", "bias_leaky", _rows(y_NCHW), [bias_C])


def bias_leaky_ref(y_RC: NDArray[Any], bias_C: NDArray[Any]) -> NDArray[Any]:
    """The definition of `bias_leaky_`, on rows of channels."""
    value_RC = y_RC + bias_C
    return np.asarray(np.where(value_RC > 0, value_RC, LEAK * value_RC))


def bias_leaky_norm_(y_NCHW: Tensor, bias_C: Tensor) -> Tensor:
    """The same over the root of its mean square over channels, in place; scales (N, 1, H, W).

    A scale is the root's reciprocal, float32.
    """
    import torch

    from medray.kernels._launch import launch_whole_rows

    n, _, h, w = y_NCHW.shape
    scales_N1HW = torch.empty((n, 1, h, w), dtype=torch.float32, device=y_NCHW.device)
    launch_whole_rows("activations", "bias_leaky_norm", _rows(y_NCHW), [bias_C, scales_N1HW])
    return scales_N1HW


def bias_leaky_norm_ref(
    y_RC: NDArray[Any], bias_C: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The definition of `bias_leaky_norm_`: rows, and the scale of each."""
    leaky_RC = bias_leaky_ref(y_RC, bias_C)
    scale_R = 1 / np.sqrt((leaky_RC**2).mean(1) + EPSILON)
    return leaky_RC * scale_R[:, None], scale_R


def leaky_norm_gradient(g_NCHW: Tensor, y_NCHW: Tensor, scales_N1HW: Tensor) -> Tensor:
    """The gradient by `y + bias` of what gave `y_NCHW` and its scales, for the gradient `g`."""
    import torch

    from medray.kernels._launch import launch_whole_rows

    g_NCHW = g_NCHW.to(y_NCHW.dtype).contiguous(memory_format=torch.channels_last)
    by_NCHW = torch.empty_like(y_NCHW, memory_format=torch.channels_last)
    arguments = [_rows(g_NCHW), _rows(y_NCHW), scales_N1HW]
    launch_whole_rows("activations", "leaky_norm_gradient", _rows(by_NCHW), arguments)
    return by_NCHW


def leaky_norm_gradient_ref(
    g_RC: NDArray[Any], y_RC: NDArray[Any], scale_R: NDArray[Any]
) -> NDArray[Any]:
    """The definition of `leaky_norm_gradient`, on rows of channels."""
    share_R1 = (g_RC * y_RC).mean(1, keepdims=True)
    by_RC = (g_RC - y_RC * share_R1) * scale_R[:, None]
    return np.asarray(np.where(y_RC > 0, by_RC, LEAK * by_RC))


def halve(x_NCHW: Tensor) -> Tensor:
    """The mean of 2 x 2 pixels: (N, C, H / 2, W / 2)."""
    import torch

    from medray.kernels._launch import launch_rows

    n, c, h, w = x_NCHW.shape
    out_NCHW = _empty((n, c, h // 2, w // 2), x_NCHW)
    arguments = [_rows(x_NCHW), np.uint32((w // 2).bit_length() - 1)]
    launch_rows("activations", "halve_pixels", _rows(out_NCHW), arguments)
    assert out_NCHW.is_contiguous(memory_format=torch.channels_last)
    return out_NCHW


def spread(g_NCHW: Tensor) -> Tensor:
    """A quarter of each pixel to each of its 2 x 2: (N, C, 2 H, 2 W), the transpose of `halve`."""
    from medray.kernels._launch import launch_rows

    n, c, h, w = g_NCHW.shape
    out_NCHW = _empty((n, c, 2 * h, 2 * w), g_NCHW)
    arguments = [_rows(g_NCHW), np.uint32(w.bit_length() - 1)]
    launch_rows("activations", "spread_pixels", _rows(out_NCHW), arguments, rows=n * h * w)
    return out_NCHW


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    import torch

    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _rows(x_NCHW: Tensor) -> Tensor:
    """Pixels as rows of channels, (N H W, C), without a copy."""
    return x_NCHW.permute(0, 2, 3, 1).reshape(-1, x_NCHW.shape[1])
