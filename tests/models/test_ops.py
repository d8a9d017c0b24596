"""The fused layers against their plain composition, in float64, first and second derivatives."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from medray.models import ops
from medray.models.layers import pixel_norm

CONVOLUTIONS = [(1, 1, 1, 1, 4), (2, 3, 5, 3, 4), (3, 4, 2, 3, 7), (2, 5, 3, 1, 3)]


def _normal(*shape: int, seed: int = 0, channels_last: bool = False) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if channels_last:
        drawn = drawn.contiguous(memory_format=torch.channels_last)
    return drawn.requires_grad_(True)


def _convolution(n: int, c: int, o: int, k: int, px: int) -> list[torch.Tensor]:
    return [_normal(n, c, px, px, channels_last=True), _normal(o, c, k, k, seed=1), _normal(o)]


def _plain_conv_leaky(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    padding = weight.shape[-1] // 2
    return functional.leaky_relu(functional.conv2d(x, weight, bias, padding=padding), 0.2)


@pytest.mark.parametrize("sizes", CONVOLUTIONS)
def test_conv_leaky_has_right_first_and_second_derivatives(sizes: tuple[int, ...]) -> None:
    inputs = _convolution(*sizes)
    torch.testing.assert_close(ops.conv_leaky(*inputs), _plain_conv_leaky(*inputs))
    assert gradcheck(ops.conv_leaky, inputs)
    assert gradgradcheck(ops.conv_leaky, inputs)


def _penalty_gradients(layer: object, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    x, weight, bias = inputs
    y = layer(layer(x, weight, bias), weight, bias)  # type: ignore[operator]
    with ops.input_gradients_only():
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return list(torch.autograd.grad(gradient.square().sum(), [x, weight, bias]))


@pytest.mark.parametrize("sizes", [(2, 3, 3, 3, 4), (3, 2, 2, 1, 5)])
def test_a_penalty_on_input_gradients_moves_weights_as_the_plain_composition_does(
    sizes: tuple[int, ...],
) -> None:
    inputs = _convolution(*sizes)
    ours, plain = (_penalty_gradients(f, inputs) for f in (ops.conv_leaky, _plain_conv_leaky))
    for got, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_input_gradients_only_leaves_out_weights_and_ends_with_its_block() -> None:
    x, weight, bias = _convolution(2, 3, 4, 3, 5)
    y = ops.conv_leaky(x, weight, bias).sum()
    with ops.input_gradients_only():
        inside = torch.autograd.grad(y, [x, weight], retain_graph=True, allow_unused=True)
    after = torch.autograd.grad(y, [x, weight])
    assert inside[1] is None and after[1] is not None
    torch.testing.assert_close(inside[0], after[0])


@pytest.mark.parametrize("channels_last", [False, True])
def test_halve_is_the_box_mean_with_its_derivatives(channels_last: bool) -> None:
    x = _normal(2, 3, 6, 4, channels_last=channels_last)
    torch.testing.assert_close(ops.halve(x), functional.avg_pool2d(x, 2))
    assert gradcheck(ops.halve, x)
    assert gradgradcheck(lambda t: ops.halve(t).pow(3), x)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_leaky_norm_is_pixel_norm_of_leaky_relu_with_its_derivative(channels: int) -> None:
    x = _normal(3, channels, 4, 5, channels_last=True)

    def fused(t: torch.Tensor) -> torch.Tensor:
        return ops.leaky_norm_(t * 1)  # in place: not on the leaf itself

    torch.testing.assert_close(fused(x), pixel_norm(functional.leaky_relu(x, 0.2)))
    assert gradcheck(fused, x)


def test_leaky_norm_refuses_a_second_derivative_instead_of_giving_a_wrong_one() -> None:
    x = _normal(1, 2, 2, 2)
    with pytest.raises(RuntimeError, match="once, got create_graph=True"):
        torch.autograd.grad(ops.leaky_norm_(x * 1).sum(), x, create_graph=True)
