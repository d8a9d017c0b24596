"""Fused layers with hand-written gradients, because a GAN's step spends half its time around them.

Shape letters: N images, C channels, H rows, W columns, K kernel side, O output channels.

What is gained over the plain composition, which gives the same numbers:
- the activation works in place on the convolution's output, and its gradient needs only that;
- the second derivative of the leaky ReLU is zero and is not computed (torch pushes zeros);
- a convolution's gradient is differentiated into convolutions and weight gradients again; torch
  makes the weight gradient there a convolution whose kernel is as large as the image;
- inside `input_gradients_only` a penalty's first backward pass makes no weight gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from medray.kernels import activations
from medray.kernels.activations import EPSILON, LEAK

Gradients = tuple[Tensor | None, ...]

_weights_wanted = True


@contextlib.contextmanager
def input_gradients_only() -> Iterator[None]:
    """Backward passes inside make no gradients of weights and biases of `conv_leaky`.

    `torch.autograd.grad` by the images alone cannot tell a custom function that the weights are
    not asked for. Module-wide, because the device's own thread runs the backward pass on a GPU.
    """
    global _weights_wanted
    before, _weights_wanted = _weights_wanted, False
    try:
        yield
    finally:
        _weights_wanted = before


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 widened to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def conv_leaky(x_NCHW: Tensor, weight_OCKK: Tensor, bias_O: Tensor) -> Tensor:
    """`leaky_relu(conv2d(x, weight, bias), 0.2)` of the same size, any number of times
    differentiable."""
    y_NOHW: Tensor = _ConvLeaky.apply(x_NCHW, weight_OCKK, bias_O)  # type: ignore[no-untyped-call]
    return y_NOHW


def halve(x_NCHW: Tensor) -> Tensor:
    """Box mean over 2x2 pixels, any number of times differentiable."""
    y_NCHW: Tensor = _Halve.apply(x_NCHW)  # type: ignore[no-untyped-call]
    return y_NCHW


def conv_leaky_norm(
    convolve: Callable[..., Tensor], x_NCHW: Tensor, weight: Tensor, bias_O: Tensor, *more: int
) -> Tensor:
    """`leaky_norm_` of a convolution's result; once differentiable.

    `convolve` takes x, weight, bias (or None) and `more`. On a GPU the bias goes with the norm.
    """
    if not x_NCHW.is_cuda:
        return leaky_norm_(convolve(x_NCHW, weight, bias_O, *more))
    y_NOHW = convolve(x_NCHW, weight, None, *more)
    if not activations.fits(y_NOHW):
        return leaky_norm_(y_NOHW.add_(bias_O[:, None, None]))
    made: Tensor = _BiasLeakyNorm.apply(y_NOHW, bias_O)  # type: ignore[no-untyped-call]
    return made


def leaky_norm_(x_NCHW: Tensor) -> Tensor:
    """`pixel_norm(leaky_relu(x, 0.2))` in place, once differentiable.

    The sum over channels accumulates in float32.
    """
    y_NCHW: Tensor = _LeakyNorm.apply(x_NCHW)  # type: ignore[no-untyped-call]
    return y_NCHW


class _ConvLeaky(Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor, bias_O: Tensor) -> Tensor:
        y_NOHW = _conv_leaky(x_NCHW, weight, bias_O)
        ctx.save_for_backward(x_NCHW, weight, y_NOHW)
        return y_NOHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        x_NCHW, weight, y_NOHW = ctx.saved_tensors
        g_NOHW = _Masked.apply(gradients[0], y_NOHW.detach())  # type: ignore[no-untyped-call]
        return _conv_gradients(ctx, g_NOHW, x_NCHW, weight)


class _Masked(Function):
    """The gradient of the leaky ReLU, by the sign of its output; that output counts as constant."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return _masked(g, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (y,) = ctx.saved_tensors
        return _Masked.apply(gradients[0], y), None  # type: ignore[no-untyped-call]


class _Conv(Function):
    """Convolution without bias."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight)
        return _conv(x_NCHW, weight, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        return _conv_gradients(ctx, gradients[0], *ctx.saved_tensors)[:2]


class _InputGradient(Function):
    """Gradient of a convolution by its input: linear in the gradient and in the weight."""

    @staticmethod
    def forward(ctx: Any, g_NOHW: Tensor, weight: Tensor, x_NCHW: Tensor) -> Tensor:
        ctx.save_for_backward(g_NOHW, weight)
        return _convolution_backward(g_NOHW, x_NCHW, weight, (True, False, False))[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        h_NCHW = gradients[0]
        g_NOHW, weight = ctx.saved_tensors
        by_g = by_weight = None
        if ctx.needs_input_grad[0]:
            by_g = _Conv.apply(h_NCHW, weight)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1] and _weights_wanted:
            by_weight, _ = _WeightGradient.apply(  # type: ignore[no-untyped-call]
                g_NOHW, h_NCHW, weight.detach()
            )
        return by_g, by_weight, None


class _WeightGradient(Function):
    """Gradients of a convolution by weight and bias: linear in the gradient and in the input."""

    @staticmethod
    def forward(ctx: Any, g_NOHW: Tensor, x_NCHW: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(g_NOHW, x_NCHW)
        _, by_weight, by_bias = _convolution_backward(g_NOHW, x_NCHW, weight, (False, True, True))
        return by_weight, by_bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        h_weight, h_O = gradients
        g_NOHW, x_NCHW = ctx.saved_tensors
        by_g = by_x = None
        if ctx.needs_input_grad[0]:
            by_g = _Conv.apply(x_NCHW, h_weight)  # type: ignore[no-untyped-call]
            by_g = by_g + h_O[:, None, None]
        if ctx.needs_input_grad[1]:
            by_x = _InputGradient.apply(  # type: ignore[no-untyped-call]
                g_NOHW, h_weight, x_NCHW.detach()
            )
        return by_g, by_x, None


class _Halve(Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
        if activations.fits(x_NCHW) and activations.halves(x_NCHW.shape[3] // 2):
            return activations.halve(x_NCHW)
        return functional.avg_pool2d(x_NCHW, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        return (_Spread.apply(gradients[0]),)  # type: ignore[no-untyped-call]


class _Spread(Function):
    """A quarter of each value to each of its 2x2 pixels: the transpose of `_Halve`."""

    @staticmethod
    def forward(ctx: Any, g_NCHW: Tensor) -> Tensor:
        if activations.fits(g_NCHW) and activations.halves(g_NCHW.shape[3]):
            return activations.spread(g_NCHW)
        return functional.interpolate(g_NCHW * 0.25, scale_factor=2, mode="nearest")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        return (_Halve.apply(gradients[0]),)  # type: ignore[no-untyped-call]


class _LeakyNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
        functional.leaky_relu_(x_NCHW, LEAK)
        norm_N1HW = at_least_float32(torch.linalg.vector_norm(x_NCHW, dim=1, keepdim=True))
        mean_square = norm_N1HW.square_().div_(x_NCHW.shape[1])
        scale_N1HW = mean_square.add_(EPSILON).rsqrt_().to(x_NCHW.dtype)
        x_NCHW.mul_(scale_N1HW)
        ctx.mark_dirty(x_NCHW)
        ctx.save_for_backward(x_NCHW, scale_N1HW)
        return x_NCHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        _refuse_graph()
        g_NCHW = gradients[0]
        y_NCHW, scale_N1HW = ctx.saved_tensors
        # d (x s) with s = (mean x^2 + eps)^(-1/2) is s (g - y mean(g y)): only y and s are kept.
        share_N1HW = (g_NCHW * y_NCHW).mean(1, keepdim=True)
        by_x = torch.addcmul(g_NCHW, y_NCHW, share_N1HW, value=-1).mul_(scale_N1HW)
        return (_masked(by_x, y_NCHW),)


class _BiasLeakyNorm(Function):
    """`leaky_norm_` of y + bias on a GPU."""

    @staticmethod
    def forward(ctx: Any, y_NCHW: Tensor, bias_C: Tensor) -> Tensor:
        scales_N1HW = activations.bias_leaky_norm_(y_NCHW, bias_C)
        ctx.mark_dirty(y_NCHW)
        ctx.save_for_backward(y_NCHW, scales_N1HW)
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        _refuse_graph()
        by_NCHW = activations.leaky_norm_gradient(gradients[0], *ctx.saved_tensors)
        return by_NCHW, by_NCHW.sum((0, 2, 3))


def _refuse_graph() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("leaky_norm_ is differentiable once, got create_graph=True")


def _masked(g: Tensor, y: Tensor) -> Tensor:
    # The slope by the sign of the output, which is that of the input.
    return torch.ops.aten.leaky_relu_backward(g, y, LEAK, True)  # type: ignore[no-any-return]


def _conv_leaky(x_NCHW: Tensor, weight: Tensor, bias_O: Tensor) -> Tensor:
    if x_NCHW.is_cuda:
        y_NOHW = _conv(x_NCHW, weight, None)
        if activations.fits(y_NOHW):
            activations.bias_leaky_(y_NOHW, bias_O)
            return y_NOHW
        y_NOHW.add_(bias_O[:, None, None])
    else:
        y_NOHW = _conv(x_NCHW, weight, bias_O)
    return functional.leaky_relu_(y_NOHW, LEAK)


def _conv(x_NCHW: Tensor, weight: Tensor, bias_O: Tensor | None) -> Tensor:
    return functional.conv2d(x_NCHW, weight, bias_O, padding=weight.shape[-1] // 2)


def _conv_gradients(ctx: Any, g_NOHW: Tensor, x_NCHW: Tensor, weight: Tensor) -> Gradients:
    by_x = by_weight = by_bias = None
    if ctx.needs_input_grad[0]:
        by_x = _InputGradient.apply(  # type: ignore[no-untyped-call]
            g_NOHW, weight, x_NCHW.detach()
        )
    if ctx.needs_input_grad[1] and _weights_wanted:
        by_weight, by_bias = _WeightGradient.apply(  # type: ignore[no-untyped-call]
            g_NOHW, x_NCHW, weight.detach()
        )
    return by_x, by_weight, by_bias


def _convolution_backward(
    g_NOHW: Tensor, x_NCHW: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    padding = weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        g_NOHW,
        x_NCHW,
        weight,
        [weight.shape[0]],
        [1, 1],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        1,
        wanted,
    )
